//! `outpace env`: prints the environment variables with which programs use the proxy and trust its
//! CA.
use clap::{Args, ValueEnum};

use super::client::ConfigArgs;
use super::gateway;
use super::variables::variables;
use super::{Exit, Failure, print, print_error};
use crate::app::Trust;
use crate::config::Purpose;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  eval \"$(outpace env)\"\n  outpace env --shell fish | source\n  outpace env --client billing --shell docker > outpace.env\n  outpace env --gateway http://outpace.egress.svc:8080 --bundle /trust/bundle.pem --client billing --shell k8s"
)]
pub(super) struct EnvArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Client name from `clients` in the configuration (required if `clients` are configured)
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// URL of an outpace on another machine, for the variables of an app that uses it. No
    /// configuration file is read
    #[arg(
        long,
        value_name = "URL",
        requires = "bundle",
        conflicts_with = "config"
    )]
    gateway: Option<url::Url>,
    /// Path at which the app finds the bundle of roots, which the gateway serves at /bundle.pem of its
    /// admin port
    #[arg(long, value_name = "PATH", requires = "gateway")]
    bundle: Option<String>,
    /// Syntax of the printed variables
    #[arg(long, value_enum, default_value_t = Shell::Sh)]
    shell: Shell,
}

/// Syntax in which the variables are printed, depending on the program that reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// POSIX shells such as bash and zsh, with `eval "$(outpace env)"`
    Sh,
    /// The shell fish, with `outpace env --shell fish | source`
    Fish,
    /// The shell PowerShell, with `outpace env --shell powershell | Out-String | Invoke-Expression`
    Powershell,
    /// File for `docker run --env-file`
    Docker,
    /// Entries for the `env` list of a Kubernetes container
    K8s,
}

pub(super) fn run(args: &EnvArgs) -> Result<Exit, Failure> {
    if let (Some(gateway), Some(bundle)) = (&args.gateway, &args.bundle) {
        let client = args.client.as_deref();
        return Ok(print(&gateway::lines(args.shell, gateway, bundle, client)));
    }
    let purpose = Purpose::Programs(args.client.as_deref(), false);
    let trust = Trust::load(args.config.find().as_deref(), purpose)?;
    let proxy = trust.proxy_url(args.client.as_deref(), None)?;
    let environment = variables(&trust, &proxy, false)?;
    for problem in &environment.problems {
        print_error(problem);
    }
    let lines = environment
        .variables
        .iter()
        .map(|(name, value)| args.shell.line(name, value));
    Ok(print(&lines.collect::<String>()))
}

impl Shell {
    pub(super) fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Sh => format!("export {name}={}\n", quote(value, "'\\''")),
            Self::Fish => format!(
                "set -gx {name} {}\n",
                quote(&value.replace('\\', "\\\\"), "\\'")
            ),
            Self::Powershell => format!("$env:{name} = '{}'\n", value.replace('\'', "''")),
            // Docker takes the value literally, up to the end of the line.
            Self::Docker => format!("{name}={value}\n"),
            // A JSON string is also a valid YAML string.
            Self::K8s => format!(
                "- {{ name: {name}, value: {} }}\n",
                serde_json::json!(value)
            ),
        }
    }
}

/// Puts a value in single quotes if it needs them. `inner` replaces each single quote inside it.
fn quote(value: &str, inner: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/:.,_-@%+".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_every_shell() {
        let line = |shell: Shell, value| shell.line("A", value);
        assert_eq!(
            line(Shell::Sh, "http://127.0.0.1:8080"),
            "export A=http://127.0.0.1:8080\n"
        );
        assert_eq!(line(Shell::Sh, "it's a"), "export A='it'\\''s a'\n");
        assert_eq!(line(Shell::Sh, ""), "export A=''\n");
        assert_eq!(line(Shell::Fish, "it's \\"), "set -gx A 'it\\'s \\\\'\n");
        assert_eq!(line(Shell::Powershell, "it's"), "$env:A = 'it''s'\n");
        assert_eq!(line(Shell::Docker, "it's"), "A=it's\n");
        assert_eq!(
            line(Shell::K8s, "a\"b"),
            "- { name: A, value: \"a\\\"b\" }\n"
        );
    }
}
