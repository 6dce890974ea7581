//! Tests of `outpace run` in the environment of a user: own roots, a proxy of the company, hosts of no
//! target, and the closing line that says what was not paced.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::harness::{Origin, Program, free_port, soon};
use crate::run::{ended, nobody_left, outpace, place};

const TARGET: &str =
    "targets:\n  - { name: api, hosts: [api.test], limits: [{ rate: \"10/1s\" }] }\n";
const CURL: &str = "curl -sS -o /dev/null -w '%{http_code} ' ";

/// Writes a configuration in which no private address is allowed, and returns its directory.
fn closed_place(origin: &Origin, more: &str) -> tempfile::TempDir {
    let dir = place(origin, "");
    let path = dir.path().join("outpace.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("  allow: [\"127.0.0.1\"]\n", "");
    let text = text.replace(
        "\"plain.test\":",
        &format!("\"registry.test\": \"{}\", \"plain.test\":", origin.tls),
    );
    std::fs::write(path, format!("{text}{more}")).unwrap();
    dir
}

fn certificates(path: &str) -> Vec<CertificateDer<'static>> {
    let text = std::fs::read(path.trim()).unwrap_or_else(|error| panic!("{path}: {error}"));
    CertificateDer::pem_slice_iter(&text)
        .map(Result::unwrap)
        .collect()
}

/// Runs `sh -c script` in a directory with these variables.
async fn run_once(
    dir: &Path,
    script: &str,
    variables: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let mut command = outpace(dir);
    // The variables of this machine are not those of the test.
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap());
    command.env("HOME", dir).envs(variables.iter().copied());
    ended(command.args(["run", "sh", "-c", script])).await
}

/// Runs a script like [`run_once`], and waits for the end of the proxy that it started.
async fn run(
    dir: &Path,
    script: &str,
    variables: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let told = run_once(dir, script, variables).await;
    // The next command gets a proxy of its own, with its own variables.
    nobody_left(dir).await;
    told
}

