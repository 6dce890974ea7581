//! Parent proxy through which connections to origins are opened, and its `CONNECT`.

use http::HeaderValue;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{NoProxy, OriginError};
use crate::units::{HostName, Origin};

/// Parent proxy that connections to origins go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentProxy {
    /// Host name or address of the parent proxy.
    pub host: HostName,
    /// TCP port of the parent proxy.
    pub port: u16,
    /// Value of `Proxy-Authorization` for the parent proxy, if it requires one.
    pub authorization: Option<HeaderValue>,
    /// Origins that are reached without the parent proxy.
    pub no_proxy: NoProxy,
}

impl ParentProxy {
    /// Reads the URL of an `http` proxy, also with a user and a password. Returns `None` for any other
    /// text. The text may hold a password, so the caller must not print it.
    pub fn parse(text: &str) -> Option<Self> {
        use base64::Engine as _;
        let url = url::Url::parse(text)
            .ok()
            .filter(|url| url.scheme() == "http")?;
        let host = HostName::parse(url.host_str()?).ok()?;
        let authorization = (!url.username().is_empty()).then(|| {
            let password = url.password().unwrap_or_default();
            let pair = format!("{}:{password}", url.username());
            let pair: Vec<u8> = percent_decode_str(&pair).collect();
            let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
            let mut value = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Some(Self {
            host,
            port: url.port().unwrap_or(80),
            authorization: authorization.flatten(),
            no_proxy: NoProxy::default(),
        })
    }

    /// Returns true if connections to this origin go through the parent proxy.
    pub fn serves(&self, origin: &Origin) -> bool {
        self.no_proxy
            .exempting(&origin.host, Some(origin.port))
            .is_none()
    }

    /// Returns the error of a connection to the parent proxy that failed or broke.
    pub(super) fn failed(&self, cause: impl std::fmt::Display) -> OriginError {
        self.refused(cause, true)
    }

    fn refused(&self, cause: impl std::fmt::Display, passing: bool) -> OriginError {
        OriginError::ParentProxy {
            cause: format!("{}:{}: {cause}", self.host, self.port),
            passing,
        }
    }

    /// Opens a tunnel to the origin on a connection to the parent proxy.
    pub(super) async fn tunnel(
        &self,
        tcp: &mut TcpStream,
        origin: &Origin,
    ) -> Result<(), OriginError> {
        let Origin { host, port, .. } = origin;
        let mut head =
            format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            let value = authorization.as_bytes();
            head.extend([&b"Proxy-Authorization: "[..], value, b"\r\n"].concat());
        }
        head.extend_from_slice(b"\r\n");
        tcp.write_all(&head)
            .await
            .map_err(|error| self.failed(error))?;
        self.read_reply(tcp).await
    }

    /// Reads the parent's response head byte by byte. The bytes after the head belong to the tunnel.
    ///
    /// # Errors
    /// Returns [`OriginError::ParentProxy`] if the head is too long or its status is not 2xx.
    async fn read_reply(&self, tcp: &mut TcpStream) -> Result<(), OriginError> {
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tcp.read_u8().await.map_err(|error| self.failed(error))?;
            head.push(byte);
            if head.len() > REPLY_MAX {
                return Err(self.refused("its response head is too long", false));
            }
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let status = line.split(' ').nth(1).unwrap_or_default();
        if line.starts_with("HTTP/1.") && status.len() == 3 && status.starts_with('2') {
            Ok(())
        } else {
            // A refusal by status 4xx is a decision of the parent. Other statuses are its troubles.
            let passing = !status.starts_with('4') || matches!(status, "408" | "425" | "429");
            let line = line.chars().take(80).collect::<String>();
            Err(self.refused(format_args!("it responded with `{line}`"), passing))
        }
    }
}

/// Maximum length of the head of a response to `CONNECT`.
const REPLY_MAX: usize = 8 * 1024;
