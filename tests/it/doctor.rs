//! `outpace doctor` finds each prepared misconfiguration with a remedy, and nothing on a sound machine.

mod database;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Origin, Postgres, Program, free_port, program, soon};

/// Machine with the files of a sound set-up, which each case changes in one place.
struct Machine {
    dir: tempfile::TempDir,
    config: String,
    /// Variables of the shell in which the command runs.
    env: Vec<(String, String)>,
}

impl Machine {
    /// Writes a sound configuration for an origin with TLS, and programs that look like runtimes.
    fn sound(origin: &Origin) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, script) in [("curl", ""), ("python3", ""), ("node", "echo v24.1.0")] {
            let path = bin.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        let config = format!(
            "listen: 127.0.0.1:{}\nadmin: {{ listen: \"127.0.0.1:{}\" }}\ndata_dir: {dir}/data\n\
             egress:\n  allow: [\"127.0.0.1\"]\n  roots: [\"{dir}/origin-ca.pem\"]\n\
             \x20 resolve: {{ \"api.test\": \"{}\" }}\n\
             bodies: {{ memory_total: 8MiB, disk: 4MiB, disk_total: 8MiB }}\n\
             spool: {{ max: 16MiB, min_free: 1MiB, max_body: 1MiB, ballast: 1MiB }}\n\
             targets:\n  - {{ name: api, hosts: [api.test], limits: [{{ rate: \"100/1s\" }}] }}\n",
            free_port(),
            free_port(),
            origin.tls,
            dir = dir.path().display(),
        );
        let env = vec![("PATH".to_owned(), bin.display().to_string())];
        Self { dir, config, env }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn change(&mut self, from: &str, to: &str) {
        assert!(
            self.config.contains(from),
            "{from} is not in {}",
            self.config
        );
        self.config = self.config.replace(from, to);
    }

    fn append(&mut self, more: &str) {
        self.config.push_str(more);
    }

    fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Sets the variables that `outpace env` prints, as a shell does.
    async fn use_outpace(&mut self, client: &[&str]) {
        self.write();
        let mut command = program();
        command
            .arg("env")
            .arg("--config")
            .arg(self.path("outpace.yaml"))
            .args(client);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let (name, value) = line
                .strip_prefix("export ")
                .unwrap()
                .split_once('=')
                .unwrap();
            self.set(name, value.trim_matches('\''));
        }
    }

    fn write(&self) {
        let path = self.path("outpace.yaml");
        std::fs::write(&path, &self.config).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }

    /// Runs `outpace doctor --json`, and returns its exit code and its document.
    async fn doctor(&self) -> (Option<i32>, Value) {
        self.write();
        let mut command = program();
        command
            .args(["doctor", "--json", "--config"])
            .arg(self.path("outpace.yaml"));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let output = soon("the end of doctor", command.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let document = serde_json::from_str(&text);
        (
            output.status.code(),
            document.unwrap_or_else(|error| panic!("{error}: {text} {output:?}")),
        )
    }

    /// Runs the command, and asserts that the check has this verdict with a remedy, and that no check
    /// but those in `also` has a problem.
    async fn finds(&self, verdict: &str, check: &str, words: &str, also: &[&str]) {
        let (code, document) = self.doctor().await;
        let problems = problems(&document);
        let is_found = |one: &Value| {
            one["check"] == check
                && one["verdict"] == verdict
                && one["detail"].as_str().unwrap().contains(words)
                && one["remedy"]
                    .as_str()
                    .is_some_and(|remedy| remedy.len() > 10)
        };
        assert!(
            problems.iter().any(is_found),
            "{check} {words}: {problems:#?}"
        );
        let others = problems.iter().filter(|one| one["check"] != check);
        let others: Vec<_> = others
            .filter(|one| !also.contains(&one["check"].as_str().unwrap()))
            .collect();
        assert!(others.is_empty(), "{check}: {others:#?}");
        let wanted = i32::from(verdict == "fault");
        assert_eq!(code, Some(wanted), "{check}: {problems:#?}");
    }
}

