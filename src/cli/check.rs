//! `outpace check FILE`: validates a configuration file with the code of start and reload, but
//! starts nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::client::ConfigArgs;
use super::{Exit, Failure, load_config, print};
use crate::app::{StartError, ca_names};
use crate::bounds::BLOCK_MAX;
use crate::clock::Clock;
use crate::config::{Config, PostgresSettings, Settings, StoreSettings};
use crate::db::{Database, DatabaseError};
use crate::exchange::refused_credential;
use crate::intercept::{CaSource, CertificateAuthority};
use crate::policy::{
    Algorithm, Bound, Expression, Limit, Matcher, Policy, Target, TlsMode, Unmatched,
};
use crate::semantics::is_credential;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Configuration file, like `--config FILE`
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Also connect to the ledger's database, and print its version, schema and durability
    #[arg(long)]
    connect: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let path = args
        .file
        .clone()
        .map_or_else(|| args.config.require(), Ok)?;
    let config = load_config(&path)?.config;
    if let Some(postgres) = &config.settings.ledger.postgres {
        // The same error ends `serve`.
        Database::open(&postgres.source, 1, None).map_err(StartError::from)?;
    }
    let mut text = summary(&config.policy);
    text.push_str(&about_ca(&config.settings.ca, &config.policy));
    for warning in warnings(&config) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let exit = print(&text);
    match &config.settings.ledger.postgres {
        Some(postgres) if args.connect => super::block_on(connect(postgres, &config.settings)),
        None if args.connect => Ok(print(
            "database: none, because `ledger.postgres` is not set\n",
        )),
        _ => Ok(exit),
    }
}

/// Connects to the ledger's database and describes it. A database that `serve` would refuse is an
/// error, and so is one that does not answer.
async fn connect(postgres: &PostgresSettings, settings: &Settings) -> Result<Exit, Failure> {
    let reported = async {
        let database = Database::open(&postgres.source, 1, None)?;
        let report = database.report().await?;
        if !report.fits && !postgres.migrate {
            return Err(DatabaseError::TooOld);
        }
        let spool = settings.spool.as_ref();
        let needs_durable =
            spool.is_some_and(|spool| matches!(spool.store, StoreSettings::Postgres(_)));
        if needs_durable {
            database.must_be_durable().await?;
        }
        Ok(report)
    };
    let report = reported.await.map_err(|error: DatabaseError| {
        let exit = match &error {
            DatabaseError::Unreachable { .. } => Exit::PORT,
            _ => Exit::LEDGER,
        };
        Failure(exit, error.to_string())
    })?;
    let schema = match (report.schema, report.fits) {
        (Some(version), true) => format!("schema outpace at migration {version}"),
        (_, true) => "schema outpace".to_owned(),
        (_, false) => "no schema outpace yet, which `serve` creates".to_owned(),
    };
    let encrypted = match report.encrypted {
        true => "encrypted",
        false => "not encrypted",
    };
    Ok(print(&format!(
        "database {}: PostgreSQL {}, {schema}, synchronous_commit = {}, {encrypted}\n",
        report.place, report.version, report.synchronous_commit
    )))
}

/// Describes the constraints that a new CA gets, and the problems of the present CA. Nothing is
/// created.
fn about_ca(source: &CaSource, policy: &Policy) -> String {
    let mut text = String::new();
    let names = ca_names(source, policy);
    if names.is_constrained() {
        text.push_str(&format!("CA: a new one may sign only for {names}\n"));
    }
    let (cert, key) = source.paths();
    if !cert.exists() && !key.exists() {
        return text;
    }
    for (_, problem) in about_ca_files(source, policy) {
        text.push_str(&format!("warning: {problem}\n"));
    }
    text
}

/// Returns the problems of the present CA with their remedies. The flag is true for a problem that
/// prevents a start.
pub(super) fn about_ca_files(source: &CaSource, policy: &Policy) -> Vec<(bool, String)> {
    let now = Clock::system().wall();
    match CertificateAuthority::load(source) {
        Ok(ca) => {
            let is_fault = ca.check_valid(now).is_err();
            let findings = ca.findings(policy, now).into_iter();
            findings.map(|finding| (is_fault, finding)).collect()
        }
        Err(error) => vec![(true, error.to_string())],
    }
}

/// Returns what the file allows and what will not work as it looks, because of credentials.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let policy = &config.policy;
    let by_host = policy.routes_by_host.iter();
    let by_host = by_host.map(|(host, to)| (host.to_string(), to));
    let by_port = policy.routes_by_port.iter();
    let routes = by_host.chain(by_port.map(|(address, to)| (address.to_string(), to)));
    let mut warnings: Vec<String> = routes
        .filter_map(|(from, to)| {
            let target = policy.target(&to.host, to.port)?;
            let refusal = refused_credential(target, to)?;
            Some(format!(
                "the route `{from}` to {to} refuses every request: {refusal}"
            ))
        })
        .collect();
    warnings.sort();
    warnings.extend(policy.targets.iter().flat_map(|t| about_costs(t)));
    let too_long = policy.targets.iter();
    let too_long = too_long.filter(|target| target.max_wait > MOST_PATIENT);
    warnings.extend(too_long.map(|target| {
        let wait = humantime::format_duration(target.max_wait);
        format!("target {}: max_wait {wait} is longer than most clients wait ({}); set it below the timeout of your clients, or raise their timeout", target.name, client_timeouts())
    }));
    if let Some(spool) = &config.settings.spool
        && matches!(spool.store, StoreSettings::Postgres(_))
        && spool.keys.is_empty()
    {
        warnings.push("`spool.key` is not set: the database holds requests and responses in clear, and requests with credentials are refused (422)".to_owned());
    }
    warnings
}

