//! The program as a process, with one host, one route and one origin for each lane.
//!
//! The cases of a lane follow each other, so connections to its origin are reused between them. No
//! two lanes share a connection to an origin.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::Io;
use crate::harness::{Identity, free_port, program, soon};
use crate::model::Way;
use crate::origin::{Recorder, listen};

/// Number of cases that run at the same time.
pub(crate) const LANES: u64 = 16;

/// Host with its origin and its route.
pub(crate) struct Lane {
    pub(crate) host: String,
    pub(crate) recorder: Arc<Recorder>,
    route: SocketAddr,
}

pub(crate) struct World {
    pub(crate) lanes: Vec<Lane>,
    listen: SocketAddr,
    tls: [TlsConnector; 2],
    _dir: tempfile::TempDir,
    _child: Child,
}

impl World {
    pub(crate) async fn start() -> Self {
        let identity = Identity::new(vec!["*.fuzz.test".to_owned()]);
        let mut server = identity.server(None);
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let (mut lanes, mut resolve, mut routes) = (Vec::new(), String::new(), String::new());
        for number in 0..LANES {
            let recorder = Arc::<Recorder>::default();
            let origin = listen(acceptor.clone(), Arc::clone(&recorder)).await;
            let host = format!("l{number}.fuzz.test");
            let mut ports = std::iter::repeat_with(free_port);
            let is_new = |port: &u16| lanes.iter().all(|lane: &Lane| lane.route.port() != *port);
            let port = ports.find(is_new).unwrap();
            let _ = write!(resolve, "\"{host}\": \"{origin}\", ");
            let _ = writeln!(
                routes,
                "  - {{ listen: \"127.0.0.1:{port}\", to: \"http://{host}\", hosts: [any.example] }}"
            );
            let route = SocketAddr::from(([127, 0, 0, 1], port));
            lanes.push(Lane {
                host,
                recorder,
                route,
            });
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        std::fs::write(dir.path().join("origin-ca.pem"), &identity.ca).unwrap();
        let config = format!(
            "listen: 127.0.0.1:0\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\n\
             data_dir: {path}/data\n\
             egress:\n\
             \x20 allow: [\"127.0.0.1\"]\n\
             \x20 roots: [\"{path}/origin-ca.pem\"]\n\
             \x20 resolve: {{ {resolve} }}\n\
             targets: [{{ name: fuzz, hosts: [\"*.fuzz.test\"], limits: [{{ concurrent: 1000 }}], retry: {{ attempts: 1 }} }}]\n\
             routes:\n{routes}"
        );
        std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        let (child, listen) = serve(&dir).await;
        let ca = std::fs::read(dir.path().join("data/ca.pem")).unwrap();
        Self {
            lanes,
            listen,
            tls: [connector(&ca, b"http/1.1"), connector(&ca, b"h2")],
            _dir: dir,
            _child: child,
        }
    }

    /// Opens a client connection for the ingress mode. The caller speaks HTTP/2 on it at once.
    pub(crate) async fn connect(&self, lane: &Lane, way: Way, http2: bool) -> Box<dyn Io> {
        let address = match way {
            Way::Route => lane.route,
            Way::Proxy | Way::Tls => self.listen,
        };
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _unsupported = stream.set_nodelay(true);
        if way != Way::Tls {
            return Box::new(stream);
        }
        let authority = format!("{}:443", lane.host);
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        // outpace sends nothing more before the client's handshake.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let read = soon("the response to CONNECT", stream.read_buf(&mut answer)).await;
            assert!(read.unwrap() > 0, "{}", answer.escape_ascii());
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        let name = lane.host.clone().try_into().unwrap();
        let handshake = self.tls[usize::from(http2)].connect(name, stream);
        Box::new(soon("the TLS handshake", handshake).await.unwrap())
    }
}

/// Starts the program without its log, and returns it with the address of the proxy's port.
async fn serve(dir: &tempfile::TempDir) -> (Child, SocketAddr) {
    let mut command = program();
    command.args(["serve", "--config"]);
    command.arg(dir.path().join("config.yaml"));
    command.current_dir(dir.path());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = async {
        loop {
            let line = lines.next_line().await.unwrap();
            let line = line.expect("the program should start");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "ready" {
                return event["listen"].as_str().unwrap().parse().unwrap();
            }
        }
    };
    let listen = soon("the ready event", ready).await;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, listen)
}

fn connector(ca: &[u8], alpn: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}
