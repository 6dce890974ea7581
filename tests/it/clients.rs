//! Real clients, set up with nothing but the variables that `outpace env` prints, against a TLS origin
//! that counts its limit exactly and refuses what is beyond.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::harness::{Origin, Program, program, reply, soon};

const TARGET: &str =
    "targets:\n  - name: api\n    hosts: [api.test]\n    limits: [{ rate: \"10/1s\" }]\n";

/// Allows 10 in any second; counts violations.
async fn limited() -> (Origin, Arc<Mutex<usize>>) {
    let violations = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&violations);
    let log = Mutex::new(VecDeque::new());
    let origin = Origin::with(move |_, _| {
        let mut log = log.lock().unwrap();
        let now = Instant::now();
        while log
            .front()
            .is_some_and(|at| now - *at >= Duration::from_secs(1))
        {
            log.pop_front();
        }
        let status = if log.len() < 10 { 200 } else { 429 };
        if status == 200 {
            log.push_back(now);
        } else {
            *counted.lock().unwrap() += 1;
        }
        drop(log);
        async move { reply(status, "served") }
    })
    .start()
    .await;
    (origin, violations)
}

/// Runs a command as an app would be run: `eval "$(outpace env)"`, then the command.
async fn run(proxy: &Program, command: &str) -> String {
    // The program listens on a port of its own choice; `env` is told by a configuration that names it.
    let config = std::fs::read_to_string(proxy.config_path()).unwrap();
    let named = proxy.path("named.yaml");
    let listen = format!("listen: {}\n", proxy.listen);
    std::fs::write(&named, config.replacen("listen: 127.0.0.1:0\n", &listen, 1)).unwrap();
    let env = program()
        .args(["env", "--config"])
        .arg(&named)
        .output()
        .await
        .unwrap();
    let env = String::from_utf8(env.stdout).unwrap();
    let mut shell = Command::new("sh");
    shell
        .arg("-euc")
        .arg(format!("{env}\n{command}"))
        .env_remove("NODE_EXTRA_CA_CERTS");
    let output = shell.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = soon("the command", output).await.unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command}\n{out}\n{err}");
    out.into_owned()
}

async fn check(command: &str, expected: &str) {
    let (origin, violations) = limited().await;
    let proxy = Program::before(&origin, TARGET).await;
    let out = run(&proxy, command).await;
    assert_eq!(out.trim(), expected);
    assert_eq!(
        *violations.lock().unwrap(),
        0,
        "the origin refused requests"
    );
    assert_eq!(origin.arrivals.count(), 30);
    let intercepted = || {
        proxy
            .records()
            .iter()
            .filter(|r| r["way"] == "intercept" && r["status"] == 200)
            .count()
    };
    soon("all records", async {
        while intercepted() < 30 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn python() -> String {
    std::env::var("OUTPACE_TEST_PYTHON").unwrap_or_else(|_| {
        let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python");
        if std::path::Path::new(venv).exists() {
            venv.into()
        } else {
            "python3".into()
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_with_http_1_and_http_2() {
    for version in ["--http1.1", "--http2"] {
        let command = format!(
            "seq 30 | xargs -P 10 -I{{}} curl -sS {version} -o /dev/null -w '%{{http_code}}\\n' https://api.test/{{}} | sort | uniq -c | tr -s ' '"
        );
        check(&command, "30 200").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_requests() {
    let script = "import requests, concurrent.futures as f\n\
                  s = requests.Session()\n\
                  with f.ThreadPoolExecutor(10) as pool:\n    \
                  codes = list(pool.map(lambda n: s.get(f'https://api.test/{n}').status_code, range(30)))\n\
                  print(codes.count(200))\n";
    check(&format!("{} -c \"{script}\"", python()), "30").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_httpx_with_http_2() {
    let script = "import asyncio, httpx\n\
                  async def main():\n    \
                  async with httpx.AsyncClient(http2=True, timeout=30) as c:\n        \
                  r = await asyncio.gather(*(c.get(f'https://api.test/{n}') for n in range(30)))\n        \
                  print(sum(x.status_code == 200 for x in r), r[0].http_version)\n\
                  asyncio.run(main())\n";
    check(&format!("{} -c \"{script}\"", python()), "30 HTTP/2").await;
}
