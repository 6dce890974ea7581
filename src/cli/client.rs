//! Calls of subcommands to a running outpace, each over its own HTTP/1.1 connection.

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

/// Name of the configuration file in the current directory that is used if none is named.
pub(super) const HERE: &str = "outpace.yaml";

/// Arguments that select the outpace to call on its proxy port.
#[derive(Debug, Args)]
pub(super) struct InstanceArgs {
    /// Configuration file of the running outpace (required without --url)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Proxy URL, used instead of --config. If `clients` are configured, set OUTPACE_CLIENT_TOKEN
    /// to NAME:TOKEN
    #[arg(long, value_name = "URL", conflicts_with = "config", global = true)]
    url: Option<url::Url>,
}

/// Arguments that select the outpace to call on its admin port.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// Configuration file of the running outpace (default: ./outpace.yaml)
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Admin URL, used instead of --config. If `admin.token` is configured, set OUTPACE_ADMIN_TOKEN
    /// to it
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<url::Url>,
}

/// Failure of a call: the exit code and the message to print.
pub(super) type Failure = (Exit, String);

/// Address and credentials of the running outpace to call.
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
                    .map_err(|error| wrong(format!("the configuration is invalid:\n{error}")))?;
                reachable(loaded.config.settings.listen).to_string()
            }
            (None, Some(url)) => {
                let host = url.host_str().ok_or_else(|| {
                    wrong(format!(
                        "`{url}` has no host; write it as \"http://HOST:PORT\""
                    ))
                })?;
                format!("{host}:{}", url.port().unwrap_or(80))
            }
            (None, None) => {
                return Err(wrong(
                    "no outpace was selected; set `--config` or `--url`".to_owned(),
                ));
            }
        };
        Ok(Self {
            authority,
            token: config::process_environment("OUTPACE_CLIENT_TOKEN"),
            bearer: None,
            tasks: Tasks::new(),
        })
    }

    /// Finds the admin port, from the arguments or from a configuration file.
    pub(super) fn admin(args: &AdminArgs) -> Result<Self, Failure> {
        let wrong = |text: String| (Exit::Usage, text);
        let mut bearer = config::process_environment("OUTPACE_ADMIN_TOKEN");
        let here = Path::new(HERE);
        let config = args.config.as_deref().or(here.exists().then_some(here));
        let authority = match (&args.admin, config) {
            (Some(url), _) => {
                let host = url.host_str();
                let host = host.ok_or_else(|| {
                    wrong(format!(
                        "`{url}` has no host; write it as \"http://HOST:PORT\""
                    ))
                })?;
                format!("{host}:{}", url.port().unwrap_or(80))
            }
            (None, Some(path)) => {
                let loaded = config::load(path, &config::process_environment, 0)
                    .map_err(|error| wrong(format!("the configuration is invalid:\n{error}")))?;
                let token = loaded.admin_token.map(|token| token.reveal().to_owned());
                bearer = bearer.or(token);
                let settings = loaded.config.settings;
                // An outpace that listens on a free port writes the address to `serving.json`.
                let told = crate::app::serving(&settings.data_dir).map(|serving| serving.admin);
                reachable(told.unwrap_or(settings.admin_listen)).to_string()
            }
            (None, None) => {
                return Err(wrong(
                    "no outpace was selected; set `--config` or `--admin`".to_owned(),
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

    /// Returns the response to a GET request for `path` as text. An error status fails with
    /// [`Exit::Port`] and the response text.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let (status, bytes) = self.ask(Method::GET, path, &Value::Null).await?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err((Exit::Port, text.trim_end().to_owned()))
    }

    /// Sends one call and returns the JSON response. Status 429 fails with [`Exit::Later`], any
    /// other error status with [`Exit::Usage`].
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
                "outpace does not answer at {}: {error}; start it, or check the address",
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

/// Returns the address to connect to for a listen address. An unspecified IP address becomes
/// 127.0.0.1.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], listen.port()))
    } else {
        listen
    }
}
