//! `outpace check FILE`: the same code as start and reload, without starting.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, print, print_error};
use crate::config;
use crate::policy::{Policy, Unmatched};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file
    #[arg(value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(args: &CheckArgs) -> Exit {
    match config::load(&args.config, &config::process_environment, 0) {
        Err(error) => {
            print_error(&format!("the configuration is wrong:\n{error}"));
            Exit::Usage
        }
        Ok(loaded) => {
            print(&summary(&loaded.config.policy));
            Exit::Ok
        }
    }
}

/// What the file comes to, so that a reader can compare it with what was meant.
fn summary(policy: &Policy) -> String {
    let mut text = String::from("the configuration is sound\n");
    for target in &policy.targets {
        let hosts: Vec<String> = target.hosts.iter().map(ToString::to_string).collect();
        text.push_str(&format!("target {}: {}\n", target.name, hosts.join(", ")));
        for limit in &target.limits {
            let some = if limit.matcher.is_some() {
                ", for some requests"
            } else {
                ""
            };
            text.push_str(&format!("  limit {}: {}{some}\n", limit.name, limit.bound));
        }
        if target.limits.is_empty() {
            text.push_str("  no limit: nothing is paced\n");
        }
        let wait = humantime::format_duration(target.max_wait);
        text.push_str(&format!("  held for at most {wait}\n"));
        if target.overflow {
            text.push_str("  warning: beyond that it is kept and answered with 202, which most SDKs take for success; `Prefer: respond-async` lets each caller choose\n");
        }
    }
    text.push_str(match policy.unmatched {
        Unmatched::Tunnel => "other hosts: passed through unpaced\n",
        Unmatched::Refuse => "other hosts: refused\n",
    });
    text
}
