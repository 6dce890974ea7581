//! The URL of a Postgres database. It is parsed here because the driver ignores unknown parameters
//! and knows only one host.
//!
//! No message contains a part of the URL that may belong to a password. So a text with an unescaped
//! character that could be part of the password is refused as a whole.

mod passfile;
mod values;

use std::path::PathBuf;
use std::str::FromStr as _;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use passfile::password_of;
use values::{binding, connect_timeout, session, settings_of};

use crate::bounds::{DATABASE_CONNECT_TIMEOUT, DATABASE_HOSTS};
use crate::files;
use crate::policy::Secret;

const DEFAULT_PORT: u16 = 5432;
/// Parameters that a URL may have, for the message about an unknown one.
const KNOWN: &str = "application_name, channel_binding, connect_timeout, dbname, host, hostaddr, options, passfile, password, port, sslcert, sslkey, sslmode, sslrootcert, target_session_attrs, user";

/// Reason why a URL is refused. No message contains a part of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The URL does not begin with the scheme of Postgres.
    #[error(
        "it is not the URL of a Postgres database; write it as \"postgres://user:password@host/database\""
    )]
    Scheme,
    /// The URL has an unescaped character, so its parts are not certain.
    #[error(
        "its parts are not certain; escape these characters in user, password and database: `%` as %25, `@` as %40, `/` as %2F, `?` as %3F, `#` as %23, `:` as %3A, space as %20"
    )]
    Ambiguous,
    /// The URL has a percent sign without two hexadecimal digits, or it does not decode to UTF-8.
    #[error("it has an invalid percent escape; write a literal `%` as %25")]
    Escape,
    /// A host has characters that no host name has.
    #[error(
        "a host is neither a name, an address nor the directory of a socket; put IPv6 addresses in brackets, and escape `/` as %2F in a socket's directory"
    )]
    Host,
    /// A port is not a number between 1 and 65535.
    #[error("a port is not a number from 1 to 65535; escape `:` as %3A in user and password")]
    Port,
    /// The number of ports is neither one nor that of the hosts.
    #[error("it has several ports; write one port, or one for each host")]
    Ports,
    /// The URL has more hosts than are supported.
    #[error("it has more than {DATABASE_HOSTS} hosts; remove some")]
    Hosts,
    /// The URL has a parameter that is not supported. It would have no effect.
    #[error("{0} is unknown and would have no effect; remove it. Known are {KNOWN}")]
    Unknown(String),
    /// A parameter is known, but its value is not supported.
    #[error("{0}")]
    Value(&'static str),
}

/// Server of a database, by its name, address or socket.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPlace {
    /// Server of the driver's default settings.
    Default,
    /// Host name or IP address.
    Host(String),
    /// Directory of a Unix socket.
    Socket(String),
}

/// Server and port of one database host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DatabaseHost {
    server: HostPlace,
    port: Option<u16>,
}

impl DatabaseHost {
    /// Returns true if no network lies between this program and the server.
    fn is_local(&self) -> bool {
        match &self.server {
            HostPlace::Socket(_) => true,
            HostPlace::Default => PgConnectOptions::new_without_pgpass()
                .get_socket()
                .is_some(),
            HostPlace::Host(host) => {
                host == "localhost"
                    || host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// Returns the text of the server in a URL.
    fn in_url(&self) -> String {
        match &self.server {
            HostPlace::Default => String::new(),
            HostPlace::Host(host) if host.contains(':') => format!("[{host}]"),
            HostPlace::Host(host) => host.clone(),
            HostPlace::Socket(dir) => utf8_percent_encode(dir, NON_ALPHANUMERIC).to_string(),
        }
    }
}

impl std::fmt::Display for DatabaseHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let port = self.port.unwrap_or(DEFAULT_PORT);
        match &self.server {
            HostPlace::Default => {
                let known = PgConnectOptions::new_without_pgpass();
                write!(
                    f,
                    "{}:{}",
                    known.get_host(),
                    self.port.unwrap_or(known.get_port())
                )
            }
            HostPlace::Host(host) if host.contains(':') => write!(f, "[{host}]:{port}"),
            HostPlace::Host(host) => write!(f, "{host}:{port}"),
            HostPlace::Socket(dir) => write!(f, "{dir}:{port}"),
        }
    }
}

/// State that a server must have to be used, from `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionKind {
    /// Any state of the server.
    Any,
    /// The session accepts writes.
    ReadWrite,
    /// The server is not in recovery.
    Primary,
}

/// Parsed URL of a database, with one or several hosts.
#[derive(Clone)]
pub(super) struct DatabaseUrl {
    hosts: Vec<DatabaseHost>,
    user: Option<String>,
    password: Option<Secret>,
    database: Option<String>,
    ssl_mode: Option<PgSslMode>,
    files: CertificateFiles,
    passfile: Option<PathBuf>,
    application: Option<String>,
    settings: Vec<(String, String)>,
    pub(super) connect_timeout: Duration,
    pub(super) session: SessionKind,
}

/// Paths of the certificate files in a URL.
#[derive(Debug, Clone, Default)]
struct CertificateFiles {
    root: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

// Written by hand because the URL holds the password.
impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseUrl({})", self.place())
    }
}

