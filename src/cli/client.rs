//! Calls of subcommands to a running outpace, each over its own HTTP/1.1 connection.

use std::path::{Path, PathBuf};

use axum::BoxError;
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::{Exit, Failure, load_config_or_empty, load_for};
use crate::app::{StartError, admin_token, client_token, serving};
use crate::config::{self, Purpose};
use crate::semantics::CLIENT_TOKEN;

/// Name of the configuration file in the current directory that is used if none is named.
pub(super) const HERE: &str = "outpace.yaml";

/// Arguments that select the outpace to call on its proxy port.
#[derive(Debug, Args)]
pub(super) struct InstanceArgs {
    /// Configuration file of the running outpace (default: ./outpace.yaml, or that of the user)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// URL of the proxy, used instead of a configuration file. If `clients` are configured, set the
    /// environment variable OUTPACE_CLIENT_TOKEN to NAME:TOKEN
    #[arg(long, value_name = "URL", conflicts_with = "config", global = true)]
    url: Option<url::Url>,
    /// Client name from `clients` in the configuration, whose token is used
    #[arg(long, value_name = "NAME", conflicts_with = "url", global = true)]
    client: Option<String>,
}

/// Arguments that select the outpace whose spool is read or changed.
#[derive(Debug, Clone, Args)]
pub(super) struct OperatorArgs {
    /// Configuration file of the running outpace (default: ./outpace.yaml)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// URL of the admin port, used instead of a configuration file. Set the environment variable
    /// OUTPACE_ADMIN_TOKEN to `admin.token`, or to the text of the file `admin-token` in the data
    /// directory
    #[arg(long, value_name = "URL", conflicts_with = "config", global = true)]
    admin: Option<url::Url>,
    /// PEM file with further CA certificates for an `https` URL of the admin port (default: the
    /// environment variable OUTPACE_ADMIN_CA)
    #[arg(long, value_name = "FILE", requires = "admin", global = true)]
    admin_ca: Option<PathBuf>,
    /// URL of the proxy, to see only what one client may see. If `clients` are configured, set the
    /// environment variable OUTPACE_CLIENT_TOKEN to NAME:TOKEN
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "admin"], global = true)]
    url: Option<url::Url>,
    /// Client name from `clients` in the configuration, to see only what that client may see
    #[arg(long, value_name = "NAME", conflicts_with_all = ["url", "admin"], global = true)]
    client: Option<String>,
}

/// Arguments that select the outpace to call on its admin port.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// Configuration file of the running outpace (default: ./outpace.yaml)
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// URL of the admin port, used instead of a configuration file. Set the environment variable
    /// OUTPACE_ADMIN_TOKEN to `admin.token`, or to the text of the file `admin-token` in the data
    /// directory
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<url::Url>,
    /// PEM file with further CA certificates for an `https` URL of the admin port (default: the
    /// environment variable OUTPACE_ADMIN_CA)
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_ca: Option<PathBuf>,
}

impl AdminArgs {
    /// Returns the configuration file of the outpace, unless it is selected by a URL.
    pub(super) fn file(&self) -> Option<PathBuf> {
        match self.admin {
            Some(_) => None,
            None => config_or_here(self.config.as_deref()),
        }
    }

    /// Selects the outpace of a configuration file.
    pub(super) fn of_config(path: &Path) -> Self {
        Self {
            config: Some(path.to_owned()),
            admin: None,
            admin_ca: None,
        }
    }
}

/// Arguments that name the configuration file.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Configuration file (default: ./outpace.yaml, or else outpace/outpace.yaml in $XDG_CONFIG_HOME or
    /// ~/.config)
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// Returns the configuration file if there is one.
    pub(super) fn find(&self) -> Option<PathBuf> {
        config_or_here(self.config.as_deref())
    }

    /// Returns the configuration file, or a failure that says where it was looked for.
    pub(super) fn require(&self) -> Result<PathBuf, Failure> {
        self.find().ok_or_else(|| {
            let of_user = of_user().map(|path| format!(" and no {}", path.display()));
            let of_user = of_user.unwrap_or_default();
            let text = format!(
                "there is no {HERE} in this directory{of_user}; write one, or set `--config FILE`"
            );
            Failure(Exit::USAGE, text)
        })
    }
}

/// Returns the named configuration file, or else the first that exists: in the current directory, or
/// in the configuration directory of the user.
pub(super) fn config_or_here(named: Option<&Path>) -> Option<PathBuf> {
    let known = [Some(PathBuf::from(HERE)), of_user()].into_iter().flatten();
    let first = || known.into_iter().find(|path| path.exists());
    named.map(Path::to_owned).or_else(first)
}

/// Returns the place of the user's configuration file (XDG Base Directory Specification). A relative
/// path in the variable is not valid.
fn of_user() -> Option<PathBuf> {
    let absolute = |name| config::process_environment(name).map(PathBuf::from);
    let absolute = |name| absolute(name).filter(|path| path.is_absolute());
    let below_home = || Some(absolute("HOME")?.join(".config"));
    let home = absolute("XDG_CONFIG_HOME").or_else(below_home)?;
    Some(home.join("outpace").join(HERE))
}

/// Address and credentials of the running outpace to call.
pub(super) struct Instance {
    endpoint: Endpoint,
    credentials: Option<(HeaderName, String)>,
}

