//! Tests with real clients against a TLS origin that counts its limit exactly and refuses any
//! excess.
//!
//! A client runs under `outpace run`, or uses a route if it cannot trust the CA or obey proxy
//! variables. It makes twelve requests under a limit of ten per second, and then two under a limit
//! of one per second. The second of those gets a 429 from outpace, which the client's own logic
//! must handle correctly. The table in `docs/clients.md` is generated from this file.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{Origin, free_port, program, reply, soon};

/// Ingress mode through which a client reaches outpace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// `outpace run` sets the proxy variables, and the client's TLS is intercepted.
    Run,
    /// A route of outpace, to which the client's base URL points.
    Route,
}

/// Reaction of a client to a 429 that outpace made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Waits and sends the request again until it succeeds.
    Retries,
    /// Reports the error to its caller, with the time to wait if the client exposes it.
    Tells,
}

struct Client {
    name: &'static str,
    by: By,
    /// Time after which the client stops to wait for a response by default.
    timeout: &'static str,
    /// Setting that makes the client trust the CA of outpace, as Markdown text.
    trust: &'static str,
    then: Then,
    note: &'static str,
    /// Programs that the client needs: names on `PATH`, `$PYTHON` or `$NODE24`.
    needs: &'static [&'static str],
    /// Shell command that runs the client. `{clients}` stands for the directory of the scripts.
    command: &'static str,
}

macro_rules! clients {
    ($($id:ident: $name:literal, $by:ident, $timeout:literal, $trust:literal, $then:ident, $note:literal, $needs:expr, $command:literal;)*) => {
        const CLIENTS: &[Client] = &[$(Client {
            name: $name,
            by: By::$by,
            timeout: $timeout,
            trust: $trust,
            then: Then::$then,
            note: $note,
            needs: &$needs,
            command: $command,
        }),*];
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $id() {
                try_client($name).await;
            }
        )*
    };
}

