//! `outpace check FILE`: validates a configuration file with the code of start and reload, but
//! starts nothing.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, load_config, print};
use crate::policy::{Policy, Unmatched};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Path of the configuration file
    #[arg(value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    Ok(print(&summary(&load_config(&args.config)?.config.policy)))
}

/// Summarises the resulting policy, so that a reader can compare it with the intended one.
fn summary(policy: &Policy) -> String {
    let mut text = String::from("the configuration is valid\n");
    for target in &policy.targets {
        let hosts: Vec<String> = target.hosts.iter().map(ToString::to_string).collect();
        text.push_str(&format!("target {}: {}\n", target.name, hosts.join(", ")));
        for limit in &target.limits {
            let some = limit
                .matcher
                .as_ref()
                .map_or("", |_| ", for matching requests");
            text.push_str(&format!("  limit {}: {}{some}\n", limit.name, limit.bound));
        }
        if target.limits.is_empty() {
            text.push_str("  no limits: requests are not paced\n");
        }
        let wait = humantime::format_duration(target.max_wait);
        text.push_str(&format!("  maximum wait: {wait}\n"));
        if target.overflow {
            text.push_str("  warning: requests that would wait longer are spooled and answered with 202, which most SDKs take for success; use `Prefer: respond-async` instead to let each caller choose\n");
        }
    }
    text.push_str(match policy.unmatched {
        Unmatched::Tunnel => "other hosts: passed through unpaced\n",
        Unmatched::Refuse => "other hosts: refused\n",
    });
    text
}
