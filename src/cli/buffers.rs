//! `outpace buffers`, `items` and `attempts`: daily work of an operator, through the API of a
//! running outpace.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::client::{Failure, Instance, InstanceArgs};
use super::table::table;
use super::{Exit, block_on, print, print_error};

#[derive(Debug, Args)]
pub(super) struct BuffersArgs {
    #[command(flatten)]
    place: InstanceArgs,
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
        /// Reason for the pause, shown with the buffer (default: "by an operator")
        #[arg(long)]
        reason: Option<String>,
    },
    /// Continue sending the items of a paused buffer
    Resume {
        /// Name or id of the buffer
        buffer: String,
    },
    /// Remove items from a buffer, selected with --state
    Purge {
        /// Name or id of the buffer
        buffer: String,
        /// State of the items to remove: queued (with waiting items), dead, or history (delivered,
        /// dead, cancelled and expired items)
        #[arg(long)]
        state: String,
    },
    /// Send failed (dead) and expired items again
    Redrive {
        /// Name or id of the buffer
        buffer: String,
        /// Send at most N items again, the oldest first (default: all)
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        /// Put the items before newer items (default: after them)
        #[arg(long)]
        head: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ItemsArgs {
    #[command(flatten)]
    place: InstanceArgs,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: ItemsCommand,
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
        /// List only items after this place (column PLACE of the list)
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
    },
    /// Cancel a queued or waiting item permanently (`buffers redrive` does not send it)
    Cancel {
        /// Id of the item
        item: String,
    },
    /// Clear the delay of a queued or waiting item, so that it can be sent immediately
    Retry {
        /// Id of the item
        item: String,
    },
    /// Mark a queued or waiting item as dead, so that only `buffers redrive` sends it
    Skip {
        /// Id of the item
        item: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct AttemptsArgs {
    #[command(flatten)]
    place: InstanceArgs,
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
    /// List only attempts with this outcome: delivered, rejected, refused, failed, parked, held,
    /// unsent, unknown, interrupted, exhausted or refused_by_policy
    #[arg(long)]
    outcome: Option<String>,
    /// List at most N attempts, up to 1000
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
}

const BUFFER: [(&str, &str); 8] = [
    ("NAME", "/name"),
    ("QUEUED", "/items/queued"),
    ("WAITING", "/items/waiting"),
    ("IN FLIGHT", "/items/in_flight"),
    ("DELIVERED", "/items/delivered"),
    ("DEAD", "/items/dead"),
    ("PAUSED", "/paused"),
    ("URL", "/url"),
];
const ITEM: [(&str, &str); 8] = [
    ("PLACE", "/seq"),
    ("ITEM", "/id"),
    ("STATE", "/state"),
    ("ATTEMPTS", "/attempts"),
    ("STATUS", "/last_status"),
    ("CREATED", "/created_at"),
    ("NOT BEFORE", "/not_before"),
    ("ERROR", "/last_error"),
];
const ATTEMPT: [(&str, &str); 8] = [
    ("STARTED", "/started_at"),
    ("ITEM", "/item"),
    ("N", "/n"),
    ("OUTCOME", "/outcome"),
    ("STATUS", "/status"),
    ("WAITED MS", "/waited_ms"),
    ("TOOK MS", "/took_ms"),
    ("ERROR", "/error"),
];

/// Part of a response to print: the name of the list in it, if any, and the columns of the table.
type Shown<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)]);