clients! {
    curl: "curl", Run, "none", "`CURL_CA_BUNDLE`", Retries, "with `--retry`", ["curl"], "sh -eu {clients}/curl.sh";
    wget: "wget", Run, "15 min", "`WGETRC`, which names a file with `ca_certificate`", Retries, "with `--retry-on-http-error=429`; it does not read `Retry-After`", ["wget"], "sh -eu {clients}/wget.sh";
    git: "git", Run, "none", "`GIT_SSL_CAINFO`", Tells, "", ["git"], "sh -eu {clients}/git.sh";
    python_requests: "Python requests", Run, "none", "`REQUESTS_CA_BUNDLE`", Retries, "with `urllib3.Retry`", ["$PYTHON"], "$PYTHON {clients}/requests_client.py";
    python_urllib: "Python urllib", Run, "none", "`SSL_CERT_FILE`", Tells, "", ["$PYTHON"], "$PYTHON {clients}/urllib_client.py";
    python_httpx: "Python httpx", Run, "5 s", "`SSL_CERT_FILE`", Tells, "", ["$PYTHON"], "$PYTHON {clients}/httpx_client.py";
    python_aiohttp: "Python aiohttp", Run, "5 min", "`SSL_CERT_FILE`", Tells, "only with `trust_env=True`", ["$PYTHON"], "$PYTHON {clients}/aiohttp_client.py";
    python_openai: "Python openai", Run, "10 min", "`SSL_CERT_FILE`", Retries, "", ["$PYTHON"], "$PYTHON {clients}/openai_client.py";
    python_anthropic: "Python anthropic", Run, "10 min", "`SSL_CERT_FILE`", Retries, "", ["$PYTHON"], "$PYTHON {clients}/anthropic_client.py";
    python_stripe: "Python stripe", Route, "80 s", "none: it brings its own roots", Tells, "or `stripe.ca_bundle_path = os.environ[\"SSL_CERT_FILE\"]`", ["$PYTHON"], "$PYTHON {clients}/stripe_client.py";
    python_boto3: "Python boto3", Run, "60 s", "`AWS_CA_BUNDLE`", Tells, "its own retries do not read `Retry-After`", ["$PYTHON"], "$PYTHON {clients}/boto3_client.py";
    node24_fetch: "Node 24 fetch", Run, "5 min", "`NODE_EXTRA_CA_CERTS`", Tells, "obeys the proxy by `NODE_USE_ENV_PROXY=1`; for `http://` it asks for a tunnel to port 80, which is refused unless it is listed", ["$NODE24"], "$NODE24 {clients}/fetch.mjs";
    node24_axios: "Node 24 axios", Run, "none", "`NODE_EXTRA_CA_CERTS`", Tells, "", ["$NODE24"], "$NODE24 {clients}/axios.mjs";
    node24_openai: "Node 24 openai", Run, "10 min", "`NODE_EXTRA_CA_CERTS`", Retries, "", ["$NODE24"], "$NODE24 {clients}/openai.mjs";
    node24_stripe: "Node 24 stripe", Route, "80 s", "none needed", Tells, "or `httpClient: Stripe.createFetchHttpClient()`: its own agent obeys no variable", ["$NODE24"], "$NODE24 {clients}/stripe.mjs";
    node20_fetch: "Node 20 fetch", Route, "5 min", "none needed", Tells, "obeys no variable of a proxy", ["node"], "node {clients}/fetch.mjs";
    node20_axios: "Node 20 axios", Run, "none", "`NODE_EXTRA_CA_CERTS`", Tells, "", ["node", "$NODE24"], "node {clients}/axios.mjs";
    node20_openai: "Node 20 openai", Route, "10 min", "none needed", Retries, "its fetch obeys no variable of a proxy", ["node", "$NODE24"], "node {clients}/openai.mjs";
    node20_stripe: "Node 20 stripe", Route, "80 s", "none needed", Tells, "obeys no variable of a proxy", ["node", "$NODE24"], "node {clients}/stripe.mjs";
    go_net_http: "Go net/http", Run, "none", "`SSL_CERT_FILE`", Tells, "", ["go"], "go run {clients}/client.go";
    ruby_net_http: "Ruby net/http", Run, "60 s", "`SSL_CERT_FILE`", Tells, "", ["ruby"], "ruby {clients}/client.rb";
    cargo: "cargo", Run, "30 s", "`CARGO_HTTP_CAINFO`", Tells, "a sparse registry", ["cargo"], "sh -eu {clients}/cargo.sh";
    pip: "pip", Run, "15 s", "`PIP_CERT`", Tells, "a simple index; of our 429 it says only that nothing was found", ["$PYTHON"], "sh -eu {clients}/pip.sh";
    php_curl: "PHP curl", Run, "none", "`PHP_INI_SCAN_DIR`, which names a directory with `curl.cainfo`", Tells, "streams (`file_get_contents`) obey no variable of a proxy", ["php"], "php {clients}/client.php";
    perl_lwp: "Perl LWP", Run, "3 min", "`PERL_LWP_SSL_CA_FILE`", Tells, "obeys the proxy by `PERL_LWP_ENV_PROXY=1`", ["perl"], "perl {clients}/client.pl";
    apt: "apt", Run, "30 s", "`APT_CONFIG`, which names a file with `Acquire::https::CaInfo`", Tells, "as root it reads that file as the user `_apt`: set `ca.export_dir` to a directory that all users can read, or `-o APT::Sandbox::User=root`", ["apt-get"], "sh -eu {clients}/apt.sh";
    aws_cli: "aws-cli", Run, "60 s", "`AWS_CA_BUNDLE`", Tells, "", ["$PYTHON"], "sh -eu {clients}/aws.sh";
    deno: "Deno fetch", Run, "none", "`DENO_CERT`", Tells, "", ["$DENO"], "$DENO run --no-config --allow-all {clients}/fetch.mjs";
    bun: "Bun fetch", Run, "5 min", "`NODE_EXTRA_CA_CERTS`", Tells, "", ["$BUN"], "$BUN {clients}/fetch.mjs";
    java: "Java HttpClient", Route, "none", "none needed", Tells, "or a truststore of `outpace ca export --format p12`: it obeys no variable, and sends no credentials of a proxy by itself", ["java", "javac"], "javac -d . {clients}/Client.java && java -cp . Client";
    npm: "npm", Run, "5 min", "`NPM_CONFIG_CAFILE`", Retries, "a registry", ["npm"], "sh -eu {clients}/npm.sh";
}

/// Number of requests beyond the origin's limit, by host.
type Violations = Arc<Mutex<HashMap<String, usize>>>;

