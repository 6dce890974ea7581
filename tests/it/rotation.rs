//! Rotation of the CA: clients trust both certificates meanwhile, and nothing is interrupted.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Client, Origin, Program, Proto, program, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test]\n";

/// Runs `outpace ca` with further arguments. Returns the exit code and the output of both streams.
async fn ca(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    outpace(
        dir,
        &[&["ca", "--config", "config.yaml"], arguments].concat(),
    )
    .await
}

async fn outpace(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program();
    command.args(arguments).current_dir(dir);
    let output = soon("the end of the command", command.output()).await;
    let output = output.unwrap();
    let told = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&told).into_owned();
    (output.status.code(), text)
}

fn certificates(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("PRIVATE"), "{}", path.display());
    let blocks = pem::parse_many(text).unwrap();
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let encoded = blocks.iter().map(|one| pem::encode_config(one, config));
    encoded.collect()
}

/// Returns true if a client that trusts only `ca` accepts the program's leaf.
async fn accepted(program: &Program, ca: &str) -> bool {
    let tcp = Client::connect(program, "api.test:443", "").await.unwrap();
    let stream = Client::tls(tcp, "api.test", Proto::Http1, ca).await;
    stream.is_ok()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_interrupts_no_connection_and_no_client() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let dir = program.dir.path();
    let old = program.ca();
    let mut clients = Vec::new();
    for proto in [Proto::Http1, Proto::Http2] {
        clients.push(Client::intercepted(&program, "api.test", proto).await);
    }

    let (code, text) = ca(dir, &["rotate"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("outpace ca rotate --finish"), "{text}");
    let both = certificates(&program.path("data/ca.pem"));
    assert_eq!((both.len(), both[0].as_str()), (2, old.as_str()));
    let new = both[1].clone();
    assert_eq!(certificates(&program.path("data/ca-next.pem")), [&*new]);
    for key in ["data/ca.key", "data/ca-next.key"] {
        assert_eq!(mode(&program.path(key)), 0o600, "{key}");
    }
    assert_eq!(certificates(&program.path("data/trust/ca.pem")), both);
    let bundle = certificates(&program.path("data/trust/bundle.pem"));
    assert!(both.iter().all(|one| bundle.contains(one)));
    assert!(accepted(&program, &old).await && !accepted(&program, &new).await);
    program
        .event(|event| event["message"] == "the CA has changed")
        .await;
    let status: Value = serde_json::from_str(&program.admin_get("/v1/status").await.1).unwrap();
    assert_eq!(status["ca"]["further_certificates"], 1);
    let (_, text) = ca(dir, &[]).await;
    assert!(
        text.contains("also trusted 1 further certificate"),
        "{text}"
    );

    let (code, text) = ca(dir, &["rotate", "--finish"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(certificates(&program.path("data/ca.pem")), [&*new]);
    assert_eq!(certificates(&program.path("data/trust/ca.pem")), [&*new]);
    let bundle = certificates(&program.path("data/trust/bundle.pem"));
    assert!(bundle.contains(&new) && !bundle.contains(&both[0]));
    assert!(!accepted(&program, &old).await && accepted(&program, &new).await);
    assert_eq!(mode(&program.path("data/ca.key")), 0o600);
    for gone in ["data/ca-next.pem", "data/ca-next.key"] {
        assert!(!program.path(gone).exists(), "{gone}");
    }
    for client in &mut clients {
        assert_eq!(client.get("/").await.status(), 200);
    }
    let program = program.again().await;
    assert!(accepted(&program, &new).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_trust_both_until_the_running_outpace_confirms_the_new_ca() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let path = program.config_path();
    let token = "admin: { listen: \"127.0.0.1:0\", token: s3cret-s3cret-s3cret }";
    let config = std::fs::read_to_string(&path).unwrap();
    let config = config.replace("admin: { listen: \"127.0.0.1:0\" }", token);
    std::fs::write(&path, config).unwrap();
    let program = program.again().await;
    let dir = program.dir.path();
    assert_eq!(ca(dir, &["rotate"]).await.0, Some(0));
    let both = certificates(&program.path("data/ca.pem"));
    let finish = ["ca", "--config", "config.yaml", "rotate", "--finish"];
    let mut command = crate::harness::program();
    command.args(finish).env("OUTPACE_ADMIN_TOKEN", "wrong");
    let output = command.current_dir(dir).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    assert!(told.contains("still hold both certificates"), "{told}");
    assert_eq!(certificates(&program.path("data/ca.pem")), both);
    assert_eq!(certificates(&program.path("data/trust/ca.pem")), both);

    // A configuration that is refused does not keep the new CA from signing.
    let whole = std::fs::read_to_string(&path).unwrap();
    let fewer = whole.replace(TARGET, "");
    assert_ne!(whole, fewer);
    std::fs::write(&path, fewer).unwrap();
    let (code, text) = ca(dir, &["rotate", "--finish"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(certificates(&program.path("data/ca.pem")), [&*both[1]]);
    assert!(accepted(&program, &both[1]).await);

    // Another process may use the id of one that was killed.
    let pid = program.pid().to_string();
    let serving = program.path("data/serving.json");
    let text = std::fs::read_to_string(&serving).unwrap();
    let mut program = program;
    program.signal("KILL");
    program.exit_code().await;
    let stale = text.replace(&pid, &std::process::id().to_string());
    std::fs::write(&serving, stale).unwrap();
    let dir = program.dir.path();
    assert_eq!(ca(dir, &["rotate"]).await.0, Some(0));
    let (code, text) = ca(dir, &["rotate", "--finish"]).await;
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_rotation_leaves_the_present_ca_alone() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let dir = program.dir.path();
    let old = program.ca();
    ca(dir, &["rotate"]).await;
    program
        .event(|event| event["message"] == "the CA has changed")
        .await;
    let (code, text) = ca(dir, &["rotate", "--abort"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(program.ca(), old);
    assert_eq!(certificates(&program.path("data/trust/ca.pem")), [&*old]);
    assert!(!program.path("data/ca-next.key").exists());
    assert!(!program.path("data/ca-next.pem").exists());
    assert!(accepted(&program, &old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_step_of_a_rotation_names_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let config = "listen: 127.0.0.1:0\nadmin: { listen: \"127.0.0.1:0\" }\ndata_dir: data\n";
    std::fs::write(dir.join("config.yaml"), config).unwrap();
    let wrong = async |arguments: &[&str], told: &str| {
        let (code, text) = ca(dir, arguments).await;
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(told), "{text}");
    };
    wrong(
        &["rotate", "--finish"],
        "begin one with `outpace ca rotate`",
    )
    .await;
    wrong(&["rotate", "--abort"], "begin one with `outpace ca rotate`").await;
    wrong(&["rotate", "--abort", "--finish"], "cannot be used with").await;
    assert_eq!(ca(dir, &["rotate"]).await.0, Some(0));
    wrong(&["rotate"], "outpace ca rotate --finish").await;

    // A crash after the files of the next CA were made, but before clients could trust it.
    let both = certificates(&dir.join("data/ca.pem"));
    std::fs::write(dir.join("data/ca.pem"), &both[0]).unwrap();
    wrong(&["rotate", "--finish"], "run `outpace ca rotate` first").await;
    assert_eq!(ca(dir, &["rotate"]).await.0, Some(0));
    assert_eq!(certificates(&dir.join("data/ca.pem")), both);

    // A crash after the switch of the key.
    std::fs::rename(dir.join("data/ca-next.key"), dir.join("data/ca.key")).unwrap();
    wrong(&["rotate"], "outpace ca rotate --finish").await;
    wrong(&["rotate", "--abort"], "outpace ca rotate --finish").await;
    let (_, text) = ca(dir, &[]).await;
    assert!(text.contains("also trusted 1 further"), "{text}");
    assert_eq!(ca(dir, &["rotate", "--finish"]).await.0, Some(0));
    assert_eq!(certificates(&dir.join("data/ca.pem")), [&*both[1]]);

    // Only root can prepare a key of another user, and only root would change it by mistake.
    let key = dir.join("data/ca.key");
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        std::os::unix::fs::chown(&key, Some(65534), None).unwrap();
        let (code, text) = ca(dir, &["rotate"]).await;
        assert_eq!(code, Some(73), "{text}");
        assert!(
            text.contains("belongs to the user with the id 65534"),
            "{text}"
        );
        std::os::unix::fs::chown(&key, Some(0), None).unwrap();
    }

    // A crash between the two files of the next CA.
    std::fs::write(dir.join("data/ca-next.key"), "half a key").unwrap();
    assert_eq!(ca(dir, &["rotate"]).await.0, Some(0));
    assert_eq!(certificates(&dir.join("data/ca.pem")).len(), 2);

    let supplied = format!("{config}ca: {{ cert: own.pem, key: own.key }}\n");
    for name in ["pem", "key"] {
        let own = dir.join(format!("own.{name}"));
        std::fs::copy(dir.join(format!("data/ca.{name}")), own).unwrap();
    }
    std::fs::write(dir.join("config.yaml"), supplied).unwrap();
    wrong(&["rotate"], "docs/ca.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_files_of_a_supplied_ca_are_taken_without_a_restart() {
    let origin = Origin::ok().await;
    let two = [
        Program::before(&origin, TARGET).await,
        Program::before(&origin, TARGET).await,
    ];
    let of = |at: usize, name: &str| std::fs::read_to_string(two[at].path(name)).unwrap();
    let [old, new] = [0, 1].map(|at| (of(at, "data/ca.pem"), of(at, "data/ca.key")));
    let shared = tempfile::tempdir().unwrap();
    let (cert, key) = (shared.path().join("c.pem"), shared.path().join("k.pem"));
    let put = |path: &Path, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(fresh, path).unwrap();
    };
    put(&cert, &old.0);
    put(&key, &old.1);
    let (c, k) = (cert.display(), key.display());
    let config = format!("{TARGET}ca: {{ cert: \"{c}\", key: \"{k}\" }}\n");
    let program = Program::before(&origin, &config).await;
    let mut client = {
        let tcp = Client::connect(&program, "api.test:443", "").await.unwrap();
        let stream = Client::tls(tcp, "api.test", Proto::Http1, &old.0).await;
        Client::over(stream.unwrap(), Proto::Http1).await
    };
    let changed = async |number: usize, further: u64| {
        let is_change = |event: &Value| event["message"] == "the CA has changed";
        let event = program.nth_event(number, is_change).await;
        assert_eq!(event["further"], further, "{event}");
    };
    // The order of the two certificates does not matter: the key decides.
    put(&cert, &format!("{}{}", new.0, old.0));
    changed(1, 1).await;
    assert!(accepted(&program, &old.0).await && !accepted(&program, &new.0).await);
    put(&key, &new.1);
    changed(2, 1).await;
    assert!(!accepted(&program, &old.0).await && accepted(&program, &new.0).await);
    // Files that do not fit together change nothing.
    put(&key, &old.1);
    put(&cert, &new.0);
    let refused = "the changed CA was not taken; the previous one stays in use";
    let event = program.event(|event| event["message"] == refused).await;
    assert!(
        event["error"].as_str().unwrap().contains("not the key"),
        "{event}"
    );
    assert!(accepted(&program, &new.0).await);
    put(&key, &new.1);
    changed(3, 0).await;
    assert!(accepted(&program, &new.0).await);
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(certificates(&program.path("data/trust/ca.pem")), [&*new.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_outside_the_constraints_is_refused_until_the_ca_is_rotated() {
    let origin = Origin::ok().await;
    let config = format!("{TARGET}ca: {{ constrain: targets }}\n");
    let program = Program::before(&origin, &config).await;
    let dir = program.dir.path();
    let (path, first) = (program.config_path(), program.ca());
    let whole = std::fs::read_to_string(&path).unwrap();
    let wider = whole.replace("[api.test]", "[api.test, other.test]");
    std::fs::write(&path, &wider).unwrap();
    let refused = |event: &Value| {
        let message = event["message"].as_str();
        message.is_some_and(|text| text.starts_with("the configuration was not reloaded"))
    };
    let event = program.event(refused).await;
    let error = event["error"].as_str().unwrap();
    for part in [
        "other.test",
        "`api`",
        "outpace ca rotate",
        "only for api.test",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let (code, text) = outpace(dir, &["check", "config.yaml"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("a new one may sign only for api.test and below, other.test"),
        "{text}"
    );
    assert!(
        text.contains("warning: the CA may not sign for the host other.test"),
        "{text}"
    );
    assert!(accepted(&program, &first).await);

    // An operator may take the file nevertheless. The host is then refused with the reason.
    let force = ["reload", "--force", "--config", "config.yaml"];
    let (code, text) = outpace(dir, &force).await;
    assert_eq!(code, Some(0), "{text}");
    let refusal = Client::connect(&program, "other.test:443", "").await;
    assert!(refusal.unwrap_err().contains("may sign only for api.test"));
    assert!(accepted(&program, &first).await);

    // The running outpace still refuses the host, because the present CA signs until the end.
    let (code, text) = ca(dir, &["rotate"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("other.test"), "{text}");
    let (code, text) = ca(dir, &["rotate", "--finish"]).await;
    assert_eq!(code, Some(0), "{text}");
    Client::intercepted(&program, "other.test", Proto::Http2).await;
    let (_, text) = outpace(dir, &["check", "config.yaml"]).await;
    assert!(!text.contains("warning"), "{text}");

    // A start with such a file serves the other hosts, and says which one it cannot serve.
    let widest = wider.replace("[api.test, other.test]", "[api.test, tunnel.test]");
    std::fs::write(&path, widest).unwrap();
    let program = program.again().await;
    let event = program
        .event(|event| event["message"] == "the CA needs attention")
        .await;
    assert!(
        event["problem"].as_str().unwrap().contains("tunnel.test"),
        "{event}"
    );
    assert!(accepted(&program, &program.ca()).await);
    let refusal = Client::connect(&program, "tunnel.test:443", "").await;
    assert!(refusal.unwrap_err().contains("may sign only for"));
}
