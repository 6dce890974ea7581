//! P10 (closed by default): the addresses, ports, hosts and clients that may pass.

use crate::harness::{Client, Origin, Program, free_port, raw};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    limits: [{ rate: \"1000/1s\" }]\n";

async fn get(program: &Program, uri: &str) -> (u16, String) {
    let mut client = Client::plain(program).await;
    let response = client.get(uri).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    (response.status().as_u16(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_address_that_is_not_public_is_dialled() {
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    // A static entry of `egress.resolve` does not bypass the rule.
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n\
         egress: {{ resolve: {{ \"inside.test\": \"{}\", \"metadata.test\": \"169.254.169.254\" }} }}\n",
        dir.path().display(),
        origin.plain,
    );
    let program = Program::start(dir, &config).await;
    for host in [
        "127.0.0.1",
        "inside.test",
        "metadata.test",
        "localhost",
        "10.0.0.1",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "2130706433",
        "100.64.0.1",
    ] {
        let (status, text) = get(&program, &format!("http://{host}/")).await;
        assert_eq!(status, 403, "{host}: {text}");
        assert!(
            text.contains("address-prohibited")
                && text.contains("NO_PROXY")
                && text.contains("egress.allow"),
            "{text}"
        );
        let host = host
            .rsplit_once(':')
            .filter(|_| !host.starts_with('['))
            .map_or(host, |(host, _)| host);
        let refused = Client::connect(&program, &format!("{host}:443"), "")
            .await
            .unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 403"), "{host}: {refused}");
    }
    assert_eq!(origin.arrivals.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_connect_only_to_listed_ports() {
    let origin = Origin::ok().await;
    let more =
        TARGET.replace("plain.test]", "plain.test, \"api.test:8443\"]") + "connect_ports: [9443]\n";
    let program = Program::before(&origin, &more).await;
    for (port, status) in [
        (22, "403"),
        (25, "403"),
        (80, "403"),
        (443, "200"),
        (8443, "200"),
        (9443, "200"),
    ] {
        let answer = Client::connect(&program, &format!("api.test:{port}"), "").await;
        let answer = answer.map_or_else(|refused| refused, |_| "HTTP/1.1 200".to_owned());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{port}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unmatched_hosts_pass_unpaced_or_are_refused() {
    let origin = Origin::ok().await;
    let paced =
        "targets:\n  - name: api\n    hosts: [api.test]\n    limits: [{ rate: \"1/1h\" }]\n";
    let program = Program::before(&origin, paced).await;
    for _ in 0..5 {
        assert_eq!(get(&program, "http://plain.test/").await.0, 200);
    }
    let tunnel = Client::connect(&program, "tunnel.test:443", "")
        .await
        .unwrap();
    let mut client = Client::tls(
        tunnel,
        "tunnel.test",
        crate::harness::Proto::Http1,
        &origin.ca,
    )
    .await
    .unwrap();
    tokio::io::AsyncWriteExt::write_all(
        &mut client,
        b"GET / HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answer)
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let program = Program::before(&origin, &format!("unmatched: refuse\n{paced}")).await;
    let (status, text) = get(&program, "http://plain.test/").await;
    assert_eq!(status, 403);
    assert!(text.contains("host-not-allowed"));
    assert!(
        Client::connect(&program, "tunnel.test:443", "")
            .await
            .unwrap_err()
            .contains("host-not-allowed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_clients_are_known_others_are_not_served() {
    let origin = Origin::ok().await;
    let port = free_port();
    let more = format!(
        "{TARGET}clients: [{{ name: app, token: s3cret-s3cret-s3cret }}]\nroutes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n"
    );
    let program = Program::before(&origin, &more).await;
    let ask = |fields: &str| {
        format!(
            "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n{fields}Connection: close\r\n\r\n"
        )
    };
    let refused = raw(program.listen, &ask("")).await;
    assert!(
        refused.starts_with("HTTP/1.1 407") && refused.contains("proxy-authenticate: Basic"),
        "{refused}"
    );
    let wrong = raw(
        program.listen,
        &ask("Proxy-Authorization: Basic YXBwOndyb25n\r\n"),
    )
    .await;
    assert!(wrong.starts_with("HTTP/1.1 407"), "{wrong}");
    // The credentials are `app:s3cret-s3cret-s3cret` in Base64.
    let right = raw(
        program.listen,
        &ask("Proxy-Authorization: Basic YXBwOnMzY3JldC1zM2NyZXQtczNjcmV0\r\n"),
    )
    .await;
    assert!(right.starts_with("HTTP/1.1 200"), "{right}");
    assert!(
        !origin
            .arrivals
            .last()
            .headers
            .contains_key("proxy-authorization")
    );
    let record = program.record(|r| r["status"] == 200).await;
    assert_eq!(record["client_name"], "app");

    let routed = |fields: &str| {
        format!("GET /r HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n")
    };
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    assert!(raw(address, &routed("")).await.starts_with("HTTP/1.1 401"));
    assert!(
        raw(
            address,
            &routed("Outpace-Client-Token: app:s3cret-s3cret-s3cret\r\n")
        )
        .await
        .starts_with("HTTP/1.1 200")
    );
    assert!(
        !origin
            .arrivals
            .last()
            .headers
            .contains_key("outpace-client-token")
    );

    assert!(
        Client::connect(&program, "api.test:443", "")
            .await
            .unwrap_err()
            .starts_with("HTTP/1.1 407")
    );
    let inside = Client::connect(
        &program,
        "api.test:443",
        "Proxy-Authorization: Basic YXBwOnMzY3JldC1zM2NyZXQtczNjcmV0\r\n",
    )
    .await;
    assert!(inside.is_ok());
    let everything = format!("{:?}{:?}", program.records(), program.events());
    assert!(
        !everything.contains("s3cret") && !everything.contains("YXBw"),
        "the output contains a secret"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_credentials_we_set_are_not_for_pages_of_other_sites() {
    let origin = Origin::ok().await;
    let more = TARGET.to_owned()
        + "    set_headers: { authorization: \"Bearer injected\" }\n    set_headers_over_http: true\n";
    let program = Program::before(&origin, &more).await;
    let ask = |fields: &str| {
        format!(
            "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nAuthorization: Bearer mine\r\nConnection: authorization, close\r\n{fields}\r\n"
        )
    };
    assert!(
        raw(program.listen, &ask(""))
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert_eq!(
        origin.arrivals.last().headers["authorization"],
        "Bearer injected"
    );
    for fields in [
        "Sec-Fetch-Site: cross-site\r\n",
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
    ] {
        let refused = raw(program.listen, &ask(fields)).await;
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("cross-site"),
            "{refused}"
        );
    }
    assert!(
        raw(
            program.listen,
            &ask("Sec-Fetch-Site: same-origin\r\nOrigin: https://evil.example\r\n")
        )
        .await
        .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn loops_are_refused() {
    let origin = Origin::ok().await;
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n\
         egress: {{ allow: [\"127.0.0.1\"], resolve: {{ \"us.test\": \"127.0.0.1:{port}\" }} }}\n",
        dir.path().display()
    );
    let us = Program::start(dir, &config).await;
    let (status, text) = get(&us, "http://us.test/").await;
    assert_eq!(status, 508);
    assert!(text.contains("loop-detected"));
    // Two proxies are each other's parent, so the request returns with this proxy's name in `Via`.
    let parent = format!("  upstream_proxy: \"http://127.0.0.1:{port}\"");
    let other = Program::with_egress(&origin, "", &parent).await;
    drop(us);
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n\
         egress: {{ upstream_proxy: \"http://{}\" }}\n",
        dir.path().display(),
        other.listen
    );
    let us = Program::start(dir, &config).await;
    let (status, text) = get(&us, "http://somewhere.example/").await;
    assert_eq!(status, 508, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_proxy_carries_plain_requests_and_tunnels() {
    let origin = Origin::ok().await;
    let clients = "clients: [{ name: child, token: \"p@ss-p@ss-p@ss-p@ss\" }]\n";
    let parent = Program::before(&origin, clients).await;
    let egress = format!(
        "  upstream_proxy: \"http://child:p%40ss-p%40ss-p%40ss-p%40ss@{}\"",
        parent.listen
    );
    let child = Program::with_egress(&origin, TARGET, &egress).await;
    assert_eq!(get(&child, "http://plain.test/a").await.0, 200);
    let mut client = Client::intercepted(&child, "api.test", crate::harness::Proto::Http1).await;
    assert_eq!(client.get("/b").await.status(), 200);
    let uris: Vec<_> = origin
        .arrivals
        .all()
        .iter()
        .map(|a| a.uri.clone())
        .collect();
    assert!(
        uris.len() == 2 && uris[0] == "/a" && uris[1].ends_with("/b"),
        "{uris:?}"
    );
    parent
        .record(|r| r["ingress"] == "plain" && r["client_name"] == "child")
        .await;
}
