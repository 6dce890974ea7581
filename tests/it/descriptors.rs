//! P13 and P14: connections that send nothing useful, or that one address opens in great numbers,
//! keep no other client and no operator out.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, free_port, raw, soon};
use crate::operators::own_address;

const TOKEN: &str = "operate-operate-operate";
/// Field with the credentials `app:client-client-client`, in Base64.
const BASIC: &str = "Proxy-Authorization: Basic YXBwOmNsaWVudC1jbGllbnQtY2xpZW50\r\n";
/// Time for a response, which is below the time after which silent connections are closed.
const PROMPT: Duration = Duration::from_secs(8);

/// Program with its three listeners, as a client dials them.
struct Listeners {
    program: Program,
    proxy: SocketAddr,
    route: SocketAddr,
    admin: SocketAddr,
}

impl Listeners {
    /// Starts the program with at most `files` open files, with listeners at this address.
    async fn start(origin: &Origin, listen: &str, files: u32) -> Self {
        let (proxy, route, admin) = (free_port(), free_port(), free_port());
        let more = format!(
            "targets: [{{ name: api, hosts: [plain.test, \"*.wild.test\"], limits: [{{ rate: \"100000/1s\" }}] }}]\n\
             clients: [{{ name: app, token: client-client-client }}]\n\
             routes: [{{ listen: \"{listen}:{route}\", to: \"http://plain.test\" }}]\n"
        );
        let program = Program::before(origin, &more).await;
        let config = std::fs::read_to_string(program.config_path()).unwrap();
        let config = config
            .replace("listen: 127.0.0.1:0\n", &format!("listen: {listen}:{proxy}\n"))
            .replace(
                "admin: { listen: \"127.0.0.1:0\" }",
                &format!(
                    "admin: {{ listen: \"{listen}:{admin}\", token: {TOKEN}, tokens: [{{ role: metrics, token: metrics-metrics-metrics }}] }}"
                ),
            );
        std::fs::write(program.config_path(), config).unwrap();
        let program = program.again_with_open_files(files).await;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            program,
            proxy: at(proxy),
            route: at(route),
            admin: at(admin),
        }
    }

    /// Returns each listener with its name and an accepted request.
    fn all(&self) -> [(&'static str, SocketAddr, String); 3] {
        let get = |uri: &str, field: &str| {
            format!("GET {uri} HTTP/1.1\r\nHost: localhost\r\n{field}\r\n")
        };
        let route = "Outpace-Client-Token: app:client-client-client\r\n";
        let operate = format!("Authorization: Bearer {TOKEN}\r\n");
        [
            ("proxy", self.proxy, get("http://plain.test/", BASIC)),
            ("route", self.route, get("/", route)),
            ("admin", self.admin, get("/v1/status", &operate)),
        ]
    }

    /// Expects that all listeners answer at once, and that a probe is answered.
    async fn assert_served(&self, what: &str) {
        for (name, address, request) in self.all() {
            let answered = tokio::time::timeout(PROMPT, held(address, &request)).await;
            let answered = answered.unwrap_or_else(|_| panic!("{what}: no response of {name}"));
            assert!(answered.is_some(), "{what}: {name} closed the connection");
        }
        let probe = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let probe = tokio::time::timeout(PROMPT, raw(self.admin, probe)).await;
        assert!(probe.unwrap().starts_with("HTTP/1.1 200"), "{what}");
    }

    async fn metric(&self, series: &str) -> f64 {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        );
        let text = soon("the metrics", raw(self.admin, &request)).await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    async fn refused(&self, listener: &str, cause: &str) -> f64 {
        let series = format!(
            "outpace_connections_refused_total{{listener=\"{listener}\",cause=\"{cause}\"}}"
        );
        self.metric(&series).await
    }
}

/// Sends a request and returns its open connection, or `None` if it was closed without a response.
async fn held(address: SocketAddr, request: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => read.extend_from_slice(&buffer[..count]),
        }
    }
    assert!(
        read.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&read)
    );
    Some(stream)
}