/// Starts an origin that allows 10 requests in any second for `api.test` and 1 for `other.test`.
/// Its response bodies satisfy all clients of the table.
async fn limited() -> (Origin, Violations) {
    let violations = Violations::default();
    let counted = Arc::clone(&violations);
    let logs: Mutex<HashMap<String, VecDeque<Instant>>> = Mutex::default();
    let origin = Origin::with(move |_, request| {
        let named = request
            .headers()
            .get("host")
            .map(|host| host.to_str().unwrap().to_owned());
        let host = request.uri().host().map(str::to_owned).or(named).unwrap();
        let allowed = if host.starts_with("api") { 10 } else { 1 };
        let mut logs = logs.lock().unwrap();
        let log = logs.entry(host.clone()).or_default();
        let now = Instant::now();
        while log
            .front()
            .is_some_and(|at| now - *at >= Duration::from_secs(1))
        {
            log.pop_front();
        }
        let status = if log.len() < allowed { 200 } else { 429 };
        log.push_back(now);
        *counted.lock().unwrap().entry(host).or_default() += usize::from(status == 429);
        let path = request.uri().path().to_owned();
        async move {
            let mut response = reply(status, &body(&path));
            let kind = if path.starts_with("/simple/") {
                "text/html"
            } else {
                "application/json"
            };
            response
                .headers_mut()
                .insert("content-type", kind.parse().unwrap());
            response
        }
    })
    .start()
    .await;
    (origin, violations)
}

