//! `outpace run -- CMD`: runs a command and sends its requests through outpace.
//!
//! A proxy that already serves this configuration is used. Otherwise a proxy is started for the
//! command, and it ends after its last session.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::client::ConfigArgs;
use super::closing::closing_line;
use super::endpoint::Endpoint;
use super::variables::{Variables, absolute, variables};
use super::{Exit, Failure, print_error};
use crate::admin::{ServingInfo, SessionStart};
use crate::app::{Trust, serving};
use crate::clock::Clock;
use crate::config::Purpose;
use crate::exchange::CommandReport;
use crate::files::{create_private, open_private};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace run curl -i https://api.github.com/zen\n  outpace run -c team.yaml --client billing python app.py\n  outpace run -- ./script --its-own-option"
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Client name from `clients` in the configuration (required if `clients` are configured)
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Command to run, with its arguments. Options of outpace stand before it
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Time for which the command waits until a started proxy accepts a session.
const START: Duration = Duration::from_secs(20);
/// Time to wait for the report of the proxy at the end of the command.
const REPORT: Duration = Duration::from_secs(1);
/// Interval between two checks of a proxy that was started.
const LOOK: Duration = Duration::from_millis(4);

pub(super) fn run(args: &RunArgs) -> Result<Exit, Failure> {
    super::block_on(run_command(args))
}

async fn run_command(args: &RunArgs) -> Result<Exit, Failure> {
    let config = args.config.require()?;
    let purpose = Purpose::Programs(args.client.as_deref(), true);
    let trust = Trust::load(Some(&config), purpose)?;
    let proxy = Proxy::find_or_start(&config, &trust).await?;
    let token = proxy.start.command_token.as_deref();
    let url = trust.session_url(args.client.as_deref(), proxy.start.serving.listen, token)?;
    let environment = variables(&trust, &url, token.is_some())?;
    let ended = follow(&args.command, environment.variables).await;
    if ended.is_ok() {
        let report = proxy.report(&trust).await;
        let has_targets = !trust.config().policy.targets.is_empty();
        if let Some(line) = closing_line(report.as_ref(), has_targets, &environment.problems) {
            print_error(&line);
        }
    }
    // The session ends here, so a proxy that was started for the command may end.
    drop(proxy);
    ended
}

/// Starts a command with its arguments and with additional environment variables.
pub(super) fn start_command(command: &[String], variables: Variables) -> Result<Child, Failure> {
    let [program, arguments @ ..] = command else {
        let text = "no command was given; write it after the options";
        return Err(Failure(Exit::USAGE, text.to_owned()));
    };
    let child = Command::new(program)
        .args(arguments)
        .envs(variables)
        .spawn();
    child.map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::NotFound => Exit::NOT_FOUND,
            _ => Exit::NOT_STARTED,
        };
        let text = format!("`{program}` cannot be run: {error}; check its name and permissions");
        Failure(exit, text)
    })
}

/// Runs the command, forwards signals to it, and returns its exit code.
async fn follow(command: &[String], variables: Variables) -> Result<Exit, Failure> {
    // The handlers are installed before the command starts, so that no signal is missed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut first = signal(SignalKind::user_defined1())?;
    let mut second = signal(SignalKind::user_defined2())?;
    let mut alarm = signal(SignalKind::alarm())?;
    let mut child = start_command(command, variables)?;
    // A terminal sends SIGINT and SIGQUIT to the whole process group, so the command receives them
    // without help.
    let typed = std::io::IsTerminal::is_terminal(&std::io::stdin());
    loop {
        tokio::select! {
            ended = child.wait() => return Ok(Exit::of_command(ended?)),
            _ = interrupt.recv() => if !typed { pass_on(&child, rustix::process::Signal::INT) },
            _ = quit.recv() => if !typed { pass_on(&child, rustix::process::Signal::QUIT) },
            _ = terminate.recv() => pass_on(&child, rustix::process::Signal::TERM),
            _ = hang_up.recv() => pass_on(&child, rustix::process::Signal::HUP),
            _ = first.recv() => pass_on(&child, rustix::process::Signal::USR1),
            _ = second.recv() => pass_on(&child, rustix::process::Signal::USR2),
            _ = alarm.recv() => pass_on(&child, rustix::process::Signal::ALARM),
        }
    }
}

fn pass_on(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    let passed = pid.map(|pid| rustix::process::kill_process(pid, signal));
    if let Some(Err(error)) = passed {
        // The command may have ended a moment ago.
        tracing::debug!(%error, "a signal could not be forwarded to the command");
    }
}

