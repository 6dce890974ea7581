//! P13: a reader that stops reading the output of the program stops neither its requests nor its
//! end.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Client, Origin, Proto, program, soon};

/// Longest time from SIGTERM to the end of an idle program, with room for a busy machine.
const END: Duration = Duration::from_secs(10);

/// Starts the program with these outputs, fills them, and ends it with SIGTERM.
async fn fill_and_end(stdout: Stdio, stderr: Stdio) {
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    let listen = crate::harness::free_port();
    let config = format!(
        "listen: 127.0.0.1:{listen}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndrain_timeout: 60s\ndata_dir: {}\negress:\n  allow: [\"127.0.0.1\"]\n  resolve: {{ \"plain.test\": \"{}\" }}\n",
        dir.path().join("data").display(),
        origin.plain
    );
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    // The HTTP/2 library alone writes many events for each request.
    command.env("OUTPACE_LOG", "info,h2=trace");
    command.arg("serve").arg("--config").arg(path);
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    drop(command);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], listen));
    let mut client = soon("the listener", async {
        loop {
            if let Some(client) = Client::try_to(address, Proto::Http2).await {
                return client;
            }
        }
    })
    .await;
    for number in 0..400 {
        let request = client.request("GET", "http://plain.test/");
        let request = request.body(http_body_util::Full::default()).unwrap();
        let response = client.send(request).await;
        let response = response.unwrap_or_else(|error| {
            panic!(
                "request {number}: {error:?}; the program: {:?}",
                child.try_wait()
            )
        });
        assert_eq!(response.status(), 200);
    }
    drop(client);
    let pid = child.id().unwrap().to_string();
    let began = Instant::now();
    let mut kill = std::process::Command::new("kill");
    let sent = kill.args(["-s", "TERM", &pid]).status();
    assert!(sent.unwrap().success());
    let ended = soon("the end of the program", child.wait()).await;
    assert_eq!(ended.unwrap().code(), Some(0));
    assert!(began.elapsed() < END, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_full_standard_output_stops_neither_requests_nor_the_end() {
    let (_reader, writer) = std::io::pipe().unwrap();
    fill_and_end(writer.into(), Stdio::null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_full_standard_error_stops_neither_requests_nor_the_end() {
    let (_reader, writer) = std::io::pipe().unwrap();
    fill_and_end(Stdio::null(), writer.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_full_outputs_stop_neither_requests_nor_the_end() {
    let (_reader, writer) = std::io::pipe().unwrap();
    fill_and_end(writer.try_clone().unwrap().into(), writer.into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_closed_outputs_stop_neither_requests_nor_the_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    fill_and_end(writer.try_clone().unwrap().into(), writer.into()).await;
}