fn problems(document: &Value) -> Vec<Value> {
    let checks = document["checks"].as_array().unwrap();
    let is_problem = |one: &&Value| one["verdict"] == "fault" || one["verdict"] == "warning";
    checks.iter().filter(is_problem).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_found_on_a_sound_machine_before_and_while_it_serves() {
    let origin = Origin::ok().await;
    let postgres = Postgres::start_in(&std::env::temp_dir(), "on").await;
    let mut machine = Machine::sound(&origin);
    machine.append(&format!(
        "ledger: {{ postgres: {{ url: \"{}\", migrate: true }} }}\n",
        postgres.url()
    ));
    let (code, fresh) = machine.doctor().await;
    assert_eq!((code, problems(&fresh)), (Some(0), Vec::new()));
    assert!(!machine.path("data").exists(), "doctor creates nothing");

    machine.use_outpace(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let serving = Program::start(dir, &machine.config).await;
    soon("readiness", async {
        while serving.admin_get("/readyz").await.0 != 200 {}
    })
    .await;
    let (code, document) = machine.doctor().await;
    assert_eq!((code, problems(&document)), (Some(0), Vec::new()));
    let checks = document["checks"].as_array().unwrap();
    let mut names: Vec<&str> = checks
        .iter()
        .map(|one| one["check"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names.dedup();
    println!("{} checks: {}", names.len(), names.join(" "));
    assert!(names.len() >= 20, "{names:?}");
    let sound = |name: &str| {
        checks
            .iter()
            .any(|one| one["check"] == name && one["verdict"] == "sound")
    };
    for name in [
        "running",
        "other_process",
        "shell_proxy",
        "trust",
        "origin_tls",
        "postgres_schema",
    ] {
        assert!(sound(name), "{name}: {document:#}");
    }
    assert_eq!(document["sound"], true);
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misconfiguration_of_files_and_network_is_found() {
    let origin = Origin::ok().await;

    let mut machine = Machine::sound(&origin);
    machine.change("limits:", "limit:");
    machine
        .finds("fault", "configuration", "did you mean `limits`?", &[])
        .await;

    let machine = Machine::sound(&origin);
    std::fs::create_dir(machine.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(machine.path("elsewhere"), machine.path("data")).unwrap();
    machine
        .finds("fault", "data_dir", "symbolic link", &["spool"])
        .await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    machine.env.truncate(1);
    let key = machine.path("data/ca.key");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    machine.finds("fault", "ca", "ca.key", &[]).await;

    let machine = Machine::sound(&origin);
    let listen = machine
        .config
        .lines()
        .next()
        .unwrap()
        .strip_prefix("listen: ")
        .unwrap();
    let _taken = std::net::TcpListener::bind(listen).unwrap();
    machine.finds("fault", "ports", listen, &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.change("hosts: [api.test]", "hosts: [api.test, nosuch.invalid]");
    machine.finds("fault", "dns", "nosuch.invalid", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.change("  allow: [\"127.0.0.1\"]\n", "");
    machine.finds("fault", "addresses", "api.test", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.change(
        &format!("\"{}\"", origin.tls),
        &format!("\"127.0.0.1:{}\"", free_port()),
    );
    machine.finds("fault", "egress", "api.test", &[]).await;

    let mut machine = Machine::sound(&origin);
    let roots = format!(
        "  roots: [\"{}\"]\n",
        machine.path("origin-ca.pem").display()
    );
    machine.change(&roots, "");
    machine.finds("fault", "origin_tls", "api.test", &[]).await;

    let mut machine = Machine::sound(&origin);
    let parent = format!(
        "egress:\n  upstream_proxy: \"http://127.0.0.1:{}\"\n",
        free_port()
    );
    machine.change("egress:\n", &parent);
    machine
        .finds("fault", "parent_proxy", "127.0.0.1:", &["egress"])
        .await;

    let mut machine = Machine::sound(&origin);
    machine.change("min_free: 1MiB", "min_free: 1000000GiB");
    machine
        .finds("fault", "spool", "every push is refused", &[])
        .await;

    let mut machine = Machine::sound(&origin);
    machine.append("clients:\n  - { name: a, token: aaaaaaaaaaaaaaaaaaaa }\n");
    machine
        .finds("warning", "tokens", "client a", &["configuration_mode"])
        .await;

    let mut machine = Machine::sound(&origin);
    let port = free_port();
    machine.change("listen: 127.0.0.1", "allow_open: true\nlisten: 0.0.0.0");
    machine
        .finds("warning", "exposure", "allow_open", &[])
        .await;

    let mut machine = Machine::sound(&origin);
    machine.change("limits: [", "max_wait: 10m, limits: [");
    machine.finds("warning", "policy", "httpx 5s", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.append(&format!(
        "routes: [{{ listen: \"192.0.2.1:{port}\", to: \"https://api.test\" }}]\nallow_open: true\n"
    ));
    machine
        .finds("fault", "ports", "192.0.2.1", &["exposure"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misconfiguration_of_the_shell_is_found() {
    let origin = Origin::ok().await;
    let with_client = |machine: &mut Machine| {
        machine.append("clients:\n  - { name: a, token: \"${TOKEN_A}\" }\n");
        machine.set("TOKEN_A", "0123456789abcdef-long");
    };

    let mut machine = Machine::sound(&origin);
    machine.set("OUTPACE_LOG", "bogus[[[");
    machine.finds("fault", "log_levels", "bogus", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.set("HTTPS_PROXY", "http://user:secret@proxy.example.com:3128");
    machine
        .finds("warning", "shell_proxy", "proxy.example.com:3128", &[])
        .await;
    let (_, document) = machine.doctor().await;
    assert!(!document.to_string().contains("secret@"), "{document}");

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    machine.set("NO_PROXY", "localhost,.test");
    machine.finds("fault", "no_proxy", "`.test`", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    let wrong = machine.path("origin-ca.pem").display().to_string();
    machine.set("REQUESTS_CA_BUNDLE", &wrong);
    machine.finds("fault", "trust", "python3: ", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    machine.set("NODE_EXTRA_CA_CERTS", "");
    machine
        .finds(
            "fault",
            "trust",
            "node: NODE_EXTRA_CA_CERTS is not set",
            &[],
        )
        .await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    std::fs::write(machine.path("bin/node"), "#!/bin/sh\necho v20.11.0\n").unwrap();
    machine
        .finds("warning", "trust", "node v20.11.0", &[])
        .await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    with_client(&mut machine);
    machine.finds("fault", "shell_proxy", "407", &[]).await;

    let mut machine = Machine::sound(&origin);
    machine.use_outpace(&[]).await;
    with_client(&mut machine);
    let listen = machine
        .config
        .lines()
        .next()
        .unwrap()
        .strip_prefix("listen: ")
        .unwrap()
        .to_owned();
    for name in ["HTTPS_PROXY", "https_proxy"] {
        machine.set(name, &format!("http://a:wrong@{listen}"));
    }
    machine
        .finds("fault", "shell_proxy", "wrong token", &[])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_and_one_that_is_not_ready_are_found() {
    let origin = Origin::ok().await;
    let machine = Machine::sound(&origin);
    let listen = machine.config.lines().next().unwrap();
    let other = machine
        .config
        .replace(listen, &format!("listen: 127.0.0.1:{}", free_port()));
    let admin = other.lines().nth(1).unwrap().to_owned();
    let other = other.replace(&admin, "admin: { listen: \"127.0.0.1:0\" }");
    let _serving = Program::start(tempfile::tempdir().unwrap(), &other).await;
    machine
        .finds(
            "fault",
            "other_process",
            "another configuration",
            &["running"],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_keeps_its_listener_to_itself_is_found() {
    let origin = Origin::ok().await;
    for (listen, verdict) in [("127.0.0.1", "warning"), ("0.0.0.0", "sound")] {
        let mut machine = Machine::sound(&origin);
        let open = format!("allow_open: true\nlisten: {listen}");
        machine.change("listen: 127.0.0.1", &open);
        machine.write();
        let mut command = tokio::process::Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--pid", "--fork"])
            .args(["--mount-proc", env!("CARGO_BIN_EXE_outpace")])
            .args(["doctor", "--json", "--config"])
            .arg(machine.path("outpace.yaml"))
            .env_remove("KUBERNETES_SERVICE_HOST");
        let output = soon("the end of doctor", command.output()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let Ok(document) = serde_json::from_str::<Value>(&text) else {
            println!("NOT RUN: this machine has no namespaces: {output:?}");
            return;
        };
        let checks = document["checks"].as_array().unwrap();
        let found = checks.iter().find(|one| one["check"] == "container");
        assert_eq!(found.unwrap()["verdict"], verdict, "{listen}: {checks:#?}");
    }
}

#[test]
fn the_names_of_the_checks_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = std::fs::read_to_string(root.join("docs/doctor.md")).unwrap();
    for file in std::fs::read_dir(root.join("src/cli/doctor")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for check in text.split("let check = \"").skip(1) {
            let check = check.split('"').next().unwrap();
            assert!(
                manual.contains(&format!("`{check}`")),
                "{check} is not in docs/doctor.md"
            );
        }
    }
}
