//! `outpace acquire TARGET -- CMD`: runs a command when its turn comes, and holds its permit meanwhile.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::{Exit, complain};
use crate::config;
use crate::semantics::CLIENT_TOKEN;
use crate::shutdown::Tasks;

#[derive(Debug, Args)]
pub(super) struct AcquireArgs {
    /// The target whose limits the command counts against
    target: String,
    /// The configuration of the outpace to ask
    #[arg(long, short, value_name = "FILE", required_unless_present = "url")]
    config: Option<PathBuf>,
    /// Where outpace listens, instead of a configuration; OUTPACE_CLIENT_TOKEN holds `NAME:TOKEN`
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<url::Url>,
    /// What limits that count by key tell it apart by
    #[arg(long)]
    key: Option<String>,
    /// The lane
    #[arg(long)]
    lane: Option<String>,
    /// What it costs limits that go by cost
    #[arg(long)]
    cost: Option<u32>,
    /// The longest it may wait, as "30s"
    #[arg(long, value_name = "DURATION")]
    max_wait: Option<String>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// How long a permit is held without a sign of life from us.
const HOLD: Duration = Duration::from_secs(30);

pub(super) fn run(args: &AcquireArgs) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no threads could be started: {error}"));
            return Exit::Internal;
        }
    };
    match runtime.block_on(acquire(args)) {
        Ok(status) => Exit::of_command(status),
        Err((exit, text)) => {
            complain(&text);
            exit
        }
    }
}

type Failure = (Exit, String);

async fn acquire(args: &AcquireArgs) -> Result<ExitStatus, Failure> {
    let outpace = Outpace::find(args)?;
    let mut asked = json!({ "hold": HOLD.as_secs() });
    let fields = [
        ("key", args.key.clone().map(Value::from)),
        ("lane", args.lane.clone().map(Value::from)),
        ("cost", args.cost.map(Value::from)),
        ("max_wait", args.max_wait.clone().map(Value::from)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            asked[name] = value;
        }
    }
    let granted = outpace.post("acquire", &asked).await?;
    let permit = granted.get("permit").and_then(Value::as_str);
    let [program, arguments @ ..] = args.command.as_slice() else {
        return Err((Exit::Usage, "there is no command".to_owned()));
    };
    let mut command = tokio::process::Command::new(program);
    let mut child = command
        .args(arguments)
        .spawn()
        .map_err(|error| (Exit::Usage, format!("`{program}` cannot be run: {error}")))?;
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended,
            () = tokio::time::sleep(HOLD / 3), if permit.is_some() => {
                let renew = json!({ "permit": permit, "hold": HOLD.as_secs() });
                if let Err((_, text)) = outpace.post("renew", &renew).await {
                    complain(&format!("the permit could not be renewed: {text}"));
                }
            }
        }
    };
    if permit.is_some() {
        // It would come back by itself, later.
        drop(outpace.post("release", &json!({ "permit": permit })).await);
    }
    ended.map_err(|error| (Exit::Internal, error.to_string()))
}

/// The outpace that is asked.
struct Outpace {
    authority: String,
    target: String,
    token: Option<String>,
    tasks: Tasks,
}

impl Outpace {
    fn find(args: &AcquireArgs) -> Result<Self, Failure> {
        let wrong = |text: String| (Exit::Usage, text);
        let authority = match (&args.config, &args.url) {
            (Some(path), _) => {
                let loaded = config::load(path, &config::process_environment, 0)
                    .map_err(|error| wrong(format!("the configuration is wrong:\n{error}")))?;
                reachable(loaded.config.settings.listen).to_string()
            }
            (None, Some(url)) => {
                let host = url
                    .host_str()
                    .ok_or_else(|| wrong(format!("`{url}` has no host")))?;
                format!("{host}:{}", url.port().unwrap_or(80))
            }
            (None, None) => {
                return Err(wrong("say which outpace: `--config` or `--url`".to_owned()));
            }
        };
        Ok(Self {
            authority,
            target: args.target.clone(),
            token: config::process_environment("OUTPACE_CLIENT_TOKEN"),
            tasks: Tasks::new(),
        })
    }

    async fn post(&self, verb: &str, body: &Value) -> Result<Value, Failure> {
        let away = |error: String| {
            let text = format!(
                "outpace does not answer at {}: {error}; is it running?",
                self.authority
            );
            (Exit::Port, text)
        };
        let stream = tokio::net::TcpStream::connect(&self.authority)
            .await
            .map_err(|error| away(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| away(error.to_string()))?;
        drop(self.tasks.spawn(connection));
        let path = format!("/v1/targets/{}/{verb}", self.target);
        let mut request = Request::post(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(CLIENT_TOKEN, token);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| (Exit::Usage, error.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| away(error.to_string()))?;
        let status = response.status();
        let bytes = response.into_body().collect().await;
        let bytes = bytes.map_err(|error| away(error.to_string()))?.to_bytes();
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let detail = answer
            .get("detail")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let exit = if status == StatusCode::TOO_MANY_REQUESTS {
            Exit::Later
        } else {
            Exit::Usage
        };
        Err((exit, format!("{} {detail}", status.as_u16())))
    }
}

/// An address to connect to for one to listen on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], listen.port()))
    } else {
        listen
    }
}
