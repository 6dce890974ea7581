//! Messages to the supervisor of the process (`sd_notify`), inherited sockets that do not fit, and
//! the unit files for systemd.

use std::path::Path;

use tokio::net::UnixDatagram;

use crate::harness::{HeldSockets, Origin, Program, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [plain.test]\n    limits: [{ name: pace, rate: \"1000/1s\" }]\n";

/// Socket of a supervisor, with all messages so far.
struct Supervisor {
    socket: UnixDatagram,
    seen: Vec<String>,
}

impl Supervisor {
    async fn next(&mut self) -> String {
        let mut bytes = [0; 4096];
        let received = soon("a message", self.socket.recv(&mut bytes)).await;
        let message = String::from_utf8(bytes[..received.unwrap()].to_vec()).unwrap();
        self.seen.push(message.clone());
        message
    }

    /// Waits for the next message that has this line.
    async fn line(&mut self, wanted: &str) -> String {
        loop {
            let message = self.next().await;
            if message.lines().any(|line| line == wanted) {
                return message;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_is_told_of_start_reload_drain_and_life() {
    let origin = Origin::ok().await;
    let dir = tempfile::tempdir().unwrap();
    let by_path = dir.path().join("notify").display().to_string();
    let by_name = format!("@outpace-notify-{}", std::process::id());
    for address in [by_path, by_name] {
        let bound = match address.strip_prefix('@') {
            None => UnixDatagram::bind(&address).unwrap(),
            Some(name) => {
                use std::os::linux::net::SocketAddrExt as _;
                let name = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                let bound = std::os::unix::net::UnixDatagram::bind_addr(&name).unwrap();
                bound.set_nonblocking(true).unwrap();
                UnixDatagram::from_std(bound).unwrap()
            }
        };
        let mut supervisor = Supervisor {
            socket: bound,
            seen: Vec::new(),
        };
        let env = [("NOTIFY_SOCKET", &*address), ("WATCHDOG_USEC", "100000")];
        let mut program = Program::with_env(&origin, TARGET, &env).await;
        let ready = supervisor.line("READY=1").await;
        let serving = format!("STATUS=serving 1 targets on {}", program.listen);
        assert!(ready.contains(&serving), "{ready}");
        for _ in 0..3 {
            supervisor.line("WATCHDOG=1").await;
        }

        program.signal("HUP");
        let reloading = supervisor.line("RELOADING=1").await;
        let at = reloading
            .lines()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(at.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
        supervisor.line("READY=1").await;

        let path = program.config_path();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("rate:", "rte:")).unwrap();
        program.signal("HUP");
        supervisor.line("RELOADING=1").await;
        let refused = supervisor.line("READY=1").await;
        assert!(refused.contains("was refused"), "{refused}");

        program.signal("TERM");
        let stopping = supervisor.line("STOPPING=1").await;
        assert!(
            stopping.contains("EXTEND_TIMEOUT_USEC=35000000"),
            "{stopping}"
        );
        assert_eq!(program.exit_code().await, Some(0));
        assert!(
            supervisor
                .seen
                .iter()
                .all(|message| !message.contains("ERRNO"))
        );
    }
}

/// Starts the program with these sockets, and returns its exit code and standard error.
async fn refused(sockets: &HeldSockets, config: &str, dir: &Path) -> (Option<i32>, String) {
    let path = dir.join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let mut activated = sockets.program();
    activated.command.args(["serve", "--config"]).arg(&path);
    let output = soon("the exit", activated.command.output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inherited_socket_without_a_listener_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = HeldSockets::listen(&["outpace", "outpace", "elsewhere"]);
    let config = format!(
        "listen: {}\nadmin: {{ listen: \"{}\" }}\ndata_dir: {}/data\n",
        sockets.address(0),
        sockets.address(1),
        dir.path().display()
    );
    let (code, told) = refused(&sockets, &config, dir.path()).await;
    assert_eq!(code, Some(69), "{told}");
    let address = sockets.address(2).to_string();
    assert!(
        told.contains(&address) && told.contains("elsewhere"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inherited_socket_serves_a_listener_by_address_or_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = HeldSockets::listen(&["listen", "admin.listen"]);
    // Both listeners have other addresses in the configuration, so the names decide.
    let config = format!(
        "listen: 127.0.0.1:1\nadmin: {{ listen: \"127.0.0.1:2\" }}\ndata_dir: {}/data\n",
        dir.path().display()
    );
    let activated = sockets.program();
    let program = Program::start_by(activated.command, dir, &config).await;
    assert_eq!(program.listen, sockets.address(0));
    assert_eq!(program.admin, sockets.address(1));
    assert_eq!(program.admin_get("/readyz").await.0, 200);
}

/// Returns the output of `systemd-analyze` with these arguments, or `None` if it is not installed.
fn analyze(arguments: &[&str], dir: &Path) -> Option<(bool, String)> {
    let mut command = std::process::Command::new("systemd-analyze");
    let output = command.args(arguments).current_dir(dir).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Some((output.status.success(), text))
}

#[test]
fn the_units_for_systemd_are_sound_and_hardened() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let dir = tempfile::tempdir().unwrap();
    let service = std::fs::read_to_string(units.join("outpace.service")).unwrap();
    let socket = std::fs::read_to_string(units.join("outpace.socket")).unwrap();
    for line in [
        "Type=notify",
        "WatchdogSec=30",
        "StateDirectory=outpace",
        "Requires=outpace.socket",
    ] {
        assert!(service.lines().any(|known| known == line), "{line}");
    }
    for line in ["ListenStream=127.0.0.1:8080", "ListenStream=127.0.0.1:8081"] {
        assert!(socket.lines().any(|known| known == line), "{line}");
    }
    // The program is not installed where the tests run.
    let service = service.replace("/usr/bin/outpace", env!("CARGO_BIN_EXE_outpace"));
    std::fs::write(dir.path().join("outpace.service"), service).unwrap();
    std::fs::write(dir.path().join("outpace.socket"), socket).unwrap();
    let verify = ["verify", "./outpace.service", "./outpace.socket"];
    let Some((sound, told)) = analyze(&verify, dir.path()) else {
        println!("systemd-analyze is not installed, so only the text was checked");
        return;
    };
    let ours = |line: &&str| line.contains("outpace");
    let told: Vec<&str> = told.lines().filter(ours).collect();
    assert!(sound && told.is_empty(), "{told:#?}");
    let security = [
        "security",
        "--offline=true",
        "--threshold=20",
        "./outpace.service",
    ];
    let (safe, told) = analyze(&security, dir.path()).unwrap();
    println!("{}", told.lines().last().unwrap_or_default());
    assert!(safe, "{told}");
}
