//! `outpace status`, `explain` and `health`: print the state of a running outpace, read from its
//! admin port.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::blocks::COLUMNS;
use super::client::{AdminArgs, Instance};
use super::table::table;
use super::{Exit, Failure, block_on, fleet, load_config, print};
use crate::admin::{self, Question, explain};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// List the replicas that share the ledger instead, also those that are silent
    #[arg(long)]
    fleet: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace explain https://api.github.com/zen\n  outpace explain -X POST -d '{\"max_tokens\":900}' https://api.openai.com/v1/chat/completions"
)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// URL of the request to explain
    url: String,
    /// Method of the request (default: GET, or POST with --data)
    #[arg(long, short = 'X', value_name = "METHOD")]
    request: Option<String>,
    /// Header field of the request, as "name: value" (repeatable)
    #[arg(long = "header", short = 'H', value_name = "FIELD")]
    headers: Vec<String>,
    /// Body of the request
    #[arg(long, short, value_name = "BODY")]
    data: Option<String>,
    /// Name of the client that would send the request, from `clients` in the configuration
    /// (default: no client name)
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// IP address of the client that would send the request (default: no address)
    #[arg(long, value_name = "ADDRESS")]
    client_ip: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// Check instead that the start is complete and that no shutdown has begun
    #[arg(long)]
    ready: bool,
}

pub(super) fn health(args: &HealthArgs) -> Result<Exit, Failure> {
    let path = if args.ready { "/readyz" } else { "/healthz" };
    block_on(async { Ok(print(&Instance::admin(&args.place)?.text(path).await?)) })
}

pub(super) fn status(args: &StatusArgs) -> Result<Exit, Failure> {
    block_on(async {
        let outpace = Instance::admin(&args.place)?;
        let (path, words): (_, fn(&Value) -> String) = match args.fleet {
            true => ("/v1/replicas", fleet::shown),
            false => ("/v1/status", shown),
        };
        let told = outpace.call(Method::GET, path, &Value::Null).await?;
        Ok(print_told(&told, args.json, words))
    })
}

/// Prints a response as indented JSON, or as the text that `words` makes of it.
fn print_told(told: &Value, as_json: bool, words: fn(&Value) -> String) -> Exit {
    if as_json {
        return print(&format!("{told:#}\n"));
    }
    print(&words(told))
}