/// Times after which clients stop waiting for a response by default.
pub(super) const CLIENT_TIMEOUTS: [(&str, Duration); 7] = [
    ("httpx", Duration::from_secs(5)),
    ("boto3", Duration::from_secs(60)),
    ("Net::HTTP of Ruby", Duration::from_secs(60)),
    ("stripe", Duration::from_secs(80)),
    ("fetch of Node", MOST_PATIENT),
    ("aiohttp", MOST_PATIENT),
    ("openai and anthropic", Duration::from_secs(600)),
];
/// Timeout of the general clients that wait for longest.
const MOST_PATIENT: Duration = Duration::from_secs(300);

/// Returns the default timeouts of clients in words.
pub(super) fn client_timeouts() -> String {
    let words = CLIENT_TIMEOUTS
        .map(|(client, timeout)| format!("{client} {}", humantime::format_duration(timeout)));
    words.join(", ")
}

/// Returns what costs of a target cannot see, with the remedy.
fn about_costs(target: &Target) -> Vec<String> {
    let mut warnings = Vec::new();
    let limits = target.limits.iter();
    for (limit, cost) in limits.filter_map(|limit| Some((limit, limit.cost.as_ref()?))) {
        let place = format!("limit {} of target {}", limit.name, target.name);
        let settle: Vec<&str> = cost.settle.iter().flat_map(Expression::pointers).collect();
        if target.tls == TlsMode::Tunnel {
            warnings.push(format!("{place}: a tunnel hides requests and responses, so each costs 1; use `tls: intercept`"));
        }
        let by_request = [
            "/usage/total_tokens",
            "/usage/completion_tokens",
            "/usage/prompt_tokens",
        ];
        if settle.iter().any(|pointer| by_request.contains(pointer)) {
            warnings.push(format!("{place}: a stream states `usage` only if its request sets `\"stream_options\": {{\"include_usage\": true}}`; without it the estimate stays, which outpace_responses_without_usage_total counts"));
        }
        let elsewhere = [
            "/message/usage/input_tokens",
            "/response/usage/input_tokens",
        ];
        if settle.contains(&"/usage/input_tokens") && !settle.iter().any(|p| elsewhere.contains(p))
        {
            warnings.push(format!("{place}: a stream states its input tokens at another place; add \"json:/message/usage/input_tokens\" (Anthropic) or \"json:/response/usage/input_tokens\" (OpenAI Responses) to the list"));
        }
    }
    warnings
}

/// Describes a limit with its units, key, conditions and cost.
fn described(limit: &Limit) -> String {
    let mut text = format!("{}: {}", limit.name, limit.amount(limit.bound));
    if let Bound::Rate {
        rate,
        algorithm: Algorithm::TokenBucket { burst: Some(burst) },
    } = limit.bound
        && burst > 1
    {
        let most = u64::from(rate.count()) + u64::from(burst);
        let period = humantime::format_duration(rate.period());
        text.push_str(&format!(" (up to {most} within {period})"));
    }
    if let Some(key) = &limit.key {
        text.push_str(&format!(", per {key} (at most {} keys)", limit.max_keys));
    }
    text.push_str(&limit.matcher.as_ref().map_or_else(String::new, conditions));
    if let Some(cost) = &limit.cost {
        let settle = cost.settled_by();
        let settle = settle.map(|settle| format!(", settled by {settle}"));
        text.push_str(&format!(
            ", cost {}, at most {}{}",
            cost.estimated_by(),
            cost.max,
            settle.unwrap_or_default()
        ));
    }
    text
}

/// Describes the requests that a limit or lane is for.
fn conditions(matcher: &Matcher) -> String {
    let conditions = matcher.conditions();
    let conditions: Vec<String> = conditions.map(|one| one.shown(is_credential)).collect();
    format!(", for requests with {}", conditions.join(" and "))
}

/// Summarises the resulting policy, so that a reader can compare it with the intended one.
fn summary(policy: &Policy) -> String {
    let mut text = String::from("the configuration is valid\n");
    for target in &policy.targets {
        let hosts: Vec<String> = target.hosts.iter().map(ToString::to_string).collect();
        text.push_str(&format!("target {}: {}\n", target.name, hosts.join(", ")));
        for limit in &target.limits {
            text.push_str(&format!("  limit {}\n", described(limit)));
        }
        for lane in &target.lanes {
            let reserve = f64::from(lane.reserve_ppm) / 10_000.0;
            let matcher = lane.matcher.as_ref().map_or_else(String::new, conditions);
            let (name, weight) = (&lane.name, lane.weight);
            text.push_str(&format!(
                "  lane {name}: weight {weight}, reserve {reserve}%{matcher}\n"
            ));
        }
        for rule in target.signals.shown(is_credential) {
            text.push_str(&format!("  signal {rule}\n"));
        }
        if target.limits.is_empty() {
            text.push_str("  no limits: requests are not paced\n");
        }
        let wait = humantime::format_duration(target.max_wait);
        text.push_str(&format!("  maximum wait: {wait}\n"));
        if target.block_max != BLOCK_MAX {
            let block = humantime::format_duration(target.block_max);
            text.push_str(&format!("  longest block by the origin: {block}\n"));
        }
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
