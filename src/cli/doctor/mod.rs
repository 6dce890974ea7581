//! `outpace doctor`: checks the configuration, this machine and everything that outpace depends on,
//! and prints a remedy for each problem.

mod database;
mod disk;
mod files;
mod finding;
mod listeners;
mod machine;
mod network;
mod runtimes;
mod shell;

use std::path::Path;

use clap::Args;

use super::check::{CLIENT_TIMEOUTS, about_ca_files, warnings};
use super::client::{ConfigArgs, HERE};
use super::{Exit, Failure, block_on, load_config, print};
use crate::clock::Clock;
use crate::config::{self, Config, Loaded};
use crate::policy::Policy;
use finding::{Finding, Verdict};

/// Examples that the help ends with.
const EXAMPLES: &str = "Examples:
  outpace doctor                            check ./outpace.yaml and this machine
  outpace doctor -c /etc/outpace/outpace.yaml
  outpace doctor --json | jq '.checks[] | select(.verdict == \"fault\")'
  sudo -u outpace outpace doctor -c /etc/outpace/outpace.yaml   as the user of the service

The exit code is 0 if there is no fault, and 1 if there is one. Warnings are no faults.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    block_on(async {
        let findings = examine(args.config.find().as_deref()).await;
        print(&match args.json {
            true => format!("{:#}\n", finding::document(&findings)),
            false => finding::text(&findings),
        });
        Ok(match finding::count(&findings, Verdict::Fault) {
            0 => Exit::OK,
            _ => Exit::FAULT,
        })
    })
}

/// Runs all checks. Those that need the configuration are left out if it is invalid.
async fn examine(path: Option<&Path>) -> Vec<Finding> {
    let clock = Clock::system();
    let mut findings = machine::checks(&clock);
    let (loaded, finding) = load(path);
    findings.push(finding);
    let Some(loaded) = loaded else {
        return findings;
    };
    let Config { settings, policy } = &loaded.config;
    findings.extend(about_policy(&loaded.config));
    findings.push(about_timeouts(policy));
    findings.extend(path.map(files::configuration_mode));
    findings.extend(files::checks(&loaded));
    findings.extend(about_ca(&loaded.config));
    findings.extend(disk::checks(settings));
    findings.extend(listeners::checks(&loaded, path).await);
    findings.extend(network::checks(settings, policy).await);
    findings.extend(database::checks(settings, policy, &clock).await);
    findings.extend(shell::checks(&loaded.config).await);
    findings
}

fn load(path: Option<&Path>) -> (Option<Loaded>, Finding) {
    let check = "configuration";
    let Some(path) = path else {
        let defaults = config::parse(Path::new(HERE), "{}", &config::process_environment, 0);
        let remedy = format!("write {HERE}, or set `--config FILE`");
        let finding = Finding::warning(
            check,
            format!(
                "there is no {HERE} in this directory, so the defaults apply and nothing is paced"
            ),
            remedy,
        );
        return (defaults.ok(), finding);
    };
    match load_config(path) {
        Ok(loaded) => {
            let targets = loaded.config.policy.targets.len();
            let detail = format!("{} is valid; targets: {targets}", path.display());
            (Some(loaded), Finding::sound(check, detail))
        }
        Err(Failure(_, error)) => {
            let remedy = format!("correct {} and run `outpace check` on it", path.display());
            (None, Finding::fault(check, error, remedy))
        }
    }
}

/// Returns the warnings of `outpace check`, and what makes the policy without effect.
fn about_policy(config: &Config) -> Vec<Finding> {
    let check = "policy";
    let mut problems: Vec<Finding> = warnings(config)
        .iter()
        .map(|warning| Finding::of_message(check, warning).softened())
        .collect();
    if config
        .policy
        .targets
        .iter()
        .all(|target| target.limits.is_empty())
    {
        let remedy = "add `targets` with `limits` to the configuration";
        problems.push(Finding::warning(
            check,
            "no target has a limit, so nothing is paced",
            remedy,
        ));
    }
    for target in config.policy.targets.iter().filter(|target| target.observe) {
        let detail = format!(
            "target {} only counts its limits (`mode: observe`)",
            target.name
        );
        problems.push(Finding::warning(
            check,
            detail,
            "remove `mode: observe` when the counts look right",
        ));
    }
    finding::or_sound(
        problems,
        check,
        "all targets, costs and routes work as they look",
    )
}

/// Names the clients that stop waiting before the longest hold of a request is over.
fn about_timeouts(policy: &Policy) -> Finding {
    let check = "client_timeouts";
    let longest = policy.targets.iter().map(|target| target.max_wait).max();
    let Some(longest) = longest.filter(|wait| !wait.is_zero()) else {
        return Finding::skipped(check, "no target holds requests");
    };
    let earlier = CLIENT_TIMEOUTS.iter().filter(|(_, time)| *time <= longest);
    let earlier: Vec<&str> = earlier.map(|(client, _)| *client).collect();
    let wait = humantime::format_duration(longest);
    Finding::sound(
        check,
        match earlier.is_empty() {
            true => {
                format!("requests are held for up to {wait}, and the known clients wait longer")
            }
            false => format!(
                "requests are held for up to {wait}; these clients stop waiting earlier unless their timeout is raised: {}",
                earlier.join(", ")
            ),
        },
    )
}

fn about_ca(config: &Config) -> Vec<Finding> {
    let (source, policy) = (&config.settings.ca, &config.policy);
    let (cert, _) = source.paths();
    if !cert.exists() {
        return vec![Finding::skipped(
            "ca",
            "the CA is created at the first start",
        )];
    }
    let told = about_ca_files(source, policy);
    let problems = told.into_iter().map(|(is_fault, text)| {
        let finding = Finding::of_message("ca", &text);
        if is_fault {
            finding
        } else {
            finding.softened()
        }
    });
    let detail = format!("{} is valid, and its key is private", cert.display());
    finding::or_sound(problems.collect(), "ca", detail)
}
