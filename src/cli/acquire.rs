//! `outpace acquire TARGET -- CMD`: runs a command as soon as the limits of a target allow it. A
//! permit is held while the command runs.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{Instance, InstanceArgs};
use super::run::start_command;
use super::variables::Variables;
use super::{Exit, Failure, print_error};
use crate::app::encoded;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace acquire github ./nightly-sync\n  outpace acquire openai --cost 1200 --max-wait 5m python job.py"
)]
pub(super) struct AcquireArgs {
    /// Name of the target in the configuration
    target: String,
    #[command(flatten)]
    place: InstanceArgs,
    /// Value by which keyed limits count the command. Required if the target has a limit with a
    /// `key` other than `client`
    #[arg(long)]
    key: Option<String>,
    /// Lane in which to wait (default: the target's first lane without `match`)
    #[arg(long)]
    lane: Option<String>,
    /// Number of units that the command uses of each limit with a `cost` (default: the `default` of
    /// that `cost`)
    #[arg(long)]
    cost: Option<u32>,
    /// Longest time to wait, such as "30s" (default and maximum: `max_wait` of the target)
    #[arg(long, value_name = "DURATION")]
    max_wait: Option<String>,
    /// Command to run, with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Time for which a permit is held without renewal. The permit is renewed after a third of it.
const HOLD: Duration = Duration::from_secs(30);

pub(super) fn run(args: &AcquireArgs) -> Result<Exit, Failure> {
    super::block_on(acquire(args))
}

async fn acquire(args: &AcquireArgs) -> Result<Exit, Failure> {
    let outpace = Instance::find(&args.place)?;
    let ask = async |verb: &str, body: &Value| {
        let path = format!("/v1/targets/{}/{verb}", encoded(&args.target));
        outpace.call(Method::POST, &path, body).await
    };
    let mut asked = json!({ "key": args.key, "lane": args.lane, "cost": args.cost });
    asked["max_wait"] = json!(args.max_wait);
    asked["hold"] = HOLD.as_secs().into();
    let granted = ask("acquire", &asked).await?;
    let permit = granted.get("permit").and_then(Value::as_str);
    let mut child = start_command(&args.command, Variables::new())?;
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended,
            () = tokio::time::sleep(HOLD / 3), if permit.is_some() => {
                let renew = json!({ "permit": permit, "hold": HOLD.as_secs() });
                if let Err(Failure(_, text)) = ask("renew", &renew).await {
                    print_error(&format!("the permit could not be renewed, so other work may start before the command ends: {text}"));
                }
            }
        }
    };
    if permit.is_some() {
        // If this call fails, the permit is released after its hold time.
        let _ = ask("release", &json!({ "permit": permit })).await;
    }
    Ok(Exit::of_command(ended?))
}
