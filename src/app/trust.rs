//! Values that a client needs to use and trust the proxy: its URL, its CA and the bundle.
//!
//! The subcommands that print them share this module. A missing CA is created, so that apps can be
//! set up before the first start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{StartError, admin_token, data_dir};
use crate::clock::Clock;
use crate::config::{self, Config, ConfigError, Loaded, Purpose};
use crate::intercept::{CaNames, CaSource, CertificateAuthority, write_bundle};
use crate::origin::Roots;
use crate::policy::{COMMAND_NAME, Client, Policy, ServerTls};

/// CA of the proxy, with the paths of its files and the configuration that names them.
#[derive(Debug)]
pub struct Trust {
    /// Certificate authority that signs certificates for intercepted hosts.
    pub ca: CertificateAuthority,
    /// Path of the CA's certificate in PEM form.
    pub cert: PathBuf,
    /// Path of the CA's private key in PEM form.
    pub key: PathBuf,
    /// Path of the bundle, which holds the root certificates and the CA.
    pub bundle: PathBuf,
    loaded: Loaded,
}

impl Trust {
    /// Loads the part of the configuration file that is needed, or the defaults without one. Missing
    /// files of the CA are created.
    ///
    /// # Errors
    /// Returns a [`StartError`] if the configuration is invalid, or if the CA or a file cannot be
    /// used, for example because the CA has expired.
    pub fn load(config: Option<&Path>, purpose: Purpose<'_>) -> Result<Self, StartError> {
        let trust = Self::load_even_expired(config, purpose)?;
        trust.ca.check_valid(Clock::system().wall())?;
        Ok(trust)
    }

    /// Loads like [`Self::load`], but also a CA that has expired.
    ///
    /// # Errors
    /// Returns a [`StartError`] if the configuration is invalid, or if the CA or a file cannot be
    /// used.
    pub fn load_even_expired(
        config: Option<&Path>,
        purpose: Purpose<'_>,
    ) -> Result<Self, StartError> {
        let environment = config::process_environment;
        let loaded = match config {
            Some(path) => config::load_for(path, purpose, &environment)?,
            None => config::parse(Path::new("defaults"), "{}", &environment, 0)?,
        };
        let settings = &loaded.config.settings;
        data_dir::prepare(settings)?;
        let now = Clock::system().wall();
        let names = ca_names(&settings.ca, &loaded.config.policy);
        let ca = CertificateAuthority::load_or_make(&settings.ca, &names, now)?;
        let own = trust_dir(&settings.data_dir);
        let dir = settings.export_dir.as_ref().unwrap_or(&own);
        write_bundle(dir, &ca, Roots::system().certificates())?;
        let (cert, key) = settings.ca.paths();
        let bundle = dir.join("bundle.pem");
        Ok(Self {
            ca,
            cert,
            key,
            bundle,
            loaded,
        })
    }

    /// Returns the directory for files that only this user's programs read.
    pub fn own_dir(&self) -> PathBuf {
        trust_dir(self.data_dir())
    }

    /// Returns the directory in which the proxy keeps its state.
    pub fn data_dir(&self) -> &Path {
        &self.loaded.config.settings.data_dir
    }

    /// Returns the configuration that names the CA.
    pub const fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// Returns the bearer token for the admin port, if a running outpace has written one or the
    /// configuration sets one.
    pub fn admin_token(&self) -> Option<String> {
        admin_token(&self.loaded)
    }

    /// Returns the TLS of the admin port, if it has any.
    pub const fn admin_tls(&self) -> Option<&ServerTls> {
        self.loaded.config.policy.tls.admin.as_ref()
    }

    /// Returns the proxy's URL for the command of a session, with the token that the proxy asks of it.
    ///
    /// # Errors
    /// Returns [`StartError`] like [`Self::proxy_url`].
    pub fn session_url(
        &self,
        client: Option<&str>,
        at: SocketAddr,
        token: Option<&str>,
    ) -> Result<String, StartError> {
        let url = self.proxy_url(client, Some(at))?;
        match token {
            Some(token) => with_credentials(&url, COMMAND_NAME, token),
            None => Ok(url),
        }
    }

