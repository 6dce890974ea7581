//! Tests of `outpace run`, `explain`, `status`, `health` and `demo`, and of targets in observe
//! mode.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Client, Origin, Program, program, soon, worst_window};

/// Returns a directory with an `outpace.yaml` in which the test hosts resolve to `origin`.
pub(crate) fn place(origin: &Origin, more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {dir}/data\n\
         egress:\n  allow: [\"127.0.0.1\"]\n  roots: [\"{dir}/origin-ca.pem\"]\n  resolve: {{ \"api.test\": \"{}\", \"plain.test\": \"{}\" }}\n{more}",
        origin.tls,
        origin.plain,
        dir = dir.path().display(),
    );
    std::fs::write(dir.path().join("outpace.yaml"), config).unwrap();
    dir
}

const TARGET: &str =
    "targets:\n  - { name: api, hosts: [api.test], limits: [{ rate: \"10/1s\" }] }\n";

pub(crate) fn outpace(dir: &Path) -> Command {
    let mut command = program();
    command.current_dir(dir).env_remove("NODE_EXTRA_CA_CERTS");
    command
}

/// Runs a command to its end and returns its exit code, standard output and standard error.
pub(crate) async fn ended(command: &mut Command) -> (Option<i32>, String, String) {
    let output = soon("the end", command.output()).await.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Starts `outpace serve` in a directory of [`place`], and waits until other commands find it.
pub(crate) async fn serving(dir: &Path) -> tokio::process::Child {
    let child = outpace(dir)
        .arg("serve")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    soon("serving.json", async {
        while !dir.join("data/serving.json").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    child
}

/// Waits until the proxy that was started in this directory has drained and removed `serving.json`.
pub(crate) async fn nobody_left(dir: &Path) {
    let left = || {
        let log = std::fs::read_to_string(dir.join("data/run.log")).unwrap_or_default();
        !log.contains("\"drained\"") || dir.join("data/serving.json").exists()
    };
    soon("the end of the proxy", async {
        while left() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_paced_with_nothing_but_run_and_leaves_nothing_behind() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let script = "seq 15 | xargs -P 8 -I{} curl -sS -o /dev/null -w '%{http_code}\\n' https://api.test/{} | sort | uniq -c | tr -s ' '; exit 7";
    let (code, out, err) = ended(outpace(dir.path()).args(["run", "--", "sh", "-c", script])).await;
    assert_eq!((code, out.trim()), (Some(7), "15 200"), "{err}");
    assert!(worst_window(&origin.arrivals.times(), Duration::from_secs(1)) <= 10);
    nobody_left(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_share_one_proxy_and_the_last_ends_it() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let script = "curl -sS -o /dev/null https://api.test/ && echo $HTTPS_PROXY && read line";
    let start = || {
        let mut command = outpace(dir.path());
        command.args(["run", "--", "sh", "-c", script]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let (mut one, mut two) = (start(), start());
    origin.arrivals.reached(2).await;
    // Each command runs until its standard input is closed.
    let _ = one.stdin.take();
    let one = soon("the first", one.wait_with_output()).await.unwrap();
    assert!(dir.path().join("data/serving.json").exists());
    let _ = two.stdin.take();
    let two = soon("the second", two.wait_with_output()).await.unwrap();
    let proxy = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    assert_eq!(proxy(one), proxy(two));
    nobody_left(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_go_to_the_command_and_its_end_is_ours() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let script =
        "trap 'exit 9' TERM; curl -sS -o /dev/null https://api.test/; while :; do sleep 0.01; done";
    let mut command = outpace(dir.path());
    command.args(["run", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    origin.arrivals.reached(1).await;
    let pid = child.id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", "TERM", &pid])
        .status();
    assert!(sent.unwrap().success());
    assert_eq!(soon("the end", child.wait()).await.unwrap().code(), Some(9));
    let killed = ended(outpace(dir.path()).args(["run", "--", "sh", "-c", "kill -KILL $$"])).await;
    assert_eq!(killed.0, Some(128 + 9));
    let missing = ended(outpace(dir.path()).args(["run", "--", "no-such-command"])).await;
    assert_eq!(missing.0, Some(127));
    assert!(
        missing.2.contains("`no-such-command` cannot be run"),
        "{}",
        missing.2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_needs_no_dashes_and_keeps_its_own_options() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    let config = dir.path().join("outpace.yaml").display().to_string();
    let url = "https://api.test/";
    for arguments in [
        vec![
            "run",
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            url,
        ],
        vec![
            "run",
            "--",
            "curl",
            "-sSo",
            "/dev/null",
            "-w",
            "%{http_code}",
            url,
        ],
        vec!["run", "-c", &config, "sh", "-c", "printf 200"],
        vec!["run", "--config", &config, "--", "printf", "%s", "200"],
        vec!["run", "printf", "--", "200"],
    ] {
        let (code, out, err) = ended(outpace(dir.path()).args(&arguments)).await;
        assert_eq!((code, &*out), (Some(0), "200"), "{arguments:?}: {err}");
        let is_paced = arguments.contains(&"curl");
        assert_eq!(
            err.contains("no request of this command"),
            !is_paced,
            "{err}"
        );
    }
    let denied = dir.path().join("outpace.yaml").display().to_string();
    let (code, _, told) = ended(outpace(dir.path()).args(["run", &denied])).await;
    assert_eq!(code, Some(126), "{told}");
    let (code, _, told) = ended(outpace(dir.path()).arg("run")).await;
    assert_eq!(code, Some(64), "{told}");
}

/// Each command finds the file in the working directory, and else that of the user.
#[tokio::test(flavor = "multi_thread")]
async fn each_command_finds_the_configuration_file() {
    let origin = Origin::ok().await;
    let (here, home) = (place(&origin, TARGET), tempfile::tempdir().unwrap());
    let of_user = home.path().join(".config/outpace");
    std::fs::create_dir_all(&of_user).unwrap();
    let theirs = place(&origin, &TARGET.replace("name: api", "name: theirs"));
    std::fs::copy(
        theirs.path().join("outpace.yaml"),
        of_user.join("outpace.yaml"),
    )
    .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let xdg = home.path().join(".config").display().to_string();
    let at_home = home.path().display().to_string();
    let by = [
        ("HOME", at_home.as_str()),
        ("XDG_CONFIG_HOME", xdg.as_str()),
    ];
    for (dir, name) in [(here.path(), "api"), (elsewhere.path(), "theirs")] {
        for (variable, value) in by {
            let mut command = outpace(dir);
            command.env_remove("HOME").env_remove("XDG_CONFIG_HOME");
            let (code, out, err) = ended(command.env(variable, value).arg("check")).await;
            assert_eq!(code, Some(0), "{err}");
            assert!(out.contains(&format!("target {name}:")), "{out}");
        }
    }
    let file = of_user.join("outpace.yaml").display().to_string();
    for arguments in [
        vec!["check", &file],
        vec!["check", "-c", &file],
        vec!["check", "--config", &file],
    ] {
        let (code, out, err) = ended(outpace(here.path()).args(&arguments)).await;
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains("target theirs:"), "{out}");
    }
    for command in ["serve", "run", "check", "migrate"] {
        let mut nowhere = outpace(elsewhere.path());
        nowhere
            .env_remove("HOME")
            .env_remove("XDG_CONFIG_HOME")
            .arg(command);
        let (code, _, err) = ended(nowhere.args((command == "run").then_some("true"))).await;
        assert_eq!(code, Some(64), "{command}: {err}");
        assert!(err.contains("there is no outpace.yaml"), "{command}: {err}");
    }
    for command in ["env", "ca", "doctor"] {
        let mut of_user = outpace(elsewhere.path());
        let (code, out, err) = ended(of_user.env("HOME", &at_home).arg(command)).await;
        assert!(code == Some(0) || command == "doctor", "{command}: {err}");
        let data = theirs.path().display().to_string();
        assert!(out.contains(&data), "{command}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_or_with_a_wrong_configuration_run_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = ended(outpace(dir.path()).args(["run", "--", "true"])).await;
    assert_eq!(code, Some(64));
    assert!(err.contains("--config FILE"), "{err}");
    std::fs::write(dir.path().join("outpace.yaml"), "targets: 7\n").unwrap();
    let (code, _, err) = ended(outpace(dir.path()).args(["run", "--", "true"])).await;
    assert_eq!(code, Some(64));
    assert!(err.contains("outpace.yaml:1:"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_what_a_request_would_meet_and_what_is_in_force() {
    let origin = Origin::ok().await;
    let target = "targets:\n  - name: api\n    hosts: [\"plain.test\"]\n    max_wait: 100ms\n    lanes: [{ name: slow, match: { header: \"x-lane: slow\" } }, { name: other }]\n    limits:\n      - { name: pace, rate: \"1/5s\", burst: 1 }\n      - { name: per-key, rate: \"60/1m\", key: \"header:x-key\", match: { method: [POST] } }\n      - { name: tokens, rate: \"1000/1m\", cost: { estimate: [\"json:/n\"], default: 7 } }\n";
    let program = Program::before(&origin, target).await;
    let admin = format!("http://{}", program.admin);
    let explain = async |more: &[&str]| {
        let mut command = outpace(program.dir.path());
        command
            .env("OUTPACE_ADMIN_TOKEN", program.admin_token().unwrap())
            .args(["explain", "--json", "--admin", &admin])
            .args(more);
        let (code, out, err) = ended(&mut command).await;
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let post = [
        "http://plain.test/x",
        "-H",
        "x-key: k1",
        "-H",
        "x-lane: slow",
        "-d",
        "{\"n\": 40}",
    ];
    let told = explain(&post).await;
    assert_eq!(told["target"], "api");
    assert_eq!(told["lane"], "slow");
    assert_eq!(told["verdict"], "leaves at once");
    // A key that may be a secret is shown as its digest.
    assert_eq!(
        told["limits"][1]["key"].as_str().unwrap().len(),
        32,
        "{told}"
    );
    assert_eq!(told["limits"][2]["cost"], 40);
    assert_eq!(told["limits"][0]["free_now"], 1, "{told}");
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    let told = explain(&["http://plain.test/x"]).await;
    assert_eq!(told["limits"][1]["applies"], false);
    assert_eq!(told["held_by"], "pace");
    assert_eq!(told["limits"][0]["free_now"], 0, "{told}");
    let wait = told["next_in_s"].as_f64().unwrap();
    assert!((3.0..=5.2).contains(&wait), "{told}");
    assert!(
        told["verdict"]
            .as_str()
            .unwrap()
            .starts_with("is refused (429)"),
        "{told}"
    );
    // The next request gets exactly the response that was explained.
    assert_eq!(client.get("http://plain.test/").await.status(), 429);
    let other = explain(&["https://other.example/"]).await;
    assert_eq!(other["target"], Value::Null);
    let token = program.admin_token().unwrap();
    let with_token = || {
        let mut command = outpace(program.dir.path());
        command.env("OUTPACE_ADMIN_TOKEN", &token);
        command
    };
    let (_, status, _) = ended(with_token().args(["status", "--admin", &admin])).await;
    assert!(status.starts_with("TARGET"), "{status}");
    assert!(status.contains("pace 1/5s"), "{status}");
    assert!(status.contains("wait-too-long"), "{status}");
    let bad = ended(with_token().args(["explain", "--admin", &admin, "nonsense"])).await;
    assert_eq!(bad.0, Some(64));
    let health =
        ended(outpace(program.dir.path()).args(["health", "--ready", "--admin", &admin])).await;
    assert_eq!((health.0, &*health.1), (Some(0), "ready\n"));
    let away =
        ended(outpace(program.dir.path()).args(["health", "--admin", "http://127.0.0.1:9"])).await;
    assert_eq!(away.0, Some(69));
    // Without a running proxy `explain` uses only the configuration file.
    let still = place(&origin, target);
    let (_, out, _) = ended(outpace(still.path()).args([
        "explain",
        "--config",
        "outpace.yaml",
        "http://plain.test/",
    ]))
    .await;
    assert!(out.contains("is not running"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observed_target_holds_nothing_and_counts_what_it_would() {
    let origin = Origin::ok().await;
    let target = "targets:\n  - { name: api, hosts: [\"plain.test\"], mode: observe, limits: [{ name: pace, rate: \"1/1m\", burst: 2 }] }\n";
    let program = Program::before(&origin, target).await;
    let mut client = Client::plain(&program).await;
    for _ in 0..6 {
        assert_eq!(client.get("http://plain.test/").await.status(), 200);
    }
    let held = program
        .metric("outpace_would_hold_total{target=\"api\"}")
        .await;
    assert_eq!(held as u64, 4);
    let held = program
        .record(|record| record["would_hold"] == "pace")
        .await;
    assert_eq!(held["waited_ms"], 0.0, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_any_visible_character_reaches_the_proxy() {
    let printable: String = (' '..='~').collect();
    let curl = "curl -sS -o /dev/null -w '%{http_code}' http://plain.test/";
    let python =
        "python3 -c \"import urllib.request as r; print(r.urlopen('http://plain.test/').status)\"";
    for (name, token) in [
        ("app", "100%-100%-100%-100%"),
        ("a%2Fp", "%41%zz-%41%zz-%41%zz"),
        ("a@b/c", printable.trim()),
    ] {
        let origin = Origin::ok().await;
        let clients = serde_json::json!([{ "name": name, "token": token.replace('$', "$$") }]);
        let target = TARGET.replace("api.test", "plain.test");
        let dir = place(&origin, &format!("{target}clients: {clients}\n"));
        let script = format!("{curl}; {python}");
        let run = ["run", "--client", name, "--", "sh", "-c", &*script];
        let (code, out, err) = ended(outpace(dir.path()).args(run)).await;
        assert_eq!((code, out.trim()), (Some(0), "200200"), "{token}: {err}");
        nobody_left(dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn env_keeps_the_own_exceptions_as_run_does() {
    let origin = Origin::ok().await;
    let dir = place(&origin, TARGET);
    for (variables, own) in [
        (&[("NO_PROXY", "mine.test, .corp")][..], ",mine.test,.corp"),
        (&[("no_proxy", "other.test")], ",other.test"),
        (
            &[
                ("NO_PROXY", "a.test,localhost"),
                ("no_proxy", "b.test,a.test"),
            ],
            ",a.test,b.test",
        ),
        (&[("NO_PROXY", "")], ".svc,.cluster.local"),
    ] {
        let command = || {
            let mut command = outpace(dir.path());
            command.env_remove("NO_PROXY").env_remove("no_proxy");
            command.envs(variables.iter().copied());
            command
        };
        let (_, printed, _) = ended(command().args(["env", "--config", "outpace.yaml"])).await;
        let (_, inherited, _) = ended(command().args(["run", "--", "env"])).await;
        for spelling in ["NO_PROXY", "no_proxy"] {
            let value = |text: &str, start: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(start));
                line.unwrap_or_else(|| panic!("{text}")).to_owned()
            };
            let env = value(&printed, &format!("export {spelling}="));
            assert_eq!(env, value(&inherited, &format!("{spelling}=")));
            assert!(
                env.starts_with("localhost,127.0.0.1,") && env.ends_with(own),
                "{env}"
            );
        }
        assert!(!printed.contains("UV_NATIVE_TLS"));
        nobody_left(dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_needs_nothing_and_shows_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = ended(outpace(dir.path()).arg("demo")).await;
    assert_eq!(code, Some(0), "{err}");
    let row = |name: &str| {
        let line = out
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{out}"));
        let cells: Vec<String> = line[name.len()..]
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        cells
    };
    let number = |name: &str, column: usize| row(name)[column].parse::<u32>().unwrap();
    assert_eq!(number("answers", 1), 90, "{out}");
    for name in ["failed for good", "answered 429", "blocked for abuse (403)"] {
        assert!(number(name, 0) > 0 && number(name, 1) == 0, "{name}: {out}");
    }
    assert_eq!(number("sent to the origin", 1), 90, "{out}");
    assert!(number("worst second (10 allowed)", 1) <= 10, "{out}");
    assert!(number("worst second (10 allowed)", 0) > 10, "{out}");
    assert!(
        out.contains("of the work was lost") && out.contains("next: outpace init"),
        "{out}"
    );
}
