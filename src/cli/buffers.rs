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
    /// Print the response as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<BuffersCommand>,
}

#[derive(Debug, Subcommand)]
enum BuffersCommand {
    /// List all buffers with the number of their items in each state
    List,
    /// Show one buffer with the number of its items in each state
    Show {
        /// Name or id of the buffer
        buffer: String,
    },
    /// Stop sending the items of a buffer until resume
    Pause {
        /// Name or id of the buffer
        buffer: String,
        /// Reason for the pause, as the buffer shows it
        #[arg(long)]
        reason: Option<String>,
    },
    /// Continue sending the items of a paused buffer
    Resume {
        /// Name or id of the buffer
        buffer: String,
    },
    /// Remove the items of a buffer that are in a given state
    Purge {
        /// Name or id of the buffer
        buffer: String,
        /// Items to remove: queued, dead, or history (all finished items)
        #[arg(long)]
        state: String,
    },
    /// Send dead letters and expired items again
    Redrive {
        /// Name or id of the buffer
        buffer: String,
        /// Maximum number of items to send again, oldest first
        #[arg(long)]
        limit: Option<u32>,
        /// Keep the old positions of the items, ahead of newer items
        #[arg(long)]
        head: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ItemsArgs {
    #[command(flatten)]
    place: InstanceArgs,
    /// Print the response as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: ItemsCommand,
}

#[derive(Debug, Subcommand)]
enum ItemsCommand {
    /// List the items of a buffer, oldest first
    List {
        /// Name or id of the buffer
        buffer: String,
        /// Only items in this state: queued, waiting, in_flight, delivered, dead, cancelled or
        /// expired
        #[arg(long)]
        state: Option<String>,
        /// Only items after this position, as in the column PLACE
        #[arg(long)]
        after: Option<i64>,
        /// Maximum number of items to list
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one item with its attempts
    Show {
        /// Id of the item
        item: String,
    },
    /// Cancel an item that is not in flight
    Cancel {
        /// Id of the item
        item: String,
    },
    /// Send an item as soon as the limits allow it
    Retry {
        /// Id of the item
        item: String,
    },
    /// Move an item to the dead letters, so that the next item can follow
    Skip {
        /// Id of the item
        item: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct AttemptsArgs {
    #[command(flatten)]
    place: InstanceArgs,
    /// Print the response as JSON
    #[arg(long)]
    json: bool,
    /// Only attempts of this buffer, by name or id
    #[arg(long)]
    buffer: Option<String>,
    /// Only attempts of this item, by id
    #[arg(long)]
    item: Option<String>,
    /// Only attempts with this status code from the origin
    #[arg(long)]
    status: Option<u16>,
    /// Only attempts with this outcome, such as delivered or rejected
    #[arg(long)]
    outcome: Option<String>,
    /// Maximum number of attempts to list
    #[arg(long, default_value_t = 50)]
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
