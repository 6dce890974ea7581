//! Setup of the benchmark: origins, a bare forwarder, and the proxy with limits that are never
//! reached.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use super::Result;
use super::origin::ACCEPTED_PATH;
use super::process::{self, Output, Process};

pub(crate) struct Setup {
    pub(crate) origin_plain: SocketAddr,
    /// TLS address of an origin on the proxy's core, for the rate of new connections without the
    /// proxy.
    pub(crate) bare_tls: SocketAddr,
    pub(crate) forwarder: Process,
    pub(crate) forwarder_address: SocketAddr,
    pub(crate) proxy: Process,
    pub(crate) proxy_address: SocketAddr,
    pub(crate) route: SocketAddr,
    /// Address of the route to the TLS origin.
    pub(crate) route_tls: SocketAddr,
    /// File with the certificates of the origins' CAs and of the proxy's CA, as PEM.
    pub(crate) cas: std::path::PathBuf,
    /// Origin processes, which are dropped after the proxy and the forwarder.
    _origins: [Process; 2],
    _dir: tempfile::TempDir,
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Setup {
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (bare, _, bare_tls) = origin(dir.path(), 0)?;
        std::fs::rename(dir.path().join("ca.pem"), dir.path().join("bare-ca.pem"))?;
        let (origin, origin_plain, origin_tls) = origin(dir.path(), 1)?;

        let mut command = process::role("forwarder", 0)?;
        command.env("BENCH_ORIGIN", format!("{origin_plain}"));
        let mut forwarder = Process::start(command, Output::Stdout)?;
        let said = forwarder.expect_line("listening")?;
        let forwarder_address = said.split(' ').nth(1).ok_or("no address")?.parse()?;

        let (proxy_address, route) = (free_address()?, free_address()?);
        let route_tls = free_address()?;
        let config = dir.path().join("config.yaml");
        std::fs::write(
            &config,
            policy(
                dir.path(),
                proxy_address,
                [route, route_tls],
                origin_plain,
                origin_tls,
            ),
        )?;
        let mut command = process::pinned(Path::new(env!("CARGO_BIN_EXE_outpace")), 0);
        command
            .args(["serve", "--config"])
            .arg(&config)
            .env("TOKIO_WORKER_THREADS", "1");
        let mut proxy = Process::start(command, Output::Stderr)?;
        proxy.expect_line("\"ready\"")?;
        let cas = dir.path().join("cas.pem");
        let both = std::fs::read_to_string(dir.path().join("ca.pem"))?
            + &std::fs::read_to_string(dir.path().join("bare-ca.pem"))?
            + &std::fs::read_to_string(dir.path().join("data/ca.pem"))?;
        std::fs::write(&cas, both)?;
        Ok(Self {
            origin_plain,
            bare_tls,
            forwarder,
            forwarder_address,
            proxy,
            proxy_address,
            route,
            route_tls,
            cas,
            _origins: [origin, bare],
            _dir: dir,
        })
    }
}

impl Setup {
    /// Returns the number of TLS connections that the origin has accepted.
    pub(crate) fn accepted(&self) -> Result<usize> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.origin_plain)?;
        write!(
            stream,
            "GET {ACCEPTED_PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let (_, body) = response
            .split_once("\r\n\r\n")
            .ok_or("no response of the origin")?;
        Ok(body.parse()?)
    }
}

/// Starts an origin on `core` and returns the process with its plain and its TLS address.
fn origin(dir: &Path, core: usize) -> Result<(Process, SocketAddr, SocketAddr)> {
    let mut command = process::role("origin", core)?;
    command.env("BENCH_DIR", dir);
    let mut origin = Process::start(command, Output::Stdout)?;
    let said = origin.expect_line("listening")?;
    let mut words = said.split(' ').skip(1);
    let mut next = || {
        words
            .next()
            .ok_or("the origin printed fewer than two addresses")
    };
    let (plain, tls) = (next()?.parse()?, next()?.parse()?);
    Ok((origin, plain, tls))
}

/// Returns a configuration of the proxy with its log on and with limits that apply but are never
/// reached.
fn policy(
    dir: &Path,
    listen: SocketAddr,
    [route, route_tls]: [SocketAddr; 2],
    plain: SocketAddr,
    tls: SocketAddr,
) -> String {
    let dir = dir.display();
    // A key is in use for an hour per request, so none is forgotten during the benchmark.
    let keyed = "{ rate: \"1/1h\", burst: 1000000, key: \"header:x-key\" }";
    format!(
        "listen: {listen}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {dir}/data\n\
         routes:\n\
         \x20 - {{ listen: \"{route}\", to: \"http://origin.bench\" }}\n\
         \x20 - {{ listen: \"{route_tls}\", to: \"https://secure.bench\", hosts: [origin.bench] }}\n\
         egress:\n  allow: [\"127.0.0.0/8\"]\n  roots: [\"{dir}/ca.pem\"]\n\
         \x20 resolve: {{ \"origin.bench\": \"{plain}\", \"secure.bench\": \"{tls}\", \"tunnel.bench\": \"{tls}\", \"few.bench\": \"{plain}\", \"many.bench\": \"{plain}\" }}\n\
         targets:\n\
         \x20 - {{ name: origin, hosts: [origin.bench, secure.bench], limits: [{{ rate: \"1000000/1s\", burst: 1000000 }}] }}\n\
         \x20 - {{ name: tunnel, hosts: [tunnel.bench], tls: tunnel, limits: [{{ rate: \"1000000/1s\", burst: 1000000 }}] }}\n\
         \x20 - {{ name: few, hosts: [few.bench], limits: [{keyed}] }}\n\
         \x20 - {{ name: many, hosts: [many.bench], limits: [{keyed}] }}\n"
    )
}
