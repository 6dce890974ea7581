//! Calls to a running outpace, for subcommands that ask it something.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::Exit;
use crate::config;
use crate::semantics::CLIENT_TOKEN;
use crate::shutdown::Tasks;

/// Which outpace is asked.
#[derive(Debug, Args)]
pub(super) struct WhereArgs {
    /// The configuration of the outpace to ask
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where outpace listens, instead of a configuration; OUTPACE_CLIENT_TOKEN holds `NAME:TOKEN`
    #[arg(long, value_name = "URL", conflicts_with = "config", global = true)]
    url: Option<url::Url>,
}

/// Why a call failed: the exit code and a sentence.
pub(super) type Failure = (Exit, String);

/// The outpace that is asked.
pub(super) struct Outpace {
    authority: String,
    token: Option<String>,
    tasks: Tasks,
}

impl Outpace {
    pub(super) fn find(args: &WhereArgs) -> Result<Self, Failure> {
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
            token: config::process_environment("OUTPACE_CLIENT_TOKEN"),
            tasks: Tasks::new(),
        })
    }

    /// One call.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
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
        let mut request = Request::builder()
            .method(method)
            .uri(path)
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
