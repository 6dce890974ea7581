//! Reload of the configuration: complete files are taken with a report of the changes, incomplete
//! ones are refused unless an operator forces them.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::harness::{Client, Origin, Program, program, soon};

const POLICY: &str = "unmatched: refuse\n\
    clients:\n  - { name: app, token: s3cret-s3cret-s3cret }\n  - { name: job, token: s3cret-s3cret-s3cret }\n\
    targets:\n  - name: api\n    hosts: [plain.test]\n    limits:\n      - { name: pace, rate: \"1000/1s\" }\n      - { name: many, concurrent: 100 }\n";

const TAKEN: &str = "the configuration was reloaded";
const REFUSED: &str = "the configuration was not reloaded";

fn says(event: &Value, text: &str) -> bool {
    let message = event["message"].as_str();
    message.is_some_and(|message| message.starts_with(text))
}

fn count(program: &Program, text: &str) -> usize {
    let events = program.events();
    events.iter().filter(|event| says(event, text)).count()
}

/// Waits for event number `number` that begins with `text`, counted from 1, and returns it.
async fn nth(program: &Program, number: usize, text: &str) -> Value {
    program.nth_event(number, |event| says(event, text)).await
}

/// Asserts that the policy of [`POLICY`] is in force: credentials are asked and other hosts refused.
async fn assert_in_force(program: &Program) {
    let mut client = Client::plain(program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 407);
    let request = client
        .request("GET", "http://api.test/")
        .header(
            "proxy-authorization",
            "Basic YXBwOnMzY3JldC1zM2NyZXQtczNjcmV0",
        )
        .body(http_body_util::Full::default())
        .unwrap();
    assert_eq!(client.ask(request).await.status(), 403);
}

async fn outpace(program_: &Program, arguments: &[&str]) -> Output {
    let admin = format!("http://{}", program_.admin);
    let mut command = program();
    command.args(arguments).args(["--admin", &admin]);
    command.env("OUTPACE_ADMIN_TOKEN", program_.admin_token().unwrap());
    command
        .current_dir(program_.dir.path())
        .output()
        .await
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_file_is_refused_once_and_the_policy_stays() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    let at = |key: &str| whole.find(key).unwrap();
    let no_clients = whole.replace(
        "clients:\n  - { name: app, token: s3cret-s3cret-s3cret }\n  - { name: job, token: s3cret-s3cret-s3cret }\n",
        "",
    );
    let no_targets =
        whole[..at("targets:")].replace("s3cret-s3cret-s3cret", "other-other-other-other");
    let cases = [
        ("", "the file is empty"),
        ("# nothing\n\n", "the file is empty"),
        (&whole[..at("clients:")], "cut off"),
        (&whole[..at("targets:") - 3], "cut off"),
        (&whole[..whole.len() - 1], "cut off"),
        (&*no_clients, "none of the 2 `clients`"),
        (&*no_targets, "none of the 1 `targets`"),
        ("\0\0\0\0\0\0", "control characters"),
    ];
    for (number, (text, told)) in cases.into_iter().enumerate() {
        std::fs::write(&path, text).unwrap();
        let event = nth(&program, number + 1, REFUSED).await;
        let error = event["error"].as_str().unwrap();
        assert!(error.contains(told), "{error}");
        assert!(
            told == "control characters" || error.contains("outpace reload --force"),
            "{error}"
        );
        assert_in_force(&program).await;
    }
    // A signal asks for the result once more, but the looks do not repeat it.
    program.signal("HUP");
    nth(&program, cases.len() + 1, REFUSED).await;
    std::fs::write(&path, whole.replace("1000/1s", "500/1s")).unwrap();
    let event = nth(&program, 1, TAKEN).await;
    assert_eq!(event["changes"], "limits changed: api.pace");
    assert_eq!(count(&program, REFUSED), cases.len() + 1);
    assert_in_force(&program).await;
}