    /// Returns the proxy's URL for `client`, with credentials if `clients` are configured. The address
    /// is `at`, or the configured one.
    ///
    /// # Errors
    /// Returns [`StartError::Config`] if the client is unknown, or if none is named although
    /// `clients` are configured.
    pub fn proxy_url(
        &self,
        client: Option<&str>,
        at: Option<SocketAddr>,
    ) -> Result<String, StartError> {
        let Config { settings, policy } = &self.loaded.config;
        let public = settings.public_url.clone().filter(|_| at.is_none());
        let base = public.unwrap_or_else(|| {
            let mut address = at.unwrap_or(settings.listen);
            if address.ip().is_unspecified() {
                address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            let scheme = policy.tls.proxy.as_ref().map_or("http", |_| "https");
            format!("{scheme}://{address}")
        });
        let names: Vec<&str> = policy.clients.iter().map(|client| &*client.name).collect();
        match client {
            None if names.is_empty() => Ok(base),
            None => Err(ConfigError::about_client(format!(
                "`clients` are configured, so the command must name one; set `--client {}`",
                names.join("` or `--client ")
            ))
            .into()),
            Some(name) => with_credentials(&base, name, &client_token(policy, name)?),
        }
    }
}

/// Returns the URL with credentials in its user part.
fn with_credentials(base: &str, name: &str, token: &str) -> Result<String, StartError> {
    let mut url = url::Url::parse(base).map_err(|error| StartError::Internal(error.to_string()))?;
    let set = url.set_username(&encoded(name));
    set.and_then(|()| url.set_password(Some(&encoded(token))))
        .map_err(|()| StartError::Internal(format!("the URL {base} cannot carry credentials")))?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Returns the token of a client of the policy.
///
/// # Errors
/// Returns a [`ConfigError`] if the client is unknown, or if the policy holds only the digest of its
/// token and the environment does not hold the token.
pub fn client_token(policy: &Policy, name: &str) -> Result<String, ConfigError> {
    let mut clients = policy.clients.iter();
    let Some(client) = clients.find(|client| *client.name == *name) else {
        let names: Vec<&str> = policy.clients.iter().map(|client| &*client.name).collect();
        return Err(ConfigError::about_client(match names.is_empty() {
            true => format!(
                "no client is called `{name}`, because `clients` are not configured; leave `--client` out"
            ),
            false => format!(
                "no client is called `{name}`; the configured clients are: {}",
                names.join(", ")
            ),
        }));
    };
    token_of(client).ok_or_else(|| {
        ConfigError::about_client(format!(
            "the configuration holds only the digest of the token of `{name}`; set the environment variable OUTPACE_CLIENT_TOKEN to {name}:TOKEN"
        ))
    })
}

/// Returns the text of a client's token from the configuration. If it holds only a digest, the text
/// comes from the environment.
fn token_of(client: &Client) -> Option<String> {
    let known = client.token.reveal().map(str::to_owned);
    known.or_else(|| {
        let offered = config::process_environment("OUTPACE_CLIENT_TOKEN")?;
        let (name, token) = offered.split_once(':')?;
        let fits = name == &*client.name && client.token.matches(token);
        fits.then(|| token.to_owned())
    })
}

/// Characters of a name or token that are percent-encoded in a URL: all except the unreserved ones
/// (RFC 3986 section 2.3). Clients decode the rest in the same way.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Encodes a name or token for the user part of a URL, or a name for one segment of a path. `Url` itself leaves `%` as it is.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Returns the names for which a new CA may sign: all names, or with `constrain` the hosts of the
/// targets.
pub fn ca_names(source: &CaSource, policy: &Policy) -> CaNames {
    match source {
        CaSource::DataDir {
            constrain: true, ..
        } => CaNames::covering(policy.intercepted().map(|(_, host)| host)),
        CaSource::DataDir { .. } | CaSource::Supplied { .. } => CaNames::default(),
    }
}

/// Returns the directory for files that clients may read. A running proxy writes the bundle there,
/// too.
pub(super) fn trust_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("trust")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_carries_any_token() {
        let printable: String = (' '..='~').collect();
        for token in ["100%", "%41", "a%2Fb", "a+b c", "p@ss:w/rd?#", &*printable] {
            let mut url = url::Url::parse("http://127.0.0.1:8080").unwrap();
            url.set_username(&encoded("app%")).unwrap();
            url.set_password(Some(&encoded(token))).unwrap();
            let again = url::Url::parse(url.as_str()).unwrap();
            let decoded = percent_encoding::percent_decode_str(again.password().unwrap());
            assert_eq!(decoded.decode_utf8().unwrap(), token);
            let authority = url.as_str().strip_prefix("http://").unwrap();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%:@/".contains(&byte);
            assert!(authority.bytes().all(plain), "{authority}");
        }
    }
}
