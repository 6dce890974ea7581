//! `outpace buffers`, `items` and `attempts`: daily work of an operator, through the admin port of a
//! running outpace.

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::client::{Instance, OperatorArgs};
use super::table::table;
use super::{Exit, Failure, block_on, print};
use crate::app::encoded;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace buffers\n  outpace buffers pause orders --reason maintenance\n  outpace buffers redrive orders --limit 100"
)]
pub(super) struct BuffersArgs {
    #[command(flatten)]
    place: OperatorArgs,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<BuffersCommand>,
}

#[derive(Debug, Subcommand)]
enum BuffersCommand {
    /// List all buffers with their item counts
    List,
    /// Show one buffer with its item counts
    Show {
        /// Name or id of the buffer
        buffer: String,
    },
    /// Stop sending the items of a buffer (`resume` continues)
    Pause {
        /// Name or id of the buffer
        buffer: String,
        /// Reason that the buffer will show (default: "by an operator")
        #[arg(long)]
        reason: Option<String>,
    },
    /// Continue sending the items of a paused buffer
    Resume {
        /// Name or id of the buffer
        buffer: String,
    },
    /// Remove the items in some states from a buffer. --state chooses the states
    Purge {
        /// Name or id of the buffer
        buffer: String,
        /// States of the items to remove
        #[arg(long, value_parser = possible(PURGES))]
        state: String,
    },
    /// Queue dead letters (items that were given up) and expired items again, with all retries
    Redrive {
        /// Name or id of the buffer
        buffer: String,
        /// Queue at most N items again, the oldest first (default: all)
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Keep each item at its old position, so that it is sent before newer items (default: move
        /// the items behind all others)
        #[arg(long)]
        head: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace items list orders --state dead\n  outpace items show ID --body"
)]
pub(super) struct ItemsArgs {
    #[command(flatten)]
    place: OperatorArgs,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: ItemsCommand,
}

#[derive(Debug, Args)]
struct OneItem {
    /// Id of the item
    item: String,
}

#[derive(Debug, Subcommand)]
enum ItemsCommand {
    /// List the items of a buffer in their sending order
    List {
        /// Name or id of the buffer
        buffer: String,
        /// List only items in this state: queued, waiting (for a retry), in_flight, delivered,
        /// dead, cancelled or expired
        #[arg(long)]
        state: Option<String>,
        /// Only items after this position (column PLACE)
        #[arg(long, value_name = "PLACE")]
        after: Option<i64>,
        /// List at most N items, up to 1000
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// Show one item with its latest attempts
    Show {
        /// Id of the item
        item: String,
        /// Show the stored request, too: its method, path and body, and the harmless header fields
        #[arg(long)]
        body: bool,
    },
    /// Cancel a queued or waiting item permanently (`buffers redrive` does not send it)
    Cancel(OneItem),
    /// End the wait of an item for its retry or start time, so that it is sent as soon as the order
    /// of its buffer and the limits allow
    Retry(OneItem),
    /// Mark a queued or waiting item as dead, so that only `buffers redrive` sends it
    Skip(OneItem),
}

#[derive(Debug, Args)]
pub(super) struct AttemptsArgs {
    #[command(flatten)]
    place: OperatorArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// List only attempts of this buffer (name or id)
    #[arg(long)]
    buffer: Option<String>,
    /// List only attempts of the item with this id
    #[arg(long)]
    item: Option<String>,
    /// List only attempts that the origin answered with this status code
    #[arg(long)]
    status: Option<u16>,
    /// List only attempts with this outcome
    #[arg(long, value_parser = possible(OUTCOMES))]
    outcome: Option<String>,
    /// List at most N attempts, up to 1000
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

/// States that `buffers purge` removes, each with its help text.
const PURGES: [(&str, &str); 3] = [
    (
        "queued",
        "items that are still to be sent, but not those in flight",
    ),
    ("dead", "dead letters: items that were given up"),
    (
        "history",
        "all delivered, dead, cancelled and expired items",
    ),
];

/// Outcomes of attempts in the order of [`crate::spool::OUTCOMES`], each with its help text.
const OUTCOMES: [(&str, &str); 11] = [
    (
        "delivered",
        "the origin accepted the item, or answered a deferred request",
    ),
    (
        "rejected",
        "the origin answered 3xx or 4xx, so the item is dead",
    ),
    (
        "refused",
        "the origin answered 408, 409, 423, 424 or 425; a retry is used",
    ),
    ("failed", "the origin answered 5xx; a retry is used"),
    (
        "parked",
        "the origin asked to wait (429, 529, or 503 with Retry-After); no retry is used",
    ),
    (
        "held",
        "outpace itself could not send the item yet; no retry is used",
    ),
    (
        "unsent",
        "no connection to the origin could be made; a retry is used",
    ),
    (
        "unknown",
        "the item was sent, but no complete response arrived",
    ),
    (
        "interrupted",
        "outpace stopped or lost the buffer during the attempt",
    ),
    ("exhausted", "the attempt failed, and no retries were left"),
    (
        "refused_by_policy",
        "outpace must not or cannot send this item, so it is dead",
    ),
];

/// Returns a parser for these values, which shows their help texts.
fn possible<const N: usize>(values: [(&'static str, &'static str); N]) -> PossibleValuesParser {
    PossibleValuesParser::new(values.map(|(name, help)| PossibleValue::new(name).help(help)))
}

const BUFFER: &str = "NAME /name, QUEUED /items/queued, WAITING /items/waiting, \
    IN FLIGHT /items/in_flight, DELIVERED /items/delivered, DEAD /items/dead, PAUSED /paused, \
    URL /url";
const ITEM: &str = "PLACE /seq, ITEM /id, STATE /state, ATTEMPTS /attempts, STATUS /last_status, \
    CREATED /created_at, NOT BEFORE /not_before, ERROR /last_error";
const ATTEMPT: &str = "STARTED /started_at, ITEM /item, N /n, OUTCOME /outcome, STATUS /status, \
    WAITED MS /waited_ms, TOOK MS /took_ms, ERROR /error";

/// Call of the API: its method, path and body.
type CliCall = (Method, String, Value);
/// Part of a response to print: the name of the list in it, if any, and the columns of the table.
type Shown = (Option<&'static str>, &'static str);

fn get(path: String) -> CliCall {
    (Method::GET, path, json!({}))
}

fn post(path: String, body: Value) -> CliCall {
    (Method::POST, path, body)
}

pub(super) fn buffers(args: &BuffersArgs) -> Result<Exit, Failure> {
    let of = |buffer: &str, verb: &str| format!("/v1/buffers/{}{verb}", encoded(buffer));
    let (call, list) = match args.what.as_ref().unwrap_or(&BuffersCommand::List) {
        BuffersCommand::List => (get("/v1/buffers".to_owned()), Some("buffers")),
        BuffersCommand::Show { buffer } => (get(of(buffer, "")), None),
        BuffersCommand::Pause { buffer, reason } => (
            post(of(buffer, "/pause"), json!({ "reason": reason })),
            None,
        ),
        BuffersCommand::Resume { buffer } => (post(of(buffer, "/resume"), json!({})), None),
        BuffersCommand::Purge { buffer, state } => {
            (post(of(buffer, "/purge"), json!({ "state": state })), None)
        }
        BuffersCommand::Redrive {
            buffer,
            limit,
            head,
        } => {
            let order = if *head { "head" } else { "tail" };
            let body = json!({ "order": order, "limit": limit });
            (post(of(buffer, "/redrive"), body), None)
        }
    };
    show(&args.place, args.json, call, (list, BUFFER))
}

pub(super) fn items(args: &ItemsArgs) -> Result<Exit, Failure> {
    let of = |named: &OneItem, verb: &str| format!("/v1/items/{}{verb}", encoded(&named.item));
    let (call, list) = match &args.what {
        ItemsCommand::List {
            buffer,
            state,
            after,
            limit,
        } => {
            let mut path = format!("/v1/buffers/{}/items?limit={limit}", encoded(buffer));
            path.extend(state.iter().map(|state| format!("&state={state}")));
            path.extend(after.iter().map(|after| format!("&after={after}")));
            (get(path), Some("items"))
        }
        ItemsCommand::Show { item, body } => return show_item(args, item, *body),
        ItemsCommand::Cancel(item) => (post(of(item, "/cancel"), json!({})), None),
        ItemsCommand::Retry(item) => (post(of(item, "/retry"), json!({})), None),
        ItemsCommand::Skip(item) => (post(of(item, "/skip"), json!({})), None),
    };
    show(&args.place, args.json, call, (list, ITEM))
}

/// Prints an item with its latest attempts, and its stored request if `body` is true.
fn show_item(args: &ItemsArgs, item: &str, body: bool) -> Result<Exit, Failure> {
    block_on(async {
        let outpace = Instance::spool(args.place.clone())?;
        let query = if body { "?body=true" } else { "" };
        let (method, path, none) = get(format!("/v1/items/{}{query}", encoded(item)));
        let shown = outpace.call(method, &path, &none).await?;
        let (method, path, none) = get(format!("/v1/items/{}/attempts", encoded(item)));
        let attempts = outpace.call(method, &path, &none).await?;
        if args.json {
            return Ok(print(&format!("{shown:#}\n{attempts:#}\n")));
        }
        let mut text = table(std::slice::from_ref(&shown), ITEM);
        let listed = attempts.get("attempts").and_then(Value::as_array);
        text.push_str(&table(listed.map_or(&[], Vec::as_slice), ATTEMPT));
        if let Some(request) = shown.get("request") {
            text.push_str(&request_text(request));
        }
        Ok(print(&text))
    })
}

/// Formats a stored request like a message of HTTP/1.1. A body that is no text is in base64.
fn request_text(request: &Value) -> String {
    let text = |name: &str| request.get(name).and_then(Value::as_str);
    let query = text("query").map(|query| format!("?{query}"));
    let mut lines = format!(
        "\n{} {}{}\n",
        text("method").unwrap_or("-"),
        text("path").or(text("url")).unwrap_or("-"),
        query.unwrap_or_default()
    );
    let headers = request.get("headers").and_then(Value::as_array);
    for field in headers.into_iter().flatten() {
        let part = |at: usize| field.get(at).and_then(Value::as_str).unwrap_or_default();
        lines.push_str(&format!("{}: {}\n", part(0), part(1)));
    }
    let body = text("body").or(text("body_base64")).unwrap_or_default();
    format!("{lines}\n{body}\n")
}

pub(super) fn attempts(args: &AttemptsArgs) -> Result<Exit, Failure> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &args.limit.to_string());
    let status = args.status.map(|status| status.to_string());
    for (key, value) in [
        ("buffer", &args.buffer),
        ("item", &args.item),
        ("status", &status),
        ("outcome", &args.outcome),
    ] {
        if let Some(value) = value {
            query.append_pair(key, value);
        }
    }
    let call = get(format!("/v1/attempts?{}", query.finish()));
    show(&args.place, args.json, call, (Some("attempts"), ATTEMPT))
}

fn show(
    place: &OperatorArgs,
    as_json: bool,
    (method, path, body): CliCall,
    (list, columns): Shown,
) -> Result<Exit, Failure> {
    block_on(async {
        let answer = Instance::spool(place.clone())?
            .call(method, &path, &body)
            .await?;
        if as_json {
            return Ok(print(&format!("{answer:#}\n")));
        }
        // The responses of `purge` and `redrive` contain nothing but a count.
        let plain = answer.as_object().filter(|fields| fields.len() == 1);
        if let Some((what, Value::Number(count))) = plain.and_then(|fields| fields.iter().next()) {
            return Ok(print(&format!("{count} {what}\n")));
        }
        let rows = list.and_then(|name| answer.get(name)?.as_array());
        let rows = rows.map_or(std::slice::from_ref(&answer), Vec::as_slice);
        Ok(print(&table(rows, columns)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_help_text() {
        assert_eq!(OUTCOMES.map(|(name, _)| name), crate::spool::OUTCOMES);
    }
}
