//! `outpace env`: what a shell needs so that programs use the proxy and trust its CA.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, complain, print};
use crate::app::{StartError, Trust};

#[derive(Debug, Args)]
pub(super) struct EnvArgs {
    /// The configuration file; without it, the defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The client to be, where `clients` are configured
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
}

pub(super) fn run(args: &EnvArgs) -> Exit {
    match variables(args) {
        Ok(variables) => {
            let line = |(name, value): &(&str, String)| format!("export {name}={}\n", quote(value));
            print(&variables.iter().map(line).collect::<String>());
            Exit::Ok
        }
        Err(error) => {
            complain(&error.to_string());
            Exit::from(&error)
        }
    }
}

/// Variables that make a program use the proxy. Both spellings are read by somebody.
const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables that *replace* a program's roots: they get the roots and our CA.
const REPLACING: [&str; 11] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "BUNDLE_SSL_CA_CERT",
    "NPM_CONFIG_CAFILE",
    "npm_config_cafile",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
];
/// Variables that *add* to a program's roots: they get our CA alone.
const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Where the proxy is not for: itself, and addresses that it refuses.
const NO_PROXY: &str =
    "localhost,127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local";

fn variables(args: &EnvArgs) -> Result<Vec<(&'static str, String)>, StartError> {
    let trust = Trust::load(args.config.as_deref())?;
    let proxy = trust.proxy_url(args.client.as_deref())?;
    let ourselves = url::Url::parse(&proxy)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned));
    let mut no_proxy = NO_PROXY.to_owned();
    if let Some(host) = ourselves.filter(|host| !NO_PROXY.split(',').any(|known| known == host)) {
        no_proxy = format!("{no_proxy},{host}");
    }
    let absolute = |path: &std::path::Path| {
        std::path::absolute(path)
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string()
    };
    let mut variables: Vec<(&'static str, String)> = Vec::new();
    variables.extend(PROXY.map(|name| (name, proxy.clone())));
    variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, no_proxy.clone())));
    variables.extend(REPLACING.map(|name| (name, absolute(&trust.bundle))));
    variables.extend(ADDING.map(|name| (name, absolute(&trust.cert))));
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    variables.push(("UV_NATIVE_TLS", "1".to_owned()));
    Ok(variables)
}

/// For a POSIX shell.
fn quote(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/:.,_-@%+".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_shell() {
        assert_eq!(quote("http://127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(quote("/a b"), "'/a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
        assert_eq!(quote(""), "''");
    }
}