/// Returns the values of these variables in a command of `run`.
async fn values(dir: &Path, names: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let script: String = names
        .iter()
        .map(|name| format!("echo \"${name}\"; "))
        .collect();
    let (code, out, err) = run(dir, &script, variables).await;
    assert_eq!(code, Some(0), "{err}");
    out.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_program_trusts_its_own_roots_and_the_ca_only() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let own = dir.path().join("corporate.pem");
    std::fs::write(&own, &origin.ca).unwrap();
    let corporate = certificates(own.to_str().unwrap());
    let hashed = dir.path().join("hashed");
    std::fs::create_dir(&hashed).unwrap();
    for name in ["a.0", "a.pem"] {
        std::fs::write(hashed.join(name), &origin.ca).unwrap();
    }
    let [own, hashed] = [&own, &hashed].map(|path| path.to_str().unwrap());
    let names = [
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "AWS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "DENO_CERT",
        "NPM_CONFIG_CAFILE",
    ];
    let plain = values(dir.path(), &names, &[]).await;
    let system = certificates(&plain[0]);
    let ours = certificates(dir.path().join("data/ca.pem").to_str().unwrap());
    assert!(system.len() > 20 && system.ends_with(&ours) && !system.contains(&corporate[0]));
    assert_eq!(certificates(&plain[6]), ours);
    let merged = [&corporate[..], &ours[..]].concat();
    for (variable, value, own_roots) in [
        (
            "REQUESTS_CA_BUNDLE",
            own,
            &["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"][..],
        ),
        (
            "REQUESTS_CA_BUNDLE",
            hashed,
            &["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"],
        ),
        ("SSL_CERT_FILE", own, &["SSL_CERT_FILE", "CURL_CA_BUNDLE"]),
        ("NODE_EXTRA_CA_CERTS", own, &["NODE_EXTRA_CA_CERTS"]),
        ("DENO_CERT", own, &["DENO_CERT"]),
        ("GIT_SSL_CAINFO", own, &["GIT_SSL_CAINFO"]),
    ] {
        let found = values(dir.path(), &names, &[(variable, value)]).await;
        for (name, path) in names.iter().zip(&found) {
            if own_roots.contains(name) {
                assert_eq!(certificates(path), merged, "{variable}: {name}");
            } else if *name == "NPM_CONFIG_CAFILE" && variable == "NODE_EXTRA_CA_CERTS" {
                assert_eq!(path, "", "npm adds these roots to its own");
            } else {
                assert!(
                    !certificates(path).contains(&corporate[0]),
                    "{variable}: {name}"
                );
            }
        }
    }
    // The same variables again, as in a `run` inside a `run`, change nothing.
    let nested: Vec<(&str, &str)> = names
        .iter()
        .copied()
        .zip(plain.iter().map(String::as_str))
        .collect();
    assert_eq!(values(dir.path(), &names, &nested).await, plain);
    let missing = [("CURL_CA_BUNDLE", "/no/such/file.pem")];
    let (code, _, err) = run(dir.path(), "true", &missing).await;
    assert_eq!(code, Some(0));
    assert!(
        err.contains("CURL_CA_BUNDLE names /no/such/file.pem"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roots_of_wget_php_and_apt_are_in_their_own_files() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let own = dir.path().join("corporate.pem");
    std::fs::write(&own, &origin.ca).unwrap();
    let wgetrc = dir.path().join("wgetrc");
    std::fs::write(
        &wgetrc,
        format!("timeout = 7\nca_certificate = {}\n", own.display()),
    )
    .unwrap();
    let own_apt = dir.path().join("apt.conf");
    std::fs::write(&own_apt, "Acquire::Retries \"7\";\n").unwrap();
    let [wgetrc, own_apt] = [&wgetrc, &own_apt].map(|path| path.to_str().unwrap());
    let variables = [
        ("WGETRC", wgetrc),
        ("APT_CONFIG", own_apt),
        ("PHP_INI_SCAN_DIR", "/own/ini"),
    ];
    let found = values(
        dir.path(),
        &["WGETRC", "APT_CONFIG", "PHP_INI_SCAN_DIR"],
        &variables,
    )
    .await;
    let text = std::fs::read_to_string(&found[0]).unwrap();
    let path = text
        .lines()
        .last()
        .unwrap()
        .strip_prefix("ca_certificate = ")
        .unwrap();
    assert!(text.starts_with("timeout = 7\n"), "{text}");
    assert_eq!(certificates(path).len(), 2);
    let text = std::fs::read_to_string(&found[1]).unwrap();
    assert!(
        text.contains("#include") && text.contains("Acquire::https::CaInfo"),
        "{text}"
    );
    assert!(found[2].starts_with("/own/ini:"), "{}", found[2]);
    let asked = tokio::process::Command::new("apt-config")
        .args(["dump"])
        .env("APT_CONFIG", &found[1])
        .output()
        .await;
    if let Ok(asked) = asked {
        let text = String::from_utf8(asked.stdout).unwrap();
        assert!(
            text.contains("Acquire::Retries \"7\"") && text.contains("Acquire::https::CaInfo"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_proxy_is_the_parent() {
    let origin = Origin::ok().await;
    let corporate = Program::before(
        &origin,
        "clients: [{ name: staff, token: \"p@ss:w/rd%-of-the-staff\" }]\nconnect_ports: [8443]\n",
    )
    .await;
    let dir = place(&origin, TARGET);
    let address = corporate.listen;
    let proxy = format!("http://staff:p%40ss%3Aw%2Frd%25-of-the-staff@{address}");
    let seen = |host: &str| {
        corporate
            .records()
            .iter()
            .filter(|record| record["host"] == host)
            .count()
    };
    let script = format!(
        "{CURL} https://api.test/; {CURL} http://plain.test/; {CURL} -k https://other.test/"
    );
    for (number, variable) in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"]
        .into_iter()
        .enumerate()
    {
        let (code, out, err) = run(dir.path(), &script, &[(variable, &proxy)]).await;
        assert_eq!(
            (code, out.trim()),
            (Some(0), "200 200 200"),
            "{variable}: {err}"
        );
        soon("the record of the tunnel", async {
            while ["other.test", "api.test"].map(&seen) != [number + 1; 2] {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(
            (seen("api.test"), seen("plain.test")),
            (number + 1, number + 1),
            "{variable}"
        );
    }
    // An exception of the user is reached directly, and the URL needs no scheme.
    let open = Program::before(&origin, "").await;
    let bare = open.listen.to_string();
    let variables = [("HTTPS_PROXY", &*bare), ("NO_PROXY", "plain.test")];
    let (code, out, err) = run(
        dir.path(),
        &format!("{CURL} --noproxy '' http://plain.test/; {CURL} https://api.test/"),
        &variables,
    )
    .await;
    assert_eq!((code, out.trim()), (Some(0), "200 200"), "{err}");
    open.record(|record| record["host"] == "api.test").await;
    assert!(
        open.records()
            .iter()
            .all(|record| record["host"] != "plain.test")
    );
    // The configuration's own parent counts more than the environment.
    let named = place(&origin, TARGET);
    let path = named.path().join("outpace.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace(
            "egress:\n",
            &format!("egress:\n  upstream_proxy: \"http://{bare}\"\n  no_proxy: [plain.test]\n"),
        ),
    )
    .unwrap();
    let before = seen("api.test");
    let (code, out, err) = run(
        named.path(),
        &format!("{CURL} https://api.test/; {CURL} http://plain.test/"),
        &[("HTTPS_PROXY", &proxy)],
    )
    .await;
    assert_eq!((code, out.trim()), (Some(0), "200 200"), "{err}");
    assert_eq!(seen("api.test"), before);
    assert!(
        open.records()
            .iter()
            .all(|record| record["host"] != "plain.test")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_fails_is_named_and_our_own_address_is_none() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let down = free_port();
    let proxy = format!("http://127.0.0.1:{down}");
    let script = "curl -sS https://api.test/; curl -sS -o /dev/null -k https://other.test/";
    let (_, out, err) = run(dir.path(), script, &[("HTTPS_PROXY", &proxy)]).await;
    let problem: serde_json::Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    assert_eq!(problem["reason"], "parent-proxy", "{out}");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains(&format!("127.0.0.1:{down}")),
        "{out}"
    );
    let last = err.lines().last().unwrap();
    assert!(
        last.starts_with("outpace: ")
            && last.contains("parent-proxy")
            && last.contains("other.test"),
        "{err}"
    );
    for wrong in [
        "socks5://127.0.0.1:1080",
        "https://user:hunter22@corp.test:443",
        "http://",
    ] {
        let (code, _, err) = run_once(dir.path(), "true", &[("HTTPS_PROXY", wrong)]).await;
        assert_eq!(code, Some(64), "{err}");
        assert!(
            err.contains("HTTPS_PROXY") && !err.contains("hunter22"),
            "{err}"
        );
    }
    // Variables of an outpace that has ended are no parent.
    let path = dir.path().join("outpace.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let port = free_port();
    std::fs::write(
        &path,
        text.replace(
            "listen: 127.0.0.1:0\nadmin",
            &format!("listen: 127.0.0.1:{port}\nadmin"),
        ),
    )
    .unwrap();
    for stale in [
        format!("http://127.0.0.1:{port}"),
        format!("http://localhost:{port}"),
        format!("http://run:0123@127.0.0.1:{port}"),
    ] {
        let (code, out, err) = run(
            dir.path(),
            &format!("{CURL} https://api.test/"),
            &[("HTTPS_PROXY", &stale)],
        )
        .await;
        assert_eq!((code, out.trim()), (Some(0), "200"), "{stale}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_no_target_pass_for_the_command_alone() {
    let origin = Origin::ok().await;
    let dir = closed_place(&origin, TARGET);
    let port = origin.tls.port();
    let plain = origin.plain.port();
    // A private registry on another port, by CONNECT and in absolute-form, and by address.
    let script = format!(
        "{CURL} -k https://registry.test:{port}/; {CURL} http://plain.test:{plain}/; {CURL} --noproxy '' http://127.0.0.1:{plain}/; {CURL} https://api.test/"
    );
    let (code, out, err) = run(dir.path(), &script, &[]).await;
    assert_eq!((code, out.trim()), (Some(0), "200 200 200 200"), "{err}");
    assert_eq!(err, "");
    // Metadata services stay closed, and so does everything for other programs.
    let metadata = "curl -sS -o /dev/null -w '%{http_code} ' --noproxy '' http://169.254.169.254/latest/; curl -sS --noproxy '' -o /dev/null https://169.254.169.254/; ";
    let other = format!(
        "{CURL} -x \"http://${{HTTPS_PROXY##*@}}\" http://plain.test/; {CURL} -x \"http://run:wrong@${{HTTPS_PROXY##*@}}\" http://plain.test/"
    );
    let (_, out, err) = run(dir.path(), &format!("{metadata}{other}"), &[]).await;
    assert_eq!(out.trim(), "403 407 407", "{err}");
    let last = err.lines().last().unwrap();
    for words in ["address-prohibited", "169.254.169.254", "client-unknown"] {
        assert!(last.contains(words), "{words}: {err}");
    }
    // An outpace that is joined keeps its rules, and the closing line names them.
    let text = std::fs::read_to_string(dir.path().join("outpace.yaml")).unwrap();
    let mut serving = outpace(dir.path())
        .args(["serve"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    soon("serving.json", async {
        while !dir.path().join("data/serving.json").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let script = format!(
        "curl -sS -o /dev/null -k https://registry.test:{port}/; {CURL} http://plain.test/; echo $HTTPS_PROXY"
    );
    let (_, out, err) = run_once(dir.path(), &script, &[]).await;
    assert!(out.starts_with("403 http://127.0.0.1:"), "{out}{text}");
    let last = err.lines().last().unwrap();
    for words in [
        "port-not-allowed",
        "connect_ports",
        "registry.test",
        "address-prohibited",
    ] {
        assert!(last.contains(words), "{words}: {err}");
    }
    serving.start_kill().unwrap();
    let _ = serving.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_says_what_was_not_paced() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let other = dir.path().join("other.pem");
    std::fs::write(&other, &origin.ca).unwrap();
    let distrusting = format!(
        "curl -sS --cacert {} https://api.test/; true",
        other.display()
    );
    let direct = format!(
        "curl -sS -o /dev/null --noproxy '*' http://{}/",
        origin.plain
    );
    for (script, words) in [
        (format!("{CURL} https://api.test/"), &[][..]),
        (
            "true".to_owned(),
            &["no request of this command", "docs/clients.md"],
        ),
        (direct, &["no request of this command"]),
        (
            format!("{CURL} http://plain.test/"),
            &["no request of this command came to a target"],
        ),
        (
            distrusting,
            &[
                "api.test was not reached: the client does not trust outpace's CA",
                "SSL_CERT_FILE",
            ],
        ),
        ("exit 3".to_owned(), &["no request"]),
    ] {
        let (code, _, err) = run(dir.path(), &script, &[]).await;
        assert_eq!(code, Some(if script == "exit 3" { 3 } else { 0 }), "{err}");
        let ours: Vec<&str> = err
            .lines()
            .filter(|line| line.starts_with("outpace: "))
            .collect();
        assert_eq!(
            ours.len(),
            usize::from(!words.is_empty()),
            "{script}: {err}"
        );
        for word in words {
            assert!(ours[0].contains(word), "{script}: {err}");
        }
    }
    let observed = place(
        &origin,
        "targets:\n  - { name: api, hosts: [api.test], mode: observe, limits: [{ rate: \"1/1m\", burst: 1 }] }\n",
    );
    let (_, _, err) = run(
        observed.path(),
        &format!("{CURL} https://api.test/; {CURL} https://api.test/"),
        &[],
    )
    .await;
    assert!(err.contains("1 requests were not held"), "{err}");
    // Without targets there is nothing to pace.
    let empty = place(&origin, "");
    assert_eq!(run(empty.path(), "true", &[]).await.2, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_exception_swallows_a_target() {
    let origin = Origin::ok().await;
    let port = origin.plain.port();
    let target = |host: &str| {
        format!(
            "targets:\n  - {{ name: local, hosts: [\"{host}\"], limits: [{{ rate: \"10/1s\" }}] }}\n"
        )
    };
    let local = closed_place(&origin, &target(&format!("localhost:{port}")));
    let text = std::fs::read_to_string(local.path().join("outpace.yaml")).unwrap();
    std::fs::write(
        local.path().join("outpace.yaml"),
        text.replace(
            "\"plain.test\":",
            &format!("\"localhost\": \"{}\", \"plain.test\":", origin.plain),
        ),
    )
    .unwrap();
    let (code, out, err) = run(
        local.path(),
        &format!("{CURL} http://localhost:{port}/"),
        &[],
    )
    .await;
    assert_eq!((code, out.trim(), &*err), (Some(0), "200", ""));
    for (host, own, gone, kept) in [
        ("localhost:19080", "", "localhost", "127.0.0.1"),
        ("10.1.2.3", "", "10.0.0.0/8", "172.16.0.0/12"),
        ("api.default.svc", "", ".svc", ".cluster.local"),
        (
            "api.corp.test",
            "api.corp.test,mine.test",
            "api.corp.test",
            "mine.test",
        ),
        ("api.corp.test", ".corp.test", ".corp.test", "localhost"),
        (
            "*.corp.test",
            "corp.test,intern.test",
            "corp.test",
            "intern.test",
        ),
        ("api.test", "*", "*", "localhost"),
        // A narrower exception than a wildcard is meant.
        (
            "*.corp.test",
            "quiet.corp.test",
            ".corp.test",
            "quiet.corp.test",
        ),
    ] {
        let dir = place(&origin, &target(host));
        let list = values(dir.path(), &["NO_PROXY"], &[("NO_PROXY", own)])
            .await
            .remove(0);
        let entries: Vec<&str> = list.split(',').collect();
        assert!(
            !entries.contains(&gone) && entries.contains(&kept),
            "{host}: {list}"
        );
    }
    // A joined outpace refuses other private hosts, so a wide exception stays and is named.
    let program = Program::before(&origin, &target("api.corp.test")).await;
    let mut command = outpace(program.dir.path());
    command
        .env("NO_PROXY", ".corp.test")
        .arg("run")
        .arg("-c")
        .arg(program.config_path())
        .args(["sh", "-c", "echo $NO_PROXY"]);
    let (code, out, err) = ended(&mut command).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.trim().ends_with(".corp.test"), "{out}");
    assert!(
        err.contains("`.corp.test` in NO_PROXY covers target local"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_inside_a_run_uses_one_proxy_or_a_chain() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let inner = place(&origin, &TARGET.replace("api.test", "plain.test"));
    let exe = env!("CARGO_BIN_EXE_outpace");
    let script =
        format!("echo $HTTPS_PROXY; {exe} run sh -c 'echo $HTTPS_PROXY; {CURL} https://api.test/'");
    let (code, out, err) = run(
        dir.path(),
        &script.replace("'%{http_code} '", "\"%{http_code} \""),
        &[],
    )
    .await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        (code, lines[0], lines[2].trim()),
        (Some(0), lines[1], "200"),
        "{err}"
    );
    // With another configuration the outer proxy is the parent of the inner one, so both pace.
    let config = inner.path().join("outpace.yaml");
    let script = format!(
        "{exe} run -c {} sh -c '{CURL} https://api.test/; {CURL} http://plain.test/'",
        config.display()
    );
    let script = script.replace("'%{http_code} '", "\"%{http_code} \"");
    let before = origin.arrivals.count();
    let (code, out, err) = run(dir.path(), &script, &[]).await;
    assert_eq!((code, out.trim()), (Some(0), "200 200"), "{err}");
    assert_eq!(origin.arrivals.count(), before + 2);
    let log = |dir: &Path| -> PathBuf { dir.join("data/run.log") };
    for dir in [dir.path(), inner.path()] {
        let text = std::fs::read_to_string(log(dir)).unwrap();
        assert!(
            text.contains("\"host\":\"api.test\"") && text.contains("\"host\":\"plain.test\""),
            "{text}"
        );
    }
    assert_eq!(json!(err), json!(""));
}