impl Instance {
    pub(super) fn find(args: &InstanceArgs) -> Result<Self, Failure> {
        let known = args
            .url
            .is_none()
            .then(|| config_or_here(args.config.as_deref()));
        let mut token = config::process_environment("OUTPACE_CLIENT_TOKEN");
        let endpoint = match known.flatten() {
            Some(path) => {
                let purpose = Purpose::Proxy(args.client.as_deref());
                let config = load_for(&path, purpose)?.config;
                if let Some(name) = &args.client {
                    let known = client_token(&config.policy, name).map_err(StartError::from)?;
                    token = Some(format!("{name}:{known}"));
                }
                // An outpace that listens on a free port writes the address to `serving.json`.
                let listen = serving(&config.settings.data_dir).map(|serving| serving.listen);
                let listen = listen.unwrap_or(config.settings.listen);
                Endpoint::listening(listen, config.policy.tls.proxy.as_ref())?
            }
            None => Endpoint::of_url(args.url.as_ref(), "--url", None)?,
        };
        Ok(Self {
            endpoint,
            credentials: token.map(|token| (CLIENT_TOKEN, token)),
        })
    }

    /// Finds the port for calls about the spool. It is the admin port, unless a URL of the proxy is
    /// given.
    pub(super) fn spool(args: OperatorArgs) -> Result<Self, Failure> {
        match (args.url, args.client) {
            (None, client @ Some(_)) => Self::find(&InstanceArgs {
                config: args.config,
                url: None,
                client,
            }),
            (url @ Some(_), _) => Self::find(&InstanceArgs {
                config: None,
                url,
                client: None,
            }),
            (None, None) => Self::admin(&AdminArgs {
                config: args.config,
                admin: args.admin,
                admin_ca: args.admin_ca,
            }),
        }
    }

    /// Finds the admin port, from the arguments or from a configuration file.
    pub(super) fn admin(args: &AdminArgs) -> Result<Self, Failure> {
        Self::admin_of(args, false)
    }

    /// Finds the admin port like [`Self::admin`]. With `or_empty`, an empty configuration file stands
    /// for the default of every key.
    pub(super) fn admin_of(args: &AdminArgs, or_empty: bool) -> Result<Self, Failure> {
        let mut bearer = config::process_environment("OUTPACE_ADMIN_TOKEN");
        let endpoint = match (
            &args.admin,
            config_or_here(args.config.as_deref()).as_deref(),
        ) {
            (None, Some(path)) => {
                let loaded = match or_empty {
                    true => load_config_or_empty(path)?,
                    false => load_for(path, Purpose::Admin)?,
                };
                bearer = bearer.or_else(|| admin_token(&loaded));
                let settings = &loaded.config.settings;
                // An outpace that listens on a free port writes the address to `serving.json`.
                let told = serving(&settings.data_dir).map(|serving| serving.admin);
                let address = told.unwrap_or(settings.admin_listen);
                Endpoint::listening(address, loaded.config.policy.tls.admin.as_ref())?
            }
            (url, _) => {
                let variable = config::process_environment("OUTPACE_ADMIN_CA").map(PathBuf::from);
                let ca = args.admin_ca.clone().or(variable);
                let endpoint = Endpoint::of_url(url.as_ref(), "--admin", ca.as_deref())?;
                bearer = bearer.or_else(|| token_of_here(&endpoint.authority));
                endpoint
            }
        };
        let bearer = bearer.map(|bearer| (header::AUTHORIZATION, format!("Bearer {bearer}")));
        Ok(Self {
            endpoint,
            credentials: bearer,
        })
    }

    /// Returns the response to a GET request for `path` as text. An error status fails with
    /// [`Exit::PORT`] and the response text.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        let (status, bytes) = self.ask(Method::GET, path, &Value::Null).await?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err(Failure(Exit::PORT, text.trim_end().to_owned()))
    }

    /// Sends one call and returns the JSON response. Status 429 fails with [`Exit::LATER`], any
    /// other error status with [`Exit::USAGE`].
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
        let detail = answer.get("detail").and_then(Value::as_str);
        let exit = match status {
            StatusCode::TOO_MANY_REQUESTS => Exit::LATER,
            _ => Exit::USAGE,
        };
        let text = format!("{} {}", status.as_u16(), detail.unwrap_or_default());
        Err(Failure(exit, text))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let away = |error: BoxError| {
            let text = format!(
                "outpace does not answer at {}: {error}; start it, or check the address",
                self.endpoint.authority
            );
            Failure(Exit::PORT, text)
        };
        let mut sender = self.endpoint.connect().await.map_err(away)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.endpoint.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some((name, value)) = &self.credentials {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(body.to_string()));
        let request = request.map_err(|error| Failure(Exit::USAGE, error.to_string()))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| away(error.into()))?;
        let status = response.status();
        let bytes = response.into_body().collect().await;
        Ok((
            status,
            bytes.map_err(|error| away(error.into()))?.to_bytes(),
        ))
    }
}

/// Returns the token for the admin port at `authority` if the outpace of the current directory serves
/// there. A token is never sent to another address.
fn token_of_here(authority: &str) -> Option<String> {
    let loaded = match config_or_here(None) {
        Some(path) => load_for(&path, Purpose::Admin).ok()?,
        None => config::parse(Path::new(HERE), "{}", &config::process_environment, 0).ok()?,
    };
    let known = serving(&loaded.config.settings.data_dir)?;
    (known.admin.to_string() == authority)
        .then(|| admin_token(&loaded))
        .flatten()
}