pub(super) fn buffers(args: &BuffersArgs) -> Exit {
    let of = |buffer: &str, verb: &str| format!("/v1/buffers/{buffer}{verb}");
    let (method, path, body) = match args.what.as_ref().unwrap_or(&BuffersCommand::List) {
        BuffersCommand::List => (Method::GET, "/v1/buffers".to_owned(), Value::Null),
        BuffersCommand::Show { buffer } => (Method::GET, of(buffer, ""), Value::Null),
        BuffersCommand::Pause { buffer, reason } => (
            Method::POST,
            of(buffer, "/pause"),
            json!({ "reason": reason }),
        ),
        BuffersCommand::Resume { buffer } => (Method::POST, of(buffer, "/resume"), json!({})),
        BuffersCommand::Purge { buffer, state } => (
            Method::POST,
            of(buffer, "/purge"),
            json!({ "state": state }),
        ),
        BuffersCommand::Redrive {
            buffer,
            limit,
            head,
        } => {
            let order = if *head { "head" } else { "tail" };
            let mut body = json!({ "order": order });
            if let Some(limit) = limit {
                body["limit"] = (*limit).into();
            }
            (Method::POST, of(buffer, "/redrive"), body)
        }
    };
    let list = matches!(args.what, None | Some(BuffersCommand::List)).then_some("buffers");
    show(
        &args.place,
        args.json,
        (method, &path, &body),
        (list, &BUFFER),
    )
}

pub(super) fn items(args: &ItemsArgs) -> Exit {
    let of = |item: &str, verb: &str| format!("/v1/items/{item}{verb}");
    let (method, path, list) = match &args.what {
        ItemsCommand::List {
            buffer,
            state,
            after,
            limit,
        } => {
            let mut path = format!("/v1/buffers/{buffer}/items?limit={limit}");
            path.extend(state.iter().map(|state| format!("&state={state}")));
            path.extend(after.iter().map(|after| format!("&after={after}")));
            (Method::GET, path, Some("items"))
        }
        ItemsCommand::Show { item } => {
            let path = of(item, "/attempts");
            let shown = (Some("attempts"), &ATTEMPT[..]);
            let first = show(
                &args.place,
                args.json,
                (Method::GET, &of(item, ""), &Value::Null),
                (None, &ITEM),
            );
            if first != Exit::Ok {
                return first;
            }
            return show(
                &args.place,
                args.json,
                (Method::GET, &path, &Value::Null),
                shown,
            );
        }
        ItemsCommand::Cancel { item } => (Method::POST, of(item, "/cancel"), None),
        ItemsCommand::Retry { item } => (Method::POST, of(item, "/retry"), None),
        ItemsCommand::Skip { item } => (Method::POST, of(item, "/skip"), None),
    };
    show(
        &args.place,
        args.json,
        (method, &path, &Value::Null),
        (list, &ITEM),
    )
}

pub(super) fn attempts(args: &AttemptsArgs) -> Exit {
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
    let path = format!("/v1/attempts?{}", query.finish());
    show(
        &args.place,
        args.json,
        (Method::GET, &path, &Value::Null),
        (Some("attempts"), &ATTEMPT),
    )
}

fn show(
    place: &InstanceArgs,
    as_json: bool,
    call: (Method, &str, &Value),
    shown: Shown<'_>,
) -> Exit {
    block_on(async {
        match asked(place, call).await {
            Ok(answer) if as_json => print(&format!("{answer:#}\n")),
            Ok(answer) => {
                let own = std::slice::from_ref(&answer);
                let list = shown.0.and_then(|name| answer.get(name)?.as_array());
                let rows = list.map_or(own, Vec::as_slice);
                // The responses of `purge` and `redrive` contain nothing but a count.
                let plain = answer.as_object().filter(|fields| fields.len() == 1);
                match plain.and_then(|fields| fields.iter().next()) {
                    Some((what, Value::Number(count))) => print(&format!("{count} {what}\n")),
                    _ => print(&table(rows, shown.1)),
                }
            }
            Err((exit, text)) => {
                print_error(&text);
                return exit;
            }
        }
        Exit::Ok
    })
}

async fn asked(
    place: &InstanceArgs,
    (method, path, body): (Method, &str, &Value),
) -> Result<Value, Failure> {
    let body = if body.is_null() {
        json!({})
    } else {
        body.clone()
    };
    Instance::find(place)?.call(method, path, &body).await
}
