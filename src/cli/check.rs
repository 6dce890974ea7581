//! `outpace check FILE`: validates a configuration file with the code of start and reload, but
//! starts nothing.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, print, print_error};
use crate::config;
use crate::policy::{Policy, Unmatched};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Path of the configuration file
    #[arg(value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: &CheckArgs) -> Exit {
    match config::load(&args.config, &config::process_environment, 0) {
        Err(error) => {
            print_error(&format!("the configuration is invalid:\n{error}"));
            Exit::Usage
        }
        Ok(loaded) => {
            print(&summary(&loaded.config.policy));
            Exit::Ok
        }
    }
}

/// Summarises the resulting policy, so that a reader can compare it with the intended one.
fn summary(policy: &Policy) -> String {
    let mut text = String::from("the configuration is valid\n");
    for target in &policy.targets {
        let hosts: Vec<String> = target.hosts.iter().map(ToString::to_string).collect();
        text.push_str(&format!("target {}: {}\n", target.name, hosts.join(", ")));
        for limit in &target.limits {
            let some = if limit.matcher.is_some() {
                ", for matching requests"
            } else {
                ""
            };
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