/// Opens connections that begin with `first` and send no complete request.
async fn open(address: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        let mut stream = soon("a connection", TcpStream::connect(address))
            .await
            .unwrap();
        let _closed = stream.write_all(first).await;
        open.push(stream);
    }
    open
}

/// Beginnings of connections without a complete request.
const BEGINNINGS: [(&str, &[u8]); 5] = [
    ("silent", b""),
    ("one byte", b"G"),
    ("half a head", b"GET / HTTP/1.1\r\nHost: "),
    ("half a preface", b"PRI * HTTP/2.0\r\n"),
    (
        "HTTP/2 without a request",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ),
];

/// Reaches the bound `CONNECTIONS` on proxy, route.
/// Reaches the bound `ADMIN_CONNECTIONS` on admin.
#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_silent_sockets_keep_no_client_and_no_probe_out() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let origin = Origin::ok().await;
    for (what, first) in BEGINNINGS {
        let listeners = Listeners::start(&origin, "127.0.0.1", 1024).await;
        for (name, address, _) in listeners.all() {
            let silent = open(address, 1200, first).await;
            listeners.assert_served(&format!("{what} at {name}")).await;
            // Without TLS the admin port has no HTTP/2, and closes such a connection at once.
            if name != "admin" || !first.starts_with(b"PRI") {
                let closed = listeners.refused(name, "full").await;
                assert!(closed > 700.0, "{what}: {name}: {closed}");
            }
            drop(silent);
        }
        let events = listeners.program.events();
        let is = |text: &'static str| {
            move |event: &&serde_json::Value| {
                event["message"]
                    .as_str()
                    .is_some_and(|told| told.contains(text))
            }
        };
        assert_eq!(events.iter().filter(is("accepting")).count(), 0, "{what}");
        let closed = events.iter().filter(is("because of a bound")).count();
        assert!((1..=40).contains(&closed), "{what}: {closed} warnings");
    }
}

/// Refused requests on open connections, which are no reason to keep the connections.
#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_clients_without_credentials_keep_no_client_out() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let origin = Origin::ok().await;
    let listeners = Listeners::start(&origin, "127.0.0.1", 1024).await;
    for (name, address, request) in listeners.all() {
        let wrong = request
            .replace("client-client-client", "guess")
            .replace(TOKEN, "guess");
        let wrong = wrong.replace("YXBwOmNsaWVudC1jbGllbnQtY2xpZW50", "YXBwOmd1ZXNz");
        let silent = open(address, 1200, wrong.as_bytes()).await;
        listeners.assert_served(name).await;
        assert!(listeners.refused(name, "full").await > 700.0, "{name}");
        drop(silent);
    }
}

/// Reaches the bound `ADDRESS_SHARE` on proxy, route, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_one_address_beyond_loopback_holds_half_of_the_connections() {
    let Some(own) = own_address() else {
        println!("NOT RUN: this machine has no address beyond loopback");
        return;
    };
    let origin = Origin::ok().await;
    let listeners = Listeners::start(&origin, "0.0.0.0", 300).await;
    assert!((listeners.metric("outpace_connections_max").await - 103.0).abs() < 0.1);
    let mut open = Vec::new();
    // The proxy's port and the route share their connections.
    for (name, address, request) in listeners.all() {
        let share = match name {
            "proxy" => 51,
            "route" => 0,
            _ => 9,
        };
        let dialled = SocketAddr::new(own, address.port());
        for number in 0..share {
            let answered = held(dialled, &request).await;
            open.push(answered.unwrap_or_else(|| panic!("{name}: {number} of {share}")));
        }
        for _ in 0..3 {
            assert!(held(dialled, &request).await.is_none(), "{name}");
        }
        listeners.assert_served(name).await;
        assert!(
            (listeners.refused(name, "share").await - 3.0).abs() < 0.1,
            "{name}"
        );
    }
    drop(open);
    soon("the end of the connections", async {
        while listeners.metric("outpace_connections").await > 0.0 {}
    })
    .await;
    for (name, address, request) in listeners.all() {
        let dialled = SocketAddr::new(own, address.port());
        assert!(held(dialled, &request).await.is_some(), "{name}");
    }
}