/// Reaches the bound `CONFIG_SETTLE`.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_still_written_is_taken_when_it_is_complete() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    let target = |name: &str| format!("  - name: {name}\n    hosts: [{name}.test]\n");
    // Each state of the file is valid, and none is a prefix of the file in force. The pauses are the
    // input of this test.
    let mut text = whole.replace("1000/1s", "900/1s");
    std::fs::write(&path, &text).unwrap();
    program.signal("HUP");
    for number in 0..12 {
        text.push_str(&target(&format!("t{number}")));
        std::fs::write(&path, &text).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let event = nth(&program, 1, TAKEN).await;
    assert_eq!(event["targets"], 13, "{event}");
    assert_eq!(count(&program, TAKEN) + count(&program, REFUSED), 1);
}

/// Reaches the bound `CONFIG_READS`.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_stands_still_is_not_waited_for() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    program.signal("HUP");
    // The file changes between any two reads. The pauses are the input of this test.
    let write_on = async {
        for number in 0.. {
            std::fs::write(&path, format!("{whole}# {number}\n")).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let event = tokio::select! {
        () = write_on => unreachable!("the file is written without an end"),
        event = nth(&program, 1, REFUSED) => event,
    };
    assert!(
        event["error"].as_str().unwrap().contains("keeps changing"),
        "{event}"
    );
    // The next look takes the last text.
    assert_eq!(nth(&program, 1, TAKEN).await["changes"], "nothing changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_be_replaced_in_every_usual_way() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    let with = |rate: &str| whole.replace("1000/1s", rate);
    let changed = "limits changed: api.pace";
    // An editor renames a new file over the old one, with a byte order mark and other line ends.
    let next = program.path("next");
    std::fs::write(
        &next,
        format!("\u{feff}{}", with("1/1s").replace('\n', "\r\n")),
    )
    .unwrap();
    std::fs::rename(&next, &path).unwrap();
    assert_eq!(nth(&program, 1, TAKEN).await["changes"], changed);
    // A config map swaps a symbolic link to a directory.
    for (number, rate) in ["2/1s", "3/1s"].into_iter().enumerate() {
        let data = program.path(&format!("data-{number}"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("config.yaml"), with(rate)).unwrap();
        let link = program.path("link");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        std::fs::rename(&link, program.path("..data")).unwrap();
        if number == 0 {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("..data/config.yaml", &path).unwrap();
        }
        assert_eq!(nth(&program, number + 2, TAKEN).await["changes"], changed);
    }
    // A missing file, a directory or a pipe changes nothing, and is reported after a while.
    std::fs::remove_file(&path).unwrap();
    let event = nth(&program, 1, "the configuration file cannot be read").await;
    assert!(
        event["error"].as_str().unwrap().contains("No such file"),
        "{event}"
    );
    assert_in_force(&program).await;
    make_pipe(&path);
    program.signal("HUP");
    let event = nth(&program, 1, REFUSED).await;
    assert!(
        event["error"]
            .as_str()
            .unwrap()
            .contains("not a regular file"),
        "{event}"
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, with("4/1s")).unwrap();
    assert_eq!(nth(&program, 4, TAKEN).await["changes"], changed);
    assert_in_force(&program).await;
}

fn make_pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reloads_and_forces() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    let same = outpace(&program, &["reload"]).await;
    assert_eq!(
        (same.status.code(), &*stdout(&same)),
        (Some(0), "reloaded: nothing changed\n")
    );
    let fewer = whole.replace("  - { name: job, token: s3cret-s3cret-s3cret }\n", "");
    std::fs::write(&path, format!("drain_timeout: 5s\n{fewer}")).unwrap();
    let told = outpace(&program, &["reload"]).await;
    assert_eq!(
        stdout(&told),
        // The client that is left has the whole of each bound.
        "reloaded: clients removed: job; clients changed: app\nchanged, and applied by a restart only: drain_timeout\n"
    );
    // An incomplete file, also an empty one, is taken only by force. A wrong one never is.
    let cut = &fewer[..fewer.find("clients:").unwrap()];
    for (text, told) in [("", "the file is empty"), (cut, "none of the 1 `clients`")] {
        std::fs::write(&path, text).unwrap();
        let refused = outpace(&program, &["reload"]).await;
        assert_eq!(refused.status.code(), Some(64));
        assert!(stderr(&refused).contains(told), "{}", stderr(&refused));
        assert_in_force(&program).await;
    }
    std::fs::write(&path, "targets: 5\n").unwrap();
    let wrong = outpace(&program, &["reload", "--force"]).await;
    assert_eq!(wrong.status.code(), Some(64), "{}", stderr(&wrong));
    assert_in_force(&program).await;
    std::fs::write(&path, "").unwrap();
    let forced = outpace(&program, &["reload", "--force"]).await;
    assert!(
        stdout(&forced).starts_with("reloaded: targets removed: api; limits removed: "),
        "{forced:?}"
    );
    let mut client = Client::plain(&program).await;
    assert_ne!(client.get("http://plain.test/").await.status(), 407);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_json_reloads_and_commands_refuse_an_empty_file() {
    let origin = Origin::ok().await;
    let outpace_ = Program::before(&origin, POLICY).await;
    let token = outpace_.admin_token().unwrap();
    let post = |head: &str, body: &str| {
        let length = body.len();
        let text = format!(
            "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
        );
        let admin = outpace_.admin;
        async move { crate::harness::raw(admin, &text).await }
    };
    for (head, body, status) in [
        ("", "{\"force\":true}", "415"),
        ("Content-Type: text/plain\r\n", "{\"force\":true}", "415"),
        (
            "Content-Type: application/json\r\n",
            "{\"forced\":true}",
            "422",
        ),
        (
            "Content-Type: application/json\r\n",
            "{\"force\":\"false\"}",
            "422",
        ),
        (
            "Content-Type: application/json\r\n",
            "{\"force\":false}",
            "200",
        ),
    ] {
        let answer = post(head, body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{body}: {answer}"
        );
    }
    let empty = outpace_.path("empty.yaml");
    std::fs::write(&empty, "# all is commented out\n").unwrap();
    let empty = empty.to_str().unwrap();
    for arguments in [
        ["check", "/dev/null"].as_slice(),
        &["check", empty],
        &["serve", "--config", empty],
        &["env", "--config", empty],
    ] {
        let output = program().args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(
            stderr(&output).contains("the file is empty"),
            "{}",
            stderr(&output)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_broken_file_is_told_everywhere_until_it_is_sound() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, POLICY).await;
    let path = program.config_path();
    let sound = std::fs::read_to_string(&path).unwrap();
    let config_state = async || {
        let status = program.admin_get("/v1/status").await.1;
        let status: Value = serde_json::from_str(&status).unwrap();
        status["config_state"].clone()
    };
    let told = async |wanted: &dyn Fn(&Value) -> bool| {
        soon("the state of the file", async {
            let mut last = config_state().await;
            while !wanted(&last) {
                let state = config_state().await;
                if state != last {
                    println!("{state}");
                }
                last = state;
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    let is_sound = |state: &Value| state["broken"].is_null();
    assert!(is_sound(&config_state().await));
    let cut = sound[..sound.find("clients:").unwrap()].to_owned();
    for (text, reason) in [
        (Some("targets: 5\n".to_owned()), "targets"),
        (Some(cut), "the file is cut off"),
        (None, "config.yaml"),
    ] {
        match &text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let is_told = |state: &Value| {
            let told = state["broken"]["reason"].as_str();
            told.is_some_and(|told| told.contains(reason))
        };
        told(&is_told).await;
        let (status, ready) = program.admin_get("/readyz").await;
        let expected = "ready\nwarning: the configuration file has been broken since 2";
        assert!(
            status == 200 && ready.starts_with(expected) && ready.contains(reason),
            "{ready}"
        );
        assert!(program.metric("outpace_config_broken_seconds").await > 0.0);
        std::fs::write(&path, &sound).unwrap();
        told(&is_sound).await;
        assert_eq!(program.admin_get("/readyz").await.1, "ready\n");
        assert!(program.metric("outpace_config_broken_seconds").await < f64::EPSILON);
    }
    // Keys that need a restart stay known until the file has the old values again.
    let more = format!("log: {{ format: otel }}\npublic_url: \"http://proxy.test:1\"\n{sound}");
    std::fs::write(&path, more).unwrap();
    told(&|state| state["restart_needed_for"] == serde_json::json!(["public_url", "log"])).await;
    let ready = program.admin_get("/readyz").await.1;
    assert_eq!(
        ready,
        "ready\nwarning: a restart is due for public_url, log\n"
    );
    std::fs::write(&path, &sound).unwrap();
    told(&|state| state["restart_needed_for"] == serde_json::json!([])).await;
}