/// Running proxy with an open session, which keeps it running until this value is dropped.
pub(super) struct Proxy {
    pub(super) start: SessionStart,
    /// Open response of `GET /v1/attend`, which the proxy counts as a session, and its connection.
    #[expect(dead_code, reason = "dropping it would end the session")]
    session: (Incoming, SendRequest<Full<Bytes>>),
}

impl Proxy {
    pub(super) async fn find_or_start(config: &Path, trust: &Trust) -> Result<Self, Failure> {
        let data_dir = trust.data_dir();
        // The lock prevents two commands from starting two proxies, each with the full limits.
        let lock = open_private(&data_dir.join("run.lock"))?;
        let failed = |error: std::io::Error| Failure(Exit::DATA_DIR, error.to_string());
        lock.lock().map_err(failed)?;
        let found = match Self::find(config, trust).await {
            Some(proxy) => Ok(proxy),
            None => Self::start(config, trust).await,
        };
        drop(lock);
        found
    }

    /// Returns a running proxy with the same configuration and data directory, if there is one.
    async fn find(config: &Path, trust: &Trust) -> Option<Self> {
        let known = serving(trust.data_dir())?;
        let asked = Self::attend(&known, trust);
        let proxy = tokio::time::timeout(Duration::from_secs(2), asked)
            .await
            .ok()??;
        let is_same = proxy.start.serving == known && is_same_file(&known.config, config);
        is_same.then_some(proxy)
    }

    async fn start(config: &Path, trust: &Trust) -> Result<Self, Failure> {
        let log_path = trust.data_dir().join("run.log");
        // A proxy that is about to end may still write into the file of its own start.
        let _ = std::fs::remove_file(&log_path);
        let log = create_private(&log_path)?;
        let ourselves = std::env::current_exe()?;
        let mut child = Command::new(ourselves)
            .args(["serve", "--attended", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // The proxy gets a process group of its own, because signals of the terminal are for
            // the command.
            .process_group(0)
            .spawn()?;
        let clock = Clock::system();
        let until = clock.now() + START;
        while clock.now() < until {
            if let Some(proxy) = Self::find(config, trust).await {
                return Ok(proxy);
            }
            if let Ok(Some(ended)) = child.try_wait() {
                let told = std::fs::read(&log_path).unwrap_or_default();
                let told = String::from_utf8_lossy(&told);
                let mut lines = told.lines().rev();
                let cause = lines.find_map(|line| line.strip_prefix("outpace: "));
                let last = cause.or_else(|| told.lines().last()).unwrap_or_default();
                return Err(Failure(Exit::of_command(ended), last.to_owned()));
            }
            clock.sleep_until(clock.now() + LOOK).await;
        }
        let log = log_path.display();
        let text = format!("the proxy did not start in time; read its log {log}");
        Err(Failure(Exit::INTERNAL, text))
    }

    /// Opens a session at the proxy, which answers with its description.
    async fn attend(serving: &ServingInfo, trust: &Trust) -> Option<Self> {
        let (mut body, sender) = ask(serving, trust, "/v1/attend").await?;
        let first = body.frame().await?.ok()?.into_data().ok()?;
        Some(Self {
            start: serde_json::from_slice(&first).ok()?,
            session: (body, sender),
        })
    }

    /// Returns the report on the command of this session. `None` if the proxy does not answer.
    async fn report(&self, trust: &Trust) -> Option<CommandReport> {
        let path = format!("/v1/attend/{}", self.start.session);
        let asked = async {
            let (body, _sender) = ask(&self.start.serving, trust, &path).await?;
            let bytes = body.collect().await.ok()?.to_bytes();
            serde_json::from_slice(&bytes).ok()
        };
        tokio::time::timeout(REPORT, asked).await.ok()?
    }
}

/// Returns true if both paths lead to one file, by whatever links and dots.
fn is_same_file(known: &str, config: &Path) -> bool {
    let resolved = |path: &Path| std::fs::canonicalize(path).ok();
    let ours = resolved(config);
    known == absolute(config) || ours.is_some() && ours == resolved(Path::new(known))
}

/// Sends a GET request to the admin port, and returns the body of the response with the connection.
async fn ask(
    serving: &ServingInfo,
    trust: &Trust,
    path: &str,
) -> Option<(Incoming, SendRequest<Full<Bytes>>)> {
    let endpoint = Endpoint::listening(serving.admin, trust.admin_tls()).ok()?;
    let mut sender = endpoint.connect().await.ok()?;
    let mut request = Request::get(path).header(header::HOST, serving.admin.to_string());
    if let Some(token) = trust.admin_token() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::default()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    Some((response.into_body(), sender))
}
