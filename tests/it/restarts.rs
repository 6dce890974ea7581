//! P1: the ledger in memory keeps its schedules over a restart, after a clean end and after kill -9,
//! and two processes do not use one data directory.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{
    Client, Origin, Postgres, Program, Proto, faketime, refused_start, soon, worst_window,
};
use crate::run::{ended, outpace, place};

fn target(limits: &str, more: &str) -> String {
    format!(
        "targets:\n  - {{ name: api, hosts: [plain.test, api.test], limits: [{limits}]{more} }}\n"
    )
}

/// Sends requests on `clients` connections, one after another, until the program ends.
fn storm(program: &Program, clients: usize) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let address = program.listen;
        tasks.spawn(async move {
            let proto = [Proto::Http1, Proto::Http2][number % 2];
            let Some(mut client) = Client::try_to(address, proto).await else {
                return;
            };
            while client.try_get("http://plain.test/").await.is_some() {}
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_holds_over_kill_9_at_the_start_of_a_burst_within_it_and_after_it() {
    for (limit, most) in [
        ("{ rate: \"30/2s\", algorithm: sliding_window }", 30),
        ("{ rate: \"30/2s\", burst: 30 }", 60),
        ("{ rate: \"30/2s\" }", 30),
    ] {
        for killed_at in [1, 15, 30] {
            let origin = Origin::ok().await;
            let mut program = Program::before(&origin, &target(limit, "")).await;
            for _ in 0..2 {
                let before = origin.arrivals.count();
                let clients = storm(&program, 8);
                origin.arrivals.reached(before + killed_at).await;
                program = program.again().await;
                soon("the end of the clients", clients.join_all()).await;
            }
            let _clients = storm(&program, 8);
            origin.arrivals.reached(100).await;
            // On a busy machine a request reaches the origin some time after it has left. A restart
            // that forgot what was used would send twice as many at once.
            let worst = worst_window(&origin.arrivals.times(), Duration::from_millis(1900));
            println!("{limit}, killed twice after {killed_at}: at most {worst} in 1.9 s");
            assert!(worst <= most, "{limit} {killed_at}: {worst}");
        }
    }
}

/// Sends requests until one is refused, and returns the number of those that left.
async fn used_up(program: &Program) -> usize {
    let mut client = Client::plain(program).await;
    let mut left = 0;
    while client.get("http://plain.test/").await.status() == 200 {
        left += 1;
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_used_limit_stays_used_whatever_ended_the_process_and_the_clock_says() {
    let library = faketime();
    let shifted = |shift: &'static str| {
        [
            ("LD_PRELOAD", library.clone()),
            ("FAKETIME", shift.to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    };
    let origin = Origin::ok().await;
    for limit in [
        "{ rate: \"5/30d\", algorithm: sliding_window }",
        "{ rate: \"5/30d\", burst: 5 }",
        "{ rate: \"5/30d\", burst: 5, key: client_ip }",
        "{ rate: \"5/30d\", burst: 5, key: \"header:host\" , max_keys: 1 }",
    ] {
        let limit = limit.replace("key: \"header:host\" ", "key: host");
        let mut program = Program::before(&origin, &target(&limit, ", max_wait: 0s")).await;
        let left = used_up(&program).await;
        assert!((1..=5).contains(&left), "{limit} {left}");
        for shift in ["+0", "-36h", "+60d", "+1h"] {
            let variables = shifted(shift);
            let variables: Vec<(&str, &str)> = variables
                .iter()
                .map(|(name, value)| (*name, &**value))
                .collect();
            program = program.again_with_env(&variables).await;
            assert_eq!(used_up(&program).await, 0, "{limit} {shift}");
        }
        // A clean end keeps the same.
        program.signal("TERM");
        assert_eq!(program.exit_code().await, Some(0));
        let config = std::fs::read_to_string(program.config_path()).unwrap();
        let program = Program::start(program.dir, &config).await;
        assert_eq!(used_up(&program).await, 0, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_damaged_file_counts_as_used_up_and_a_torn_line_does_not() {
    let origin = Origin::ok().await;
    let text = target("{ rate: \"5/30d\", burst: 5, key: path }", ", max_wait: 0s");
    let program = Program::before(&origin, &text).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/a").await.status(), 200);
    let path = program.path("data/schedules");
    let sound = std::fs::read(&path).unwrap();
    let torn = [&sound[..], b"0badc0de {\"booked\""].concat();
    std::fs::write(&path, torn).unwrap();
    let mut program = program.again().await;
    // A slot that is used too late counts as well, so the numbers are not exact on a busy machine.
    for (path, most) in [("a", 4), ("b", 5)] {
        let mut client = Client::plain(&program).await;
        let mut left = 0;
        while client
            .get(&format!("http://plain.test/{path}"))
            .await
            .status()
            == 200
        {
            left += 1;
        }
        assert!((1..=most).contains(&left), "{path} {left}");
    }
    for damaged in [&b"nothing\n"[..], &sound[10..], &[0; 4096]] {
        let mut bytes = damaged.to_vec();
        bytes.extend(&sound);
        std::fs::write(&path, &bytes).unwrap();
        for _ in 0..2 {
            program = program.again().await;
            let mut client = Client::plain(&program).await;
            // Also a key that the file does not have.
            for path in ["a", "c"] {
                let response = client.get(&format!("http://plain.test/{path}")).await;
                assert_eq!(response.status(), 429);
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
    let program = program.again().await;
    assert!((1..=5).contains(&used_up(&program).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_signals_a_block_outlasts_the_process() {
    let origin = Origin::with(|_, _| async {
        let mut response = crate::harness::reply(429, "");
        response
            .headers_mut()
            .insert("retry-after", "600".parse().unwrap());
        response
    })
    .start()
    .await;
    let text = target(
        "{ rate: \"100/1s\" }",
        ", max_wait: 0s, retry: { attempts: 1 }",
    );
    let program = Program::before(&origin, &text).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 429);
    assert_eq!(origin.arrivals.count(), 1);
    let program = program.again().await;
    let mut client = Client::plain(&program).await;
    let response = client.get("http://plain.test/").await;
    assert_eq!(response.status(), 429);
    assert_eq!(origin.arrivals.count(), 1, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_successive_commands_share_a_limit() {
    let origin = Origin::ok().await;
    let limit = target("{ rate: \"3/20s\", burst: 3 }", ", max_wait: 0s");
    let dir = place(&origin, &limit);
    let began = std::time::Instant::now();
    let mut codes = Vec::new();
    for _ in 0..6 {
        let script = "curl -sS -o /dev/null -w '%{http_code}' https://api.test/";
        let (code, out, err) =
            ended(outpace(dir.path()).args(["run", "--", "sh", "-c", script])).await;
        assert_eq!(code, Some(0), "{err}");
        codes.push(out);
    }
    let refills = began.elapsed().as_secs_f64() * 3.0 / 20.0;
    let (left, most) = (origin.arrivals.count(), 3 + refills as usize);
    println!("six commands in {:?}: {codes:?}", began.elapsed());
    assert!(
        (3..=most).contains(&left),
        "{left} of at most {most}: {codes:?}"
    );
}

fn serving(dir: &Path) -> Value {
    let text = std::fs::read_to_string(dir.join("serving.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_a_data_directory_is_refused_and_the_first_stays() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let ledger = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n",
        postgres.url()
    );
    for (more, is_shared) in [
        (String::new(), false),
        ("spool: {}\n".to_owned(), false),
        (format!("{ledger}spool: {{}}\n"), false),
        (ledger.clone(), true),
        (format!("{ledger}spool: {{ store: postgres }}\n"), true),
    ] {
        let program = Program::before(&origin, &more).await;
        let data = program.path("data");
        let first = serving(&data);
        let other = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(program.config_path()).unwrap();
        if is_shared {
            let second = Program::start(other, &text).await;
            assert_ne!(second.listen, program.listen);
            continue;
        }
        // The directory may be named by another path.
        let link = other.path().join("link");
        std::os::unix::fs::symlink(program.dir.path(), &link).unwrap();
        let here = program.dir.path().display().to_string();
        let dotted = text.replace(&format!("{here}/data"), &format!("{here}/./data"));
        for text in [&text, &dotted] {
            let path = other.path().join("config.yaml");
            std::fs::write(&path, text).unwrap();
            let (code, told) = refused_start(&path).await;
            assert_eq!(code, Some(73), "{told}");
            let pid = format!("(process {})", program.pid());
            assert!(told.contains(&pid) && told.contains("`data_dir`"), "{told}");
        }
        assert_eq!(serving(&data), first);
        let mut client = Client::plain(&program).await;
        client.get("http://plain.test/").await;
        // A killed process leaves no lock.
        program.again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_joins_a_proxy_of_its_directory_and_another_file_is_refused_at_once() {
    let origin = Origin::ok().await;
    let limit = target("{ rate: \"100/1s\" }", "");
    let dir = place(&origin, &limit);
    let mut serve = outpace(dir.path());
    let mut serve = serve.args(["serve", "-c", "outpace.yaml"]);
    serve = serve.stdout(Stdio::null()).stderr(Stdio::null());
    let mut serve = serve.spawn().unwrap();
    let data = dir.path().join("data");
    soon("the proxy", async {
        while !data.join("serving.json").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let script = "curl -sS -o /dev/null -w '%{http_code}' https://api.test/";
    let (code, out, err) = ended(outpace(dir.path()).args(["run", "--", "sh", "-c", script])).await;
    assert_eq!((code, &*out), (Some(0), "200"), "{err}");
    assert_eq!(serving(&data)["pid"], serve.id().unwrap());
    let text = std::fs::read_to_string(dir.path().join("outpace.yaml")).unwrap();
    std::fs::write(dir.path().join("other.yaml"), text).unwrap();
    let began = std::time::Instant::now();
    let other = ["run", "-c", "other.yaml", "--", "sh", "-c", script];
    let (code, _, err) = ended(outpace(dir.path()).args(other)).await;
    println!("refused after {:?}", began.elapsed());
    assert_eq!(code, Some(73), "{err}");
    assert!(
        err.contains(&format!("(process {})", serve.id().unwrap())),
        "{err}"
    );
    serve.kill().await.unwrap();
    let (code, out, err) = ended(outpace(dir.path()).args(other)).await;
    assert_eq!((code, &*out), (Some(0), "200"), "{err}");
}
