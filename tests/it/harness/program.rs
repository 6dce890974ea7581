//! The program as a separate process, started with a configuration and observed through its output.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use super::{Origin, soon};

/// Lines of one output stream so far, parsed as JSON. A line that is not JSON becomes a string.
#[derive(Clone, Default)]
struct Lines {
    list: Arc<Mutex<Vec<Value>>>,
    changed: Arc<Notify>,
}

impl Lines {
    fn follow(output: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let lines = Self::default();
        let ours = lines.clone();
        tokio::spawn(async move {
            let mut reader = BufReader::new(output).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                ours.list.lock().unwrap().push(value);
                ours.changed.notify_waiters();
            }
        });
        lines
    }

    async fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for_nth(what, 1, wanted).await
    }

    async fn wait_for_nth(
        &self,
        what: &str,
        number: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let seen = self.list.clone();
        let found = async {
            loop {
                let changed = self.changed.notified();
                let found = self
                    .list
                    .lock()
                    .unwrap()
                    .iter()
                    .filter(|line| wanted(line))
                    .nth(number - 1)
                    .cloned();
                if let Some(found) = found {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(super::PATIENCE, found)
            .await
            .unwrap_or_else(|_| panic!("no {what} in {:#?}", seen.lock().unwrap()))
    }
}

pub(crate) struct Program {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    /// Directory of the program's state, as its configuration named it at the start.
    data_dir: Option<PathBuf>,
    child: Child,
    records: Lines,
    events: Lines,
}

/// Returns a command that runs the built program without the variables of the environment for
/// proxies, root certificates and the log.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outpace"));
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "PIP_CERT",
        "NODE_EXTRA_CA_CERTS",
        "RUST_LOG",
        "OUTPACE_LOG",
    ] {
        command.env_remove(name);
    }
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// Starts the program where it cannot start, and returns its exit code and standard error.
pub(crate) async fn refused_start(config: &Path) -> (Option<i32>, String) {
    let dir = config.parent().unwrap();
    let mut command = program();
    command.args(["serve", "--config"]).arg(config);
    let output = soon("the exit", command.current_dir(dir).output()).await;
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

impl Program {
    /// Starts the program in front of `origin`, with `more` appended to its configuration.
    ///
    /// `api.test`, `other.test` and `tunnel.test` resolve to the TLS port of the origin.
    /// `plain.test` resolves to its plain port.
    pub(crate) async fn before(origin: &Origin, more: &str) -> Self {
        Self::with_egress(origin, more, "").await
    }

    /// Starts like [`Self::before`], with further configuration keys below `egress`.
    pub(crate) async fn with_egress(origin: &Origin, more: &str, egress: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
        let config = config(dir.path(), origin, more, egress);
        Self::start(dir, &config).await
    }

    /// Starts like [`Self::before`], with further environment variables for the process.
    pub(crate) async fn with_env(origin: &Origin, more: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
        let config = config(dir.path(), origin, more, "");
        Self::start_with(dir, &config, env).await
    }

    /// Starts the program in `dir` with `config` as its whole configuration and waits for its
    /// `ready` event.
    pub(crate) async fn start(dir: tempfile::TempDir, config: &str) -> Self {
        Self::start_with(dir, config, &[]).await
    }

    /// Kills the program with SIGKILL and starts it again with the same directory and
    /// configuration.
    pub(crate) async fn again(mut self) -> Self {
        self.child.kill().await.unwrap();
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        Self::start(self.dir, &config).await
    }

    /// Restarts like [`Self::again`], with each file limited to `blocks` KiB. A write beyond that
    /// size fails, as on a broken disk.
    pub(crate) async fn again_with_small_files(mut self, blocks: u32) -> Self {
        self.child.kill().await.unwrap();
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &limit, env!("CARGO_BIN_EXE_outpace")]);
        command.kill_on_drop(true).stdin(Stdio::null());
        Self::start_by(command, self.dir, &config).await
    }

    /// Restarts like [`Self::again`], with at most `files` open file descriptors.
    pub(crate) async fn again_with_open_files(mut self, files: u32) -> Self {
        self.child.kill().await.unwrap();
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_outpace")]);
        command.kill_on_drop(true).stdin(Stdio::null());
        Self::start_by(command, self.dir, &config).await
    }

    /// Restarts like [`Self::again`], with this umask for the process.
    pub(crate) async fn again_with_umask(mut self, umask: &str) -> Self {
        self.child.kill().await.unwrap();
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_outpace")]);
        command.kill_on_drop(true).stdin(Stdio::null());
        Self::start_by(command, self.dir, &config).await
    }

    /// Restarts like [`Self::again`], with further environment variables for the process.
    pub(crate) async fn again_with_env(mut self, env: &[(&str, &str)]) -> Self {
        self.child.kill().await.unwrap();
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        Self::start_with(self.dir, &config, env).await
    }

    async fn start_with(dir: tempfile::TempDir, config: &str, env: &[(&str, &str)]) -> Self {
        let mut command = program();
        // The first program of a test process runs on one worker thread, the later ones on several,
        // because scheduling differs between the two.
        static FIRST: AtomicBool = AtomicBool::new(true);
        if FIRST.swap(false, Ordering::Relaxed) {
            command.env("TOKIO_WORKER_THREADS", "1");
        }
        command.envs(env.iter().copied());
        Self::start_by(command, dir, config).await
    }

    /// Starts like [`Self::start`], by a command that runs its arguments with the program.
    pub(crate) async fn start_by(
        mut command: Command,
        dir: tempfile::TempDir,
        config: &str,
    ) -> Self {
        std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        command
            .args(["serve", "--config"])
            .arg(dir.path().join("config.yaml"));
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(dir.path());
        let mut child = command.spawn().unwrap();
        let records = Lines::follow(child.stdout.take().unwrap());
        let events = Lines::follow(child.stderr.take().unwrap());
        let ready = events
            .wait_for("ready event", |line| line["message"] == "ready")
            .await;
        let data_dir = config
            .lines()
            .find_map(|line| line.strip_prefix("data_dir: "));
        let address = |key: &str| ready[key].as_str().unwrap().parse().unwrap();
        Self {
            listen: address("listen"),
            admin: address("admin"),
            dir,
            data_dir: data_dir.map(PathBuf::from),
            child,
            records,
            events,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.path("config.yaml")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the process should run")
    }

    /// Sends the process a signal by its name, such as `TERM`, and panics if that fails.
    pub(crate) fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        soon("the end of the program", self.child.wait())
            .await
            .unwrap()
            .code()
    }

    /// Waits for the first log record on standard output for which `wanted` is true.
    pub(crate) async fn record(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.records.wait_for("matching record", wanted).await
    }

    /// Returns all log records that the program has written so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        self.records.list.lock().unwrap().clone()
    }

    /// Waits for the first event on standard error for which `wanted` is true.
    pub(crate) async fn event(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.events.wait_for("matching event", wanted).await
    }

    /// Waits for event number `number` on standard error for which `wanted` is true, counted from 1.
    pub(crate) async fn nth_event(&self, number: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        self.events
            .wait_for_nth("matching event", number, wanted)
            .await
    }

    /// Returns all events that the program has written to standard error so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.events.list.lock().unwrap().clone()
    }

    /// Returns the certificate of the CA that the program created, as PEM.
    pub(crate) fn ca(&self) -> String {
        std::fs::read_to_string(self.path("data/ca.pem")).unwrap()
    }

    /// Returns the value of one series of `/metrics`, or 0 if the series is absent.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.admin_get("/metrics").await.1;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Returns the admin token that the program has made in its data directory, if it has.
    pub(crate) fn admin_token(&self) -> Option<String> {
        let path = self.data_dir.as_ref()?.join("admin-token");
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned())
    }

    /// Sends a GET to the admin listener with the program's own token, if it has one, and returns the status and the body of the response.
    pub(crate) async fn admin_get(&self, path: &str) -> (u16, String) {
        let token = self.admin_token();
        let field = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let field = field.unwrap_or_default();
        let answer = super::raw(
            self.admin,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{field}Connection: close\r\n\r\n"),
        )
        .await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Returns the resident memory of the process (`VmRSS`), in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

fn config(dir: &Path, origin: &Origin, more: &str, egress: &str) -> String {
    let (plain, tls) = (origin.plain, origin.tls);
    format!(
        "listen: 127.0.0.1:0\n\
         admin: {{ listen: \"127.0.0.1:0\" }}\n\
         data_dir: {dir}/data\n\
         egress:\n\
         \x20 allow: [\"127.0.0.1\"]\n\
         \x20 roots: [\"{dir}/origin-ca.pem\"]\n\
         \x20 resolve: {{ \"api.test\": \"{tls}\", \"other.test\": \"{tls}\", \"tunnel.test\": \"{tls}\", \"plain.test\": \"{plain}\" }}\n\
         {egress}\n\
         {more}\n",
        dir = dir.display(),
    )
}

/// Returns the path of `libfaketime`, the library that shifts the wall clock of a process. Panics
/// with advice if the library is not installed.
pub(crate) fn faketime() -> String {
    let found = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|arch| format!("/usr/lib/{arch}/faketime/libfaketime.so.1"));
    let found = found.into_iter().find(|path| Path::new(path).exists());
    found.expect("libfaketime is not installed; `./test` installs it")
}