pub(super) fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let found = value.get(name).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn count(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// Formats the limits of a target that are in force, including limits that operators pinned.
fn limits(target: &Value) -> String {
    let limits = array(target, "limits").iter().map(|limit| {
        let (name, bound) = (text(limit, "name"), text(limit, "bound"));
        match text(limit, "pinned") {
            "" => format!("{name} {bound}"),
            pinned => format!("{name} {pinned} (pinned, configured as {bound})"),
        }
    });
    limits.collect::<Vec<_>>().join(", ")
}

/// Formats the blocks of all targets as a table, or as an empty text if there are none.
fn blocks(targets: &[Value]) -> String {
    let of_target = |target: &Value| {
        let mut blocks = array(target, "blocked").to_vec();
        for block in &mut blocks {
            block["target"] = text(target, "name").into();
        }
        blocks
    };
    let rows: Vec<Value> = targets.iter().flat_map(of_target).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut lines = format!("\nblocked by their origins:\n{}", table(&rows, COLUMNS));
    for target in targets {
        let left_out = count(target, "blocks_left_out");
        if left_out > 0 {
            let name = text(target, "name");
            lines.push_str(&format!(
                "{left_out} further blocks of {name}: `outpace blocks {name}`\n"
            ));
        }
    }
    lines.push_str("`outpace unblock TARGET [--limit NAME] [--key KEY]` lifts blocks\n");
    lines
}

/// Formats the use of the spool and its buffers.
fn spooled(spool: &Value) -> String {
    let (used, max) = (count(spool, "used_bytes"), count(spool, "max_bytes"));
    let free = count(spool, "free_bytes");
    let mut lines =
        format!("\nspool: {used} of {max} bytes are in use, {free} are free for pushes\n");
    if spool.get("buffers").is_some_and(Value::is_null) {
        lines.push_str("the buffers cannot be read now\n");
        return lines;
    }
    let buffers = array(spool, "buffers");
    if !buffers.is_empty() {
        let columns = "BUFFER /name, QUEUED /items/queued, WAITING /items/waiting, \
            IN FLIGHT /items/in_flight, DEAD /items/dead, OLDEST s /oldest_s, PAUSED /paused";
        lines.push_str(&table(buffers, columns));
    }
    match count(spool, "buffers_left_out") {
        0 => {}
        left_out => lines.push_str(&format!(
            "{left_out} further buffers: `outpace buffers list`\n"
        )),
    }
    lines
}

fn shown(told: &Value) -> String {
    let mut rows = array(told, "targets").to_vec();
    for row in &mut rows {
        row["rates"] = limits(row).into();
        let why = match row.get("blocked_for_s").and_then(Value::as_f64) {
            Some(wait) => format!("blocked by the origin for {wait} s"),
            None if count(row, "blocks") > 0 => {
                format!("blocked scopes: {}", count(row, "blocks"))
            }
            None if text(row, "mode") == "observe" => {
                format!(
                    "only observed, {} would have waited",
                    count(row, "would_hold")
                )
            }
            None => text(row, "ledger").to_owned(),
        };
        row["why"] = why.into();
    }
    let columns = "TARGET /name, RATES /rates, STATE /why, WAITING /waiting, \
        DELIVERED /delivered, REFUSED /refused, 429 BY ORIGIN /limited_by_origin";
    let mut shown = table(&rows, columns);
    shown.push_str(&blocks(&rows));
    if let Some(spool) = told.get("spool").filter(|spool| !spool.is_null()) {
        shown.push_str(&spooled(spool));
    }
    shown.push_str(&fleet::warnings(told));
    let problems = told.get("ca").map_or(&[][..], |ca| array(ca, "problems"));
    for problem in problems.iter().filter_map(Value::as_str) {
        shown.push_str(&format!("\nwarning: {problem}\n"));
    }
    let refusals = array(told, "refusals");
    if !refusals.is_empty() {
        let columns = "LAST REFUSALS /time, TARGET /target, REASON /reason, DETAIL /detail";
        shown.push('\n');
        shown.push_str(&table(refusals.get(..5).unwrap_or(refusals), columns));
    }
    shown
}

pub(super) fn explained(args: &ExplainArgs) -> Result<Exit, Failure> {
    block_on(async { Ok(print_told(&ask(args).await?, args.json, sentences)) })
}

async fn ask(args: &ExplainArgs) -> Result<Value, Failure> {
    let data = args.data.as_ref().map(|_| "POST".to_owned());
    let question = Question {
        url: args.url.clone(),
        method: args.request.clone().or(data),
        headers: args.headers.clone(),
        body: args.data.clone(),
        client: args.client.clone(),
        client_ip: args.client_ip.clone(),
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(question.pairs());
    let path = format!("/v1/explain?{}", query.finish());
    let outpace = Instance::admin(&args.place)?;
    let told = outpace.call(Method::GET, &path, &Value::Null).await;
    match (told, args.place.file()) {
        // outpace does not run, so the configuration alone explains the request.
        (Err(Failure(Exit::PORT, _)), Some(config)) => {
            let told = explain(&load_config(&config)?.config.policy, &question, None);
            told.map_err(|text| Failure(Exit::USAGE, text))
        }
        (told, _) => told,
    }
}

fn sentences(told: &Value) -> String {
    let verdict = format!("{}\n  {}\n", text(told, "url"), text(told, "verdict"));
    if told.get("target").is_none_or(Value::is_null) {
        return verdict;
    }
    let hosts = array(told, "hosts").iter().filter_map(Value::as_str);
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    let mut lines = format!("{verdict}  target {} ({hosts})", text(told, "target"));
    if let Some(remedy) = told.pointer("/blocked/remedy").and_then(Value::as_str) {
        lines = format!(
            "{verdict}  `{remedy}` lifts the block\n  target {} ({hosts})",
            text(told, "target")
        );
    }
    if let Some(lane) = told.get("lane").and_then(Value::as_str) {
        lines.push_str(&format!(", lane {lane}"));
    }
    if let Some(waiting) = told.get("waiting").and_then(Value::as_u64) {
        lines.push_str(&format!(", {waiting} waiting; {}", text(told, "ledger")));
    }
    lines.push_str("\n\n");
    let columns = "LIMIT /name, BOUND /bound, PINNED /pinned, APPLIES /applies, KEY /key, \
        COST /cost, FREE NOW /free_now, NEXT IN s /next_in_s";
    let limits = array(told, "limits");
    lines.push_str(&table(limits, columns));
    lines.push('\n');
    for line in limits.iter().flat_map(admin::sentences) {
        lines.push_str(&format!("  {line}\n"));
    }
    lines
}