impl DatabaseUrl {
    /// Parses a URL and checks all its parameters.
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        let scheme = ["postgres://", "postgresql://"];
        let rest = scheme.iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or(UrlError::Scheme)?;
        let (left, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = left.split_once('/').unwrap_or((left, ""));
        let (userinfo, hosts) = authority.split_once('@').unwrap_or(("", authority));
        let strange = |c: char| c.is_whitespace() || c.is_control() || c == '#';
        // An `@` at any other place may be the one that ends an unescaped password.
        let is_certain = !rest.contains(strange)
            && !hosts.contains('@')
            && !path.contains(['@', '/'])
            && !query.contains(['@', '?']);
        if !is_certain {
            return Err(UrlError::Ambiguous);
        }
        let (user, password) = match userinfo.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (userinfo, None),
        };
        let mut url = Self {
            hosts: hosts_of(hosts)?,
            user: filled(decoded(user)?),
            password: password.map(decoded).transpose()?.map(Secret::new),
            database: filled(decoded(path)?),
            ssl_mode: None,
            files: CertificateFiles::default(),
            passfile: None,
            application: None,
            settings: Vec::new(),
            connect_timeout: DATABASE_CONNECT_TIMEOUT,
            session: SessionKind::Any,
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let mut pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        });
        let pairs = pairs.by_ref().collect::<Result<Vec<_>, UrlError>>()?;
        let has_secret = pairs.iter().any(|(name, _)| name == "password");
        for (index, (name, value)) in pairs.into_iter().enumerate() {
            if !url.set(&name, value)? {
                // A name of other characters, or one beside a password, may be a part of it.
                let is_name = !has_secret && name.len() <= 40 && name.bytes().all(is_name_byte);
                let told = match is_name {
                    true => format!("the parameter `{name}`"),
                    false => format!("parameter number {}", index + 1),
                };
                return Err(UrlError::Unknown(told));
            }
        }
        url.finished()
    }

    /// Sets one parameter. Returns false if its name is unknown.
    fn set(&mut self, name: &str, value: String) -> Result<bool, UrlError> {
        let path = || Some(PathBuf::from(&value));
        match name {
            "application_name" => self.application = filled(value),
            "channel_binding" => binding(&value)?,
            "connect_timeout" => self.connect_timeout = connect_timeout(&value)?,
            "dbname" => self.database = filled(value),
            "host" | "hostaddr" => {
                let ports: Vec<_> = self.hosts.iter().map(|host| host.port).collect();
                self.hosts = hosts_of(&value)?;
                // A port of the authority is for the host in the parameter.
                if let [Some(port)] = ports[..] {
                    self.hosts
                        .iter_mut()
                        .for_each(|host| host.port = Some(port));
                }
            }
            "options" => self.settings.extend(settings_of(&value)?),
            "passfile" => self.passfile = path(),
            "password" => self.password = Some(Secret::new(value)),
            "port" => self.set_ports(&value)?,
            "sslcert" | "ssl-cert" => self.files.cert = path(),
            "sslkey" | "ssl-key" => self.files.key = path(),
            "sslmode" | "ssl-mode" => {
                let mode = PgSslMode::from_str(&value);
                self.ssl_mode = Some(mode.map_err(|_cause| UrlError::Value("`sslmode` is unknown; write disable, allow, prefer, require, verify-ca or verify-full"))?);
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.files.root = path(),
            "target_session_attrs" => self.session = session(&value)?,
            "user" => self.user = filled(value),
            name => {
                let option = name.strip_prefix("options[");
                let Some(option) = option.and_then(|name| name.strip_suffix(']')) else {
                    return Ok(false);
                };
                self.settings.push((option.to_owned(), value));
            }
        }
        Ok(true)
    }

    fn set_ports(&mut self, value: &str) -> Result<(), UrlError> {
        let ports: Vec<u16> = value.split(',').map(port).collect::<Result<_, _>>()?;
        if ports.len() != 1 && ports.len() != self.hosts.len() {
            return Err(UrlError::Ports);
        }
        for (host, port) in self.hosts.iter_mut().zip(ports.iter().cycle()) {
            host.port = Some(*port);
        }
        Ok(())
    }

    /// Applies the defaults that depend on several parts.
    fn finished(mut self) -> Result<Self, UrlError> {
        if self.hosts.len() > DATABASE_HOSTS {
            return Err(UrlError::Hosts);
        }
        // Of several hosts only one accepts writes, and outpace writes.
        if self.hosts.len() > 1 && self.session == SessionKind::Any {
            self.session = SessionKind::ReadWrite;
        }
        Ok(self)
    }

    /// Returns the number of hosts, which is at least one.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Returns hosts, ports and database name for messages, without user and password.
    pub(super) fn place(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        let database = self.database.as_deref().or(self.user.as_deref());
        format!("{}/{}", hosts.join(","), database.unwrap_or("-"))
    }

    /// Returns host and port at a position for messages.
    pub(super) fn host(&self, index: usize) -> String {
        self.hosts
            .get(index)
            .map_or_else(String::new, ToString::to_string)
    }

    /// Returns the first certificate file that cannot be read, with its parameter and the error.
    pub(super) fn missing_file(&self) -> Option<(&'static str, PathBuf, std::io::Error)> {
        let files = &self.files;
        let all = [
            ("sslrootcert", &files.root),
            ("sslcert", &files.cert),
            ("sslkey", &files.key),
        ];
        all.into_iter().find_map(|(name, path)| {
            let path = path.as_ref()?;
            let error = std::fs::File::open(path).err()?;
            Some((name, path.clone(), error))
        })
    }

    /// Returns the options of the driver for the host at a position. A password file is read here.
    pub(super) fn options(&self, index: usize) -> PgConnectOptions {
        let default = DatabaseHost {
            server: HostPlace::Default,
            port: None,
        };
        let host = self.hosts.get(index).unwrap_or(&default);
        let mut options = self.base(host);
        if let Some(password) = &self.password {
            options = options.password(password.reveal());
        } else if let Some(password) = self.passfile.as_deref().and_then(|path| {
            let text = files::read_regular(path).ok()?;
            password_of(
                &text,
                host,
                options.get_username(),
                self.database.as_deref(),
            )
        }) {
            options = options.password(password.reveal());
        }
        let mode = self
            .ssl_mode
            .unwrap_or_else(|| match options.get_ssl_mode() {
                // Without encryption anyone on the network path could read the password.
                PgSslMode::Prefer | PgSslMode::Allow if !host.is_local() => PgSslMode::Require,
                known => known,
            });
        options = options.ssl_mode(mode);
        let files = &self.files;
        if let Some(path) = &files.root {
            options = options.ssl_root_cert(path);
        }
        if let Some(path) = &files.cert {
            options = options.ssl_client_cert(path);
        }
        if let Some(path) = &files.key {
            options = options.ssl_client_key(path);
        }
        if !self.settings.is_empty() {
            options = options.options(self.settings.iter().map(|(name, value)| (name, value)));
        }
        let application = self.application.as_deref().unwrap_or("outpace");
        options
            .application_name(application)
            // PgBouncer refuses start-up parameters that are unknown to it.
            .extra_float_digits(None)
            .statement_cache_capacity(0)
            .disable_statement_logging()
    }

    /// Returns options with host, user and database. The driver adds a password from the user's
    /// `.pgpass`, as `psql` does.
    fn base(&self, host: &DatabaseHost) -> PgConnectOptions {
        let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = self.user.as_deref().map(escaped);
        let user = user.map_or_else(String::new, |user| format!("{user}@"));
        // A port without a host is no URL.
        let port = host.port.filter(|_| host.server != HostPlace::Default);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let database = self.database.as_deref().map_or_else(String::new, escaped);
        let user = if host.server == HostPlace::Default {
            String::new()
        } else {
            user
        };
        let url = format!("postgres://{user}{}{port}/{database}", host.in_url());
        let options = PgConnectOptions::from_str(&url);
        let mut options = options.unwrap_or_else(|_| PgConnectOptions::new_without_pgpass());
        if let Some(user) = &self.user {
            options = options.username(user);
        }
        match (&host.server, host.port) {
            (HostPlace::Default, Some(port)) => options.port(port),
            _ => options,
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-')
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Decodes percent escapes. Unlike in a form, `+` is a plus sign.
fn decoded(text: &str) -> Result<String, UrlError> {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let mut percents = text.match_indices('%');
    if !percents.all(|(at, _)| hex(at + 1) && hex(at + 2)) {
        return Err(UrlError::Escape);
    }
    let text = percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_cause| UrlError::Escape)?;
    match text.contains('\0') {
        true => Err(UrlError::Escape),
        false => Ok(text.into_owned()),
    }
}

fn port(text: &str) -> Result<u16, UrlError> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or(UrlError::Port)
}

fn hosts_of(text: &str) -> Result<Vec<DatabaseHost>, UrlError> {
    text.split(',').map(host_of).collect()
}

fn host_of(text: &str) -> Result<DatabaseHost, UrlError> {
    let (name, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or(UrlError::Host)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(text) => Some(port(text)?),
        None if rest.is_empty() => None,
        None => return Err(UrlError::Host),
    };
    let name = decoded(name)?;
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let server = if name.is_empty() && !text.starts_with('[') {
        HostPlace::Default
    } else if name.starts_with('/') {
        HostPlace::Socket(name)
    } else if text.starts_with('[') {
        let address = name.parse::<std::net::Ipv6Addr>();
        HostPlace::Host(address.map_err(|_cause| UrlError::Host)?.to_string())
    } else if name.chars().all(is_host) {
        HostPlace::Host(name)
    } else {
        return Err(UrlError::Host);
    };
    Ok(DatabaseHost { server, port })
}

/// Checks a URL without a connection.
///
/// # Errors
/// Returns a [`UrlError`] if the URL cannot be used.
pub fn check_url(url: &Secret) -> Result<(), UrlError> {
    DatabaseUrl::parse(url.reveal()).map(drop)
}

#[cfg(test)]
mod tests;
