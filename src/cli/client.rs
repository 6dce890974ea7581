//! Calls to a running outpace, for subcommands that ask it something.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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

/// The file that is looked for where none is named.
pub(super) const HERE: &str = "outpace.yaml";

/// Which outpace is asked.
#[derive(Debug, Args)]
pub(super) struct InstanceArgs {
    /// The configuration of the outpace to ask
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where outpace listens, instead of a configuration; OUTPACE_CLIENT_TOKEN holds `NAME:TOKEN`
    #[arg(long, value_name = "URL", conflicts_with = "config", global = true)]
    url: Option<url::Url>,
}

/// Whose admin port is asked.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The configuration of the outpace to ask; without it, `outpace.yaml` here
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Its admin port, instead of a configuration; OUTPACE_ADMIN_TOKEN holds its token
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<url::Url>,
}

/// Why a call failed: the exit code and a sentence.
pub(super) type Failure = (Exit, String);

/// The outpace that is asked.
pub(super) struct Instance {
    authority: String,
    token: Option<String>,
    bearer: Option<String>,
    tasks: Tasks,
}

impl Instance {
    pub(super) fn find(args: &InstanceArgs) -> Result<Self, Failure> {
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
            bearer: None,
            tasks: Tasks::new(),
        })
    }

    /// The admin port of an outpace.
    pub(super) fn admin(args: &AdminArgs) -> Result<Self, Failure> {
        let wrong = |text: String| (Exit::Usage, text);
        let mut bearer = config::process_environment("OUTPACE_ADMIN_TOKEN");
        let here = Path::new(HERE);
        let config = args.config.as_deref().or(here.exists().then_some(here));
        let authority = match (&args.admin, config) {
            (Some(url), _) => {
                let host = url.host_str();
                let host = host.ok_or_else(|| wrong(format!("`{url}` has no host")))?;
                format!("{host}:{}", url.port().unwrap_or(80))
            }
            (None, Some(path)) => {
                let loaded = config::load(path, &config::process_environment, 0)
                    .map_err(|error| wrong(format!("the configuration is wrong:\n{error}")))?;
                let token = loaded.admin_token.map(|token| token.reveal().to_owned());
                bearer = bearer.or(token);
                let settings = loaded.config.settings;
                // One that was started at any free port says where.
                let told = crate::app::serving(&settings.data_dir).map(|serving| serving.admin);
                reachable(told.unwrap_or(settings.admin_listen)).to_string()
            }
            (None, None) => {
                return Err(wrong(
                    "say which outpace: `--config` or `--admin`".to_owned(),
                ));
            }
        };
        Ok(Self {
            authority,
            token: None,
            bearer,
            tasks: Tasks::new(),
        })
    }

    /// What a path of its answers, as text.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let (status, bytes) = self.ask(Method::GET, path, &Value::Null).await?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err((Exit::Port, text.trim_end().to_owned()))
    }

    /// One call.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let (status, bytes) = self.ask(method, path, body).await?;
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

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes), Failure> {
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
        self.tasks.spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(CLIENT_TOKEN, token);
        }
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
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
        Ok((status, bytes))
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
