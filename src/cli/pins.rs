//! `outpace pin` and `unpin`: change a limit on all replicas at once, until the pin is removed.

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{AdminArgs, Instance};
use super::{Exit, Failure, block_on, print};
use crate::app::encoded;
use crate::units::Rate;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace pin github requests --rate 1000/1h\n  outpace pin openai parallel --concurrent 2\n  outpace unpin github requests"
)]
pub(super) struct PinArgs {
    #[command(flatten)]
    place: AdminArgs,
    #[command(flatten)]
    limit: LimitArgs,
    /// Rate, such as "1000/1h"
    #[arg(long, value_name = "RATE", required_unless_present_any = ["burst", "concurrent"])]
    rate: Option<Rate>,
    /// Number of requests or units that may leave at once after a pause
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Number of requests at the same time, for a limit with `concurrent`
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "burst"])]
    concurrent: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    place: AdminArgs,
    #[command(flatten)]
    limit: LimitArgs,
}

/// Arguments that name one limit, as `outpace status` prints it.
#[derive(Debug, Args)]
struct LimitArgs {
    /// Name of the target
    target: String,
    /// Name of the limit
    limit: String,
}

pub(super) fn pin(args: &PinArgs) -> Result<Exit, Failure> {
    let mut change = json!({});
    let rate = args.rate.map(|rate| Value::from(rate.to_string()));
    let parts = [
        ("rate", rate),
        ("burst", args.burst.map(Value::from)),
        ("concurrent", args.concurrent.map(Value::from)),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            change[name] = value;
        }
    }
    settle(&args.place, &args.limit, Method::PATCH, &change)
}

pub(super) fn unpin(args: &UnpinArgs) -> Result<Exit, Failure> {
    settle(&args.place, &args.limit, Method::DELETE, &Value::Null)
}

fn settle(
    place: &AdminArgs,
    limit: &LimitArgs,
    method: Method,
    change: &Value,
) -> Result<Exit, Failure> {
    let path = format!(
        "/v1/targets/{}/limits/{}",
        encoded(&limit.target),
        encoded(&limit.limit)
    );
    block_on(async {
        let told = Instance::admin(place)?.call(method, &path, change).await?;
        let pinned = told.get("pinned").and_then(Value::as_str);
        let what = format!("limit {} of target {}", limit.limit, limit.target);
        Ok(print(&match pinned {
            Some(bound) => {
                format!("{what} is pinned at {bound}, on all replicas, until `outpace unpin`\n")
            }
            None => format!("{what} has no pin any more\n"),
        }))
    })
}
