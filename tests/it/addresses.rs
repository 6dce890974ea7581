//! P10 (closed by default): the addresses and ports that requests, tunnels and buffers may reach,
//! and the responses that do not reveal resolved addresses.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::buffers::{SPOOL, call, made};
use crate::harness::{Client, Origin, Program, free_port, raw};

/// Addresses of all special ranges, with the address of the Azure platform and its IPv6 forms.
const SPECIAL: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.7.7",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:168.63.129.16",
    "::ffff:8.8.8.8",
    "64:ff9b::a83f:8110",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2001:0:1::1",
    "2001:db8::1",
    "2002:a83f:8110::1",
    "3fff::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
];

async fn get(program: &Program, uri: &str) -> (u16, String) {
    let mut client = Client::plain(program).await;
    let response = client.get(uri).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    (response.status().as_u16(), text)
}

async fn connect(program: &Program, authority: &str) -> String {
    let answer = Client::connect(program, authority, "").await;
    answer.map_or_else(|refused| refused, |_| "HTTP/1.1 200".to_owned())
}

fn configuration(dir: &Path, listen: &str, more: &str) -> String {
    format!(
        "listen: \"{listen}\"\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n{more}",
        dir.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_special_addresses_are_refused_and_not_revealed() {
    let dir = tempfile::tempdir().unwrap();
    let names = SPECIAL.iter().enumerate();
    let names = names.map(|(number, ip)| format!("\"n{number}.test\": \"{ip}\""));
    let names = names.collect::<Vec<_>>().join(", ");
    let more = format!("egress: {{ resolve: {{ {names} }} }}\n{SPOOL}");
    let config = configuration(dir.path(), "127.0.0.1:0", &more);
    let program = Program::start(dir, &config).await;
    for (number, ip) in SPECIAL.iter().enumerate() {
        let literal = match ip.contains(':') {
            true => format!("[{ip}]"),
            false => (*ip).to_owned(),
        };
        let name = format!("n{number}.test");
        for host in [&literal, &name] {
            let answers = [
                get(&program, &format!("http://{host}/")).await.1,
                connect(&program, &format!("{host}:443")).await,
            ];
            for answer in answers {
                assert!(answer.contains("address-prohibited"), "{host}: {answer}");
                assert!(answer.contains("not public"), "{host}: {answer}");
                // The name tells the client no more than that.
                let hidden = *host != name || !answer.contains(ip);
                assert!(hidden, "{host}: {answer}");
                for class in ["private", "loopback", "link-local", "reserved", "cloud"] {
                    assert!(!answer.contains(class), "{host}: {answer}");
                }
            }
        }
        let buffer = json!({ "name": format!("b{number}"), "url": format!("http://{literal}/") });
        let (status, told) = call(&program, "POST", "/buffers", buffer).await;
        assert_eq!(status, 403, "{literal}: {told}");
    }
    // A delivery does not reveal the address either.
    for ip in ["10.0.0.1", "192.168.7.7", "168.63.129.16"] {
        let number = SPECIAL.iter().position(|known| *known == ip).unwrap();
        let url = format!("http://n{number}.test/");
        let name = format!("d{number}");
        made(&program, &json!({ "name": name, "url": url })).await;
        let path = format!("/buffers/{name}/items");
        let (status, item) = call(&program, "POST", &path, json!({ "body": "x" })).await;
        assert_eq!(status, 201, "{item}");
        let path = format!("/items/{}/attempts", item["id"].as_str().unwrap());
        let told = crate::harness::soon("the attempt", async {
            loop {
                let (_, told) = call(&program, "GET", &path, "").await;
                if told.to_string().contains("not public") {
                    return told.to_string();
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(!told.contains(ip), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_loop_does_not_reveal_the_address_of_the_proxy() {
    let port = free_port();
    for (listen, address) in [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.8.8.8"),
        ("0.0.0.0", "0.0.0.0"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let more = format!(
            "allow_open: true\nconnect_ports: [{port}]\negress: {{ allow: [\"0.0.0.0/0\"], resolve: {{ \"us.test\": \"{address}\" }} }}\n"
        );
        let config = configuration(dir.path(), &format!("{listen}:{port}"), &more);
        std::fs::write(dir.path().join("config.yaml"), &config).unwrap();
        let program = Program::start(dir, &config).await;
        let answers = [
            get(&program, &format!("http://us.test:{port}/")).await,
            (508, connect(&program, &format!("us.test:{port}")).await),
        ];
        for (status, answer) in answers {
            assert_eq!(status, 508, "{listen} {address}: {answer}");
            assert!(answer.contains("loop-detected"), "{answer}");
            assert!(!answer.contains(address), "{answer}");
        }
    }
}

/// Returns the output of a command in the network namespace of the program.
fn inside(program: &Program, command: &[&str]) -> String {
    let mut entered = Command::new("nsenter");
    entered.args([
        "-U",
        "--preserve-credentials",
        "-n",
        "-t",
        &program.pid().to_string(),
    ]);
    let output = entered.args(command).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Returns the program's answer to a request for `url`, from inside its namespace.
fn fetch(program: &Program, url: &str, more: &[&str]) -> String {
    let proxy = format!("http://127.0.0.1:{}", program.listen.port());
    let curl = ["curl", "-sS", "-i", "--max-time", "20", "-x", &proxy, url];
    inside(program, &[&curl[..], more].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_the_machines_own_addresses_are_not_public() {
    let can = Command::new("unshare").args(["-rn", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        println!("skipped: this machine gives no network namespace to tests");
        return;
    }
    // Three addresses that are public elsewhere belong to this namespace. The last one is allowed.
    let script = "ip link set lo up && ip addr add 93.184.216.34/32 dev lo \
         && ip -6 addr add 2606:2800:220:1::1/128 dev lo nodad && ip addr add 93.184.216.99/32 dev lo \
         && exec \"$0\" \"$@\"";
    let dir = tempfile::tempdir().unwrap();
    let more = "allow_open: true\nconnect_ports: [8443]\n\
         egress: { allow: [\"93.184.216.99\"], resolve: { \"own.test\": \"93.184.216.34\" } }\n";
    let config = configuration(dir.path(), "0.0.0.0:8443", more);
    let mut command = tokio::process::Command::new("unshare");
    command.args(["-rn", "sh", "-c", script, env!("CARGO_BIN_EXE_outpace")]);
    let program = Program::start_by(command, dir, &config).await;
    for url in [
        "http://93.184.216.34/",
        "http://own.test/",
        "http://[2606:2800:220:1::1]/",
        "https://93.184.216.34/",
    ] {
        let answer = fetch(&program, url, &["-k"]);
        assert!(
            answer.contains("403") && answer.contains("address-prohibited"),
            "{url}: {answer}"
        );
        assert!(
            url.contains("93.184") || !answer.contains("93.184"),
            "{answer}"
        );
    }
    // The proxy's own port is a loop at every address of the machine.
    for host in [
        "93.184.216.34",
        "93.184.216.99",
        "own.test",
        "[2606:2800:220:1::1]",
    ] {
        let answer = fetch(&program, &format!("http://{host}:8443/"), &[]);
        let refused = if host.starts_with('[') { "403" } else { "508" };
        assert!(answer.contains(refused), "{host}: {answer}");
    }
    // An address that the operator allows is dialled, and nothing listens at it.
    let answer = fetch(&program, "http://93.184.216.99/", &[]);
    assert!(
        answer.contains("502") && answer.contains("origin-refused"),
        "{answer}"
    );
    // Interfaces change while the program runs.
    for (verb, reason) in [("add", "address-prohibited"), ("del", "origin-refused")] {
        let told = inside(
            &program,
            &["ip", "addr", verb, "93.184.216.77/32", "dev", "lo"],
        );
        assert_eq!(told, "");
        let answer = fetch(&program, "http://93.184.216.77/", &[]);
        assert!(answer.contains(reason), "{verb}: {answer}");
    }
}

/// Ports in the URL of a request or buffer, and whether they may be reached with [`PORTS`].
const CASES: &[(u16, bool)] = &[
    (21, false),
    (22, false),
    (25, false),
    (6379, false),
    (8080, false),
    (80, true),
    (443, true),
    (8443, true),
    (9443, true),
    (9080, true),
];

/// Configuration that allows the ports of [`CASES`]: 8443 by a target, 9443 by the list, and 9080 by
/// a route to the same host.
fn ports(route: u16) -> String {
    format!(
        "{SPOOL}connect_ports: [9443]\ntargets:\n  - {{ name: api, hosts: [plain.test, \"other.test:8443\"], limits: [{{ rate: \"1000/1s\" }}] }}\n\
         routes: [{{ listen: \"127.0.0.1:{route}\", to: \"http://plain.test:9080\" }}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_requests_and_buffers_reach_only_listed_ports() {
    let origin = Origin::ok().await;
    let route = free_port();
    let program = Program::before(&origin, &ports(route)).await;
    made(&program, &json!({ "name": "changed" })).await;
    for (port, allowed) in CASES {
        let url = format!("http://plain.test:{port}/");
        let (status, text) = get(&program, &url).await;
        assert_eq!(status, if *allowed { 200 } else { 403 }, "{url}: {text}");
        assert_eq!(text.contains("port-not-allowed"), !allowed, "{text}");
        let explained = program.admin_get(&format!("/v1/explain?url={url}")).await.1;
        assert_eq!(
            explained.contains("its port is not allowed"),
            !allowed,
            "{explained}"
        );
        let name = format!("p{port}");
        let (status, told) = call(
            &program,
            "POST",
            "/buffers",
            json!({ "name": name, "url": url }),
        )
        .await;
        assert_eq!(status, if *allowed { 201 } else { 403 }, "{url}: {told}");
        if !allowed {
            let told = told.to_string();
            assert!(
                told.contains("port-not-allowed") && told.contains("connect_ports"),
                "{told}"
            );
        }
        // A change of the URL is checked, too.
        let change = json!({ "url": url });
        let (status, told) = call(&program, "PATCH", "/buffers/changed", change).await;
        assert_eq!(status, if *allowed { 200 } else { 403 }, "{url}: {told}");
        let declared = format!(
            "{}buffers: [{{ name: d, url: \"{url}\" }}]\n",
            ports(free_port())
        );
        let path = program.path("declared.yaml");
        let text = configuration(program.dir.path(), "127.0.0.1:0", &declared);
        std::fs::write(&path, text).unwrap();
        let checked = crate::harness::program()
            .as_std_mut()
            .arg("check")
            .arg(&path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(
            checked.status.code(),
            Some(if *allowed { 0 } else { 64 }),
            "{told}"
        );
        assert_eq!(
            told.contains(&format!("port {port} is not allowed")),
            !allowed,
            "{told}"
        );
    }
    // A route reaches the port of its origin, whatever a client names.
    let at: SocketAddr = ([127, 0, 0, 1], route).into();
    for target in ["/", "http://plain.test:22/", "http://plain.test:9080/"] {
        let host = target.split('/').nth(2).unwrap_or("plain.test");
        let ask = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(at, &ask).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        assert_eq!(origin.arrivals.last().headers["host"], "plain.test:9080");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_port_that_a_reload_forbids_is_not_reached_by_pushes_and_deliveries() {
    let origin = Origin::ok().await;
    for (allowed, after) in [
        ("connect_ports: [9443]\n", "connect_ports: [9444]\n"),
        (
            "targets:\n  - { name: api, hosts: [\"plain.test:9443\"], limits: [{ rate: \"9/1s\" }] }\n",
            "targets:\n  - { name: api, hosts: [plain.test], limits: [{ rate: \"9/1s\" }] }\n",
        ),
        (
            "routes: [{ host: \"r.test\", to: \"http://plain.test:9443\" }]\n",
            "routes: [{ host: \"r.test\", to: \"http://other.test:9443\" }]\n",
        ),
    ] {
        let program = Program::before(&origin, &format!("{SPOOL}{allowed}")).await;
        let before = origin.arrivals.count();
        made(&program, &json!({ "url": "http://plain.test:9443/x" })).await;
        call(&program, "POST", "/buffers/b/pause", "{}").await;
        let push = json!({ "body": "x" });
        let (status, item) = call(&program, "POST", "/buffers/b/items", push.clone()).await;
        assert_eq!(status, 201, "{item}");
        let config = std::fs::read_to_string(program.config_path()).unwrap();
        let config = config.replace(allowed, after);
        std::fs::write(program.config_path(), config).unwrap();
        program.signal("HUP");
        program
            .event(|event| {
                event["message"]
                    .as_str()
                    .is_some_and(|told| told.starts_with("the configuration was reloaded"))
            })
            .await;
        let (status, told) = call(&program, "POST", "/buffers/b/items", push).await;
        assert_eq!(status, 403, "{told}");
        assert!(told.to_string().contains("port-not-allowed"), "{told}");
        call(&program, "POST", "/buffers/b/resume", "{}").await;
        let path = format!("/items/{}", item["id"].as_str().unwrap());
        let dead = crate::harness::soon("the dead letter", async {
            loop {
                let (_, item) = call(&program, "GET", &path, "").await;
                if item["state"] != "queued" && item["state"] != "in_flight" {
                    return item;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(
            dead.to_string()
                .contains("port 9443 of `plain.test` is not allowed"),
            "{dead}"
        );
        assert_eq!(origin.arrivals.count(), before);
    }
}
