//! Tests of `outpace run` in the environment of a user: a proxy of the company, hosts of no target, and
//! the closing line that says what was not paced.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Origin, Program, free_port, soon};
use crate::run::{ended, nobody_left, outpace, place, serving};

const TARGET: &str =
    "targets:\n  - { name: api, hosts: [api.test], limits: [{ rate: \"10/1s\" }] }\n";
pub(crate) const CURL: &str = "curl -sS -o /dev/null -w '%{http_code} ' ";

/// Writes a configuration in which no private address is allowed, and returns its directory.
pub(crate) fn closed_place(origin: &Origin, more: &str) -> tempfile::TempDir {
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

/// Runs `sh -c script` in a directory with these variables.
pub(crate) async fn run_once(
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
pub(crate) async fn run(
    dir: &Path,
    script: &str,
    variables: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let told = run_once(dir, script, variables).await;
    // The next command gets a proxy of its own, with its own variables.
    nobody_left(dir).await;
    told
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
async fn a_reload_keeps_the_parent_of_the_environment() {
    let origin = Origin::ok().await;
    let parent = Program::before(&origin, "").await;
    let dir = place(&origin, TARGET);
    let exe = env!("CARGO_BIN_EXE_outpace");
    let script =
        format!("sed -i 's|10/1s|20/1s|' outpace.yaml; {exe} reload; {CURL} https://api.test/");
    let proxy = format!("http://{}", parent.listen);
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let (code, out, err) = run(dir.path(), &script, &[(variable, &proxy)]).await;
        assert_eq!(code, Some(0), "{err}");
        assert!(
            out.starts_with("reloaded: ") && out.ends_with("200 "),
            "{out}{err}"
        );
        assert!(!out.contains("restart"), "{variable}: {out}");
        parent.record(|record| record["host"] == "api.test").await;
    }
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
    for words in [
        "address-prohibited",
        "169.254.169.254",
        "without the credentials of this command",
    ] {
        assert!(last.contains(words), "{words}: {err}");
    }
    // An outpace that is joined keeps its rules, and the closing line names them.
    let text = std::fs::read_to_string(dir.path().join("outpace.yaml")).unwrap();
    let mut serving = serving(dir.path()).await;
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
    // Plain requests that are refused have a cause, too.
    let refusing = place(&origin, &format!("unmatched: refuse\n{TARGET}"));
    let both = format!("{CURL} https://api.test/; curl -sS -o /dev/null http://plain.test/");
    let (_, _, err) = run(refusing.path(), &both, &[]).await;
    assert!(
        err.contains("plain.test: host-not-allowed") && !err.contains("no request"),
        "{err}"
    );
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

/// Reaches the bound `COMMAND_REPORT_WAIT`.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_outlives_the_command_does_not_delay_the_last_line() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    // The background process keeps its connection open, until the test ends it.
    let script = "place=${HTTPS_PROXY##*@}; bash -c \"exec 3<>/dev/tcp/${place%%:*}/${place##*:}; echo ready; exec sleep 60\" >ready 2>&1 & echo $! >pid; until grep -q ready ready; do :; done";
    let (code, _, err) = run_once(dir.path(), script, &[]).await;
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    let ended = std::process::Command::new("kill").arg(pid.trim()).status();
    assert!(
        ended.unwrap().success(),
        "the process has ended before `run`"
    );
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("no request of this command"), "{err}");
    nobody_left(dir.path()).await;
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
