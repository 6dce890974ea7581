//! `outpace reload`: makes a running outpace read its configuration file now.

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{AdminArgs, Instance};
use super::{Exit, Failure, block_on, print};

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// Take the file even if it is empty, cut off, or loses all clients or all targets
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ReloadArgs) -> Result<Exit, Failure> {
    block_on(async {
        let outpace = Instance::admin_of(&args.place, args.force)?;
        let force = json!({ "force": args.force });
        let told = outpace.call(Method::POST, "/v1/reload", &force).await?;
        let changes = told.get("changes").and_then(|changes| changes.as_str());
        let mut text = format!("reloaded: {}\n", changes.unwrap_or_default());
        let keys = told.get("restart_needed_for").and_then(Value::as_array);
        let keys: Vec<&str> = keys
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !keys.is_empty() {
            let keys = keys.join(", ");
            text.push_str(&format!("changed, and applied by a restart only: {keys}\n"));
        }
        Ok(print(&text))
    })
}