/// Returns a response body that satisfies the client that requests `path`.
fn body(path: &str) -> String {
    let last = path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let zeros = "0".repeat(64);
    if path.ends_with("/info/refs") {
        return format!("{}\trefs/heads/main\n", &zeros[..40]);
    }
    if path == "/index/config.json" {
        return "{\"dl\":\"https://api.test/dl\"}".to_owned();
    }
    if path.starts_with("/index/") {
        return format!(
            "{{\"name\":\"{last}\",\"vers\":\"1.0.0\",\"deps\":[],\"cksum\":\"{zeros}\",\"features\":{{}},\"yanked\":false}}\n"
        );
    }
    if path.starts_with("/simple/") {
        return format!(
            "<!DOCTYPE html><html><body><a href=\"/files/{last}-1.0-py3-none-any.whl\">{last}-1.0-py3-none-any.whl</a></body></html>"
        );
    }
    if last.starts_with("tiny") {
        return format!(
            "{{\"name\":\"{last}\",\"dist-tags\":{{\"latest\":\"1.0.0\"}},\"versions\":{{\"1.0.0\":{{\"name\":\"{last}\",\"version\":\"1.0.0\",\"dist\":{{\"tarball\":\"https://api.test/{last}.tgz\",\"shasum\":\"{}\"}}}}}}}}",
            &zeros[..40]
        );
    }
    "{\"object\":\"list\",\"data\":[],\"has_more\":false,\"first_id\":null,\"last_id\":null,\"TableNames\":[]}".to_owned()
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Returns the variables with the paths of the interpreters that the tests install.
pub(crate) fn variables() -> [(&'static str, String); 4] {
    let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python");
    let python = std::env::var("OUTPACE_TEST_PYTHON").unwrap_or_else(|_| venv.into());
    let of_npm = |name| {
        scripts()
            .join("node_modules/.bin")
            .join(name)
            .display()
            .to_string()
    };
    [
        ("PYTHON", python),
        ("NODE24", of_npm("node")),
        ("DENO", of_npm("deno")),
        ("BUN", of_npm("bun")),
    ]
}

/// Returns the first program that the client needs and that this machine lacks.
fn missing(client: &Client) -> Option<String> {
    let there = |need: &str| {
        let known = variables()
            .into_iter()
            .find(|(name, _)| need.strip_prefix('$') == Some(name));
        match known {
            Some((_, path)) => Path::new(&path).exists(),
            None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|dir| dir.join(need).exists()),
        }
    };
    client
        .needs
        .iter()
        .find(|need| !there(need))
        .map(|need| (*need).to_owned())
}

async fn try_client(name: &str) {
    let client = CLIENTS.iter().find(|client| client.name == name).unwrap();
    if let Some(need) = missing(client) {
        println!("NOT RUN: {name}: `{need}` is not installed");
        return;
    }
    let (origin, violations) = limited().await;
    let dir = tempfile::tempdir().unwrap();
    let (api, other) = (free_port(), free_port());
    std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {dir}/data\n\
         egress: {{ allow: [\"127.0.0.1\"], roots: [\"{dir}/origin-ca.pem\"], resolve: {{ \"api.test\": \"{tls}\", \"other.test\": \"{tls}\" }} }}\n\
         routes: [{{ listen: \"127.0.0.1:{api}\", to: \"https://api.test\" }}, {{ listen: \"127.0.0.1:{other}\", to: \"https://other.test\" }}]\n\
         targets:\n  - {{ name: api, hosts: [api.test], limits: [{{ rate: \"10/1s\" }}] }}\n  - {{ name: other, hosts: [other.test], max_wait: 0s, limits: [{{ rate: \"1/1s\" }}] }}\n",
        dir = dir.path().display(),
        tls = origin.tls,
    );
    std::fs::write(dir.path().join("outpace.yaml"), config).unwrap();
    let urls = match client.by {
        By::Run => [
            "https://api.test".to_owned(),
            "https://other.test".to_owned(),
        ],
        By::Route => [api, other].map(|port| format!("http://127.0.0.1:{port}")),
    };
    let command = client
        .command
        .replace("{clients}", &scripts().display().to_string());
    let mut run = program();
    run.args(["run", "--", "sh", "-c", &command])
        .current_dir(dir.path());
    run.env_remove("NODE_EXTRA_CA_CERTS")
        .env("DENO_DIR", dir.path().join("deno"))
        .env("GOCACHE", dir.path().join("go"))
        .env("GOFLAGS", "-mod=mod");
    run.envs(variables())
        .env("API", &urls[0])
        .env("OTHER", &urls[1]);
    let output = run.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = soon("the end of the command", output).await.unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{name}\n{out}\n{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.first(), Some(&"12 ok"), "{name}\n{out}\n{err}");
    let last = lines.last().copied().unwrap_or_default();
    match client.then {
        Then::Retries => assert_eq!(last, "retried", "{name}\n{out}\n{err}"),
        Then::Tells => assert!(
            matches!(last, "told" | "told 1" | "told 2"),
            "{name}\n{out}\n{err}"
        ),
    }
    assert!(
        violations.lock().unwrap().values().all(|count| *count == 0),
        "{name}: {violations:?}"
    );
    assert!(origin.arrivals.count() >= 12, "{name}");
}

#[test]
fn the_table_of_clients_is_in_the_docs() {
    let mut table =
        "| client | by | its timeout | trusts by | outpace's 429 | |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for client in CLIENTS {
        let by = if client.by == By::Run { "run" } else { "route" };
        let then = if client.then == Then::Retries {
            "waits and tries again"
        } else {
            "reports it to its caller"
        };
        table.push_str(
            &format!(
                "| {} | {by} | {} | {} | {then} | {} |\n",
                client.name, client.timeout, client.trust, client.note
            )
            .replace("|  |", "| |"),
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clients.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let start = page.find("| client |").unwrap();
    let end = page[start..].find("\n\n").unwrap() + start + 1;
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, [&page[..start], &table, &page[end..]].concat()).unwrap();
        return;
    }
    assert_eq!(
        page[start..end],
        table,
        "docs/clients.md is out of date; run with UPDATE_GOLDEN=1 to rewrite it"
    );
}

/// The timeouts of the table are those of the libraries, as far as a program can ask for them.
#[tokio::test(flavor = "multi_thread")]
async fn the_timeouts_of_the_table_are_those_of_the_clients() {
    let known = variables();
    let program = |name: &str| match known.iter().find(|(variable, _)| *variable == name) {
        Some((_, path)) => path.clone(),
        None => name.to_owned(),
    };
    for (client, interpreter, script, unit) in [
        (
            "Python httpx",
            "PYTHON",
            "import httpx; print(httpx.Client().timeout.read)",
            1.0,
        ),
        (
            "Python aiohttp",
            "PYTHON",
            "import aiohttp.client; print(aiohttp.client.DEFAULT_TIMEOUT.total)",
            1.0,
        ),
        (
            "Python openai",
            "PYTHON",
            "import openai; print(openai.DEFAULT_TIMEOUT.read)",
            1.0,
        ),
        (
            "Python anthropic",
            "PYTHON",
            "import anthropic; print(anthropic.DEFAULT_TIMEOUT.read)",
            1.0,
        ),
        (
            "Python stripe",
            "PYTHON",
            "import stripe._http_client as c; print(c.RequestsClient()._timeout)",
            1.0,
        ),
        (
            "Python boto3",
            "PYTHON",
            "import botocore.endpoint as e; print(e.DEFAULT_TIMEOUT)",
            1.0,
        ),
        (
            "pip",
            "PYTHON",
            "from pip._internal.cli.cmdoptions import timeout; print(timeout().default)",
            1.0,
        ),
        (
            "Node 24 openai",
            "NODE24",
            "console.log(new (require('openai'))({ apiKey: 'k' }).timeout)",
            1000.0,
        ),
        (
            "Node 24 stripe",
            "NODE24",
            "console.log(require('stripe')('k').getApiField('timeout'))",
            1000.0,
        ),
        (
            "Ruby net/http",
            "ruby",
            "require 'net/http'; puts Net::HTTP.new('a').read_timeout",
            1.0,
        ),
        (
            "Perl LWP",
            "perl",
            "use LWP::UserAgent; print LWP::UserAgent->new->timeout",
            1.0,
        ),
    ] {
        let option = if interpreter == "PYTHON" { "-c" } else { "-e" };
        let mut command = tokio::process::Command::new(program(interpreter));
        let asked = command
            .args([option, script])
            .current_dir(scripts())
            .output()
            .await;
        let Ok(asked) = asked else {
            println!("NOT RUN: {client}: `{interpreter}` is not installed");
            continue;
        };
        let told = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
        let error = String::from_utf8_lossy(&asked.stderr).into_owned();
        let seconds = told
            .parse::<f64>()
            .unwrap_or_else(|_| panic!("{client}: {told}{error}"))
            / unit;
        let shown = CLIENTS
            .iter()
            .find(|known| known.name == client)
            .unwrap()
            .timeout;
        let (number, word) = shown.split_once(' ').unwrap();
        let scale = if word == "min" { 60.0 } else { 1.0 };
        let shown = number.parse::<f64>().unwrap() * scale;
        assert!((shown - seconds).abs() < 0.01, "{client}: {seconds}");
    }
}

/// A Java program behind `outpace serve` trusts the exported truststore, also for other hosts.
#[tokio::test(flavor = "multi_thread")]
async fn java_trusts_the_exported_truststore() {
    const APP: &str = "public class App { public static void main(String[] a) throws Exception { for (String u : a) { var c = (java.net.HttpURLConnection) new java.net.URL(u).openConnection(); System.out.print(c.getResponseCode() + \" \"); } } }";
    let there = |need: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join(need).exists())
    };
    if !there("javac") {
        println!("NOT RUN: Java: `javac` is not installed");
        return;
    }
    let origin = Origin::ok().await;
    let target = "targets: [{ name: api, hosts: [api.test], limits: [{ rate: \"100/1s\" }] }]\n";
    let program = crate::harness::Program::before(&origin, target).await;
    let dir = program.dir.path();
    let config = program.config_path();
    let export = [
        "ca",
        "export",
        "--format",
        "p12",
        "--out",
        "outpace.p12",
        "-c",
    ];
    let made = crate::run::ended(crate::run::outpace(dir).args(export).arg(&config)).await;
    assert_eq!(made.0, Some(0), "{made:?}");
    std::fs::write(dir.join("App.java"), APP).unwrap();
    let (host, port) = (program.listen.ip(), program.listen.port());
    let script = format!(
        "keytool -list -keystore outpace.p12 -storepass changeit | grep -c trustedCertEntry; javac App.java && java -Djavax.net.ssl.trustStore=outpace.p12 -Djavax.net.ssl.trustStorePassword=changeit -Dhttps.proxyHost={host} -Dhttps.proxyPort={port} -cp . App https://api.test/1 https://api.test/2"
    );
    let mut command = tokio::process::Command::new("sh");
    let (code, out, err) = crate::run::ended(command.args(["-ec", &script]).current_dir(dir)).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let (count, statuses) = out.split_once('\n').unwrap();
    assert!(count.parse::<usize>().unwrap() > 50, "{out}");
    assert_eq!(statuses.trim(), "200 200", "{err}");
    program
        .record(|record| record["ingress"] == "intercept" && record["target"] == "api")
        .await;
    // The same certificates in PEM, on standard output.
    for (format, least) in [("pem", 1), ("bundle", 50)] {
        let told = crate::run::ended(
            crate::run::outpace(dir)
                .args(["ca", "export", "--format", format, "-c"])
                .arg(&config),
        )
        .await;
        assert!(
            told.1.matches("BEGIN CERTIFICATE").count() >= least && !told.1.contains("PRIVATE"),
            "{told:?}"
        );
    }
    let refused = crate::run::ended(
        crate::run::outpace(dir)
            .args(["ca", "export", "--format", "p12", "-c"])
            .arg(&config),
    )
    .await;
    assert_eq!(refused.0, Some(64), "{refused:?}");
}