/// Reaches the bound `ADDRESS_ACCEPTS`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_one_address_beyond_loopback_opens_connections_at_a_bounded_rate() {
    let Some(own) = own_address() else {
        println!("NOT RUN: this machine has no address beyond loopback");
        return;
    };
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let origin = Origin::ok().await;
    let listeners = Listeners::start(&origin, "0.0.0.0", 20_000).await;
    for (name, address, _) in listeners.all() {
        // The connections wait in the backlog and are accepted together.
        listeners.program.signal("STOP");
        let elsewhere = open(SocketAddr::new(own, address.port()), 2500, b"").await;
        let near = open(address, 1100, b"").await;
        listeners.program.signal("CONT");
        soon("refused connections", async {
            while listeners.refused(name, "rate").await < 1.0 {}
        })
        .await;
        listeners.assert_served(name).await;
        let refused = listeners.refused(name, "rate").await;
        // The route shares the count of the proxy's port, which was used just before.
        let most = if name == "route" { 2500.0 } else { 1500.0 };
        assert!(refused < most + 1.0, "{name}: {refused}");
        drop((elsewhere, near));
    }
}

/// Opens a CONNECT to a host, and returns the head of its response with the time it took.
async fn connect(address: SocketAddr, host: &str) -> String {
    let request = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n{BASIC}\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = soon("a response", stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "{host}: closed");
        read.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_connects_to_ever_new_hosts_create_a_bounded_number_of_certificates() {
    let Some(own) = own_address() else {
        println!("NOT RUN: this machine has no address beyond loopback");
        return;
    };
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let origin = Origin::ok().await;
    let listeners = Listeners::start(&origin, "0.0.0.0", 20_000).await;
    let address = SocketAddr::new(own, listeners.proxy.port());
    let cached = connect(address, "known.wild.test").await;
    assert!(cached.starts_with("HTTP/1.1 200"), "{cached}");
    let began = std::time::Instant::now();
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..900 {
        let host = format!("h{number}.wild.test");
        asked.spawn(async move { connect(address, &host).await });
    }
    let answers = asked.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let opened = answers
        .iter()
        .filter(|told| told.starts_with("HTTP/1.1 200"));
    let refused: Vec<_> = answers
        .iter()
        .filter(|told| told.starts_with("HTTP/1.1 429"))
        .collect();
    println!("{} refused in {seconds:.1} s", refused.len());
    assert_eq!(opened.count() + refused.len(), 900);
    assert!(!refused.is_empty());
    for told in &refused {
        let told = told.to_lowercase();
        assert!(
            told.contains("retry-after: ") && told.contains("too-many-hosts"),
            "{told}"
        );
    }
    let created = listeners.metric("outpace_leaves_minted_total").await;
    assert!(
        created <= 502.0 + seconds * 50.0,
        "{created} in {seconds} s"
    );
    let cached = connect(address, "known.wild.test").await;
    assert!(cached.starts_with("HTTP/1.1 200"), "{cached}");
    let near = connect(listeners.proxy, "near.wild.test").await;
    assert!(near.starts_with("HTTP/1.1 200"), "{near}");
    let is_refused = |line: &serde_json::Value| line["reason"] == "too-many-hosts";
    let record = listeners.program.record(is_refused).await;
    assert_eq!(record["client_name"], "app", "{record}");
}

/// Requests to more origins than there are descriptors, each of which leaves an idle connection.
#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_idle_connections_to_many_origins_leave_descriptors() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, "").await;
    let hosts = (0..400).map(|number| format!("\"h{number}.many.test\": \"{}\"", origin.plain));
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let config = config.replace("resolve: { ", &format!("resolve: {{ {hosts}, "));
    std::fs::write(program.config_path(), config).unwrap();
    let program = program.again_with_open_files(300).await;
    let mut client = Client::plain(&program).await;
    for number in 0..400 {
        let uri = format!("http://h{number}.many.test/");
        let response = client.get(&uri).await;
        assert_eq!(response.status(), 200, "{uri}: {:?}", response.body());
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.pid()))
        .unwrap()
        .count();
    println!("{files} open files");
    assert!(files < 200, "{files} open files");
    assert_eq!(program.admin_get("/healthz").await.0, 200);
}
