//! `outpace blocks` and `unblock`: list and lift the blocks that origins have caused.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::client::{AdminArgs, Instance};
use super::table::table;
use super::{Exit, Failure, block_on, print};
use crate::app::encoded;

#[derive(Debug, Args)]
pub(super) struct BlocksArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// Name of the target (default: all targets)
    target: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  outpace unblock github\n  outpace unblock github --limit per-hour --key team-a"
)]
pub(super) struct UnblockArgs {
    #[command(flatten)]
    place: AdminArgs,
    /// Name of the target
    target: String,
    /// Name of a limit, of which only the blocks are lifted (default: all blocks of the target)
    #[arg(long, value_name = "NAME")]
    limit: Option<String>,
    /// Key or credential whose blocks are lifted, or its digest as `outpace blocks` shows it
    #[arg(long, value_name = "KEY|DIGEST")]
    key: Option<String>,
}

/// Columns of a table of blocks, each of which has the name of its target.
pub(super) const COLUMNS: &str = "TARGET /target, SCOPE /scope, STATUS /status, FIELD /field, \
    VALUE /value, PATH /path, SINCE s /for_s, NEXT ATTEMPT IN s /next_attempt_in_s, \
    ORIGIN UNTIL IN s /origin_until_in_s";

pub(super) fn blocks(args: &BlocksArgs) -> Result<Exit, Failure> {
    block_on(async {
        let outpace = Instance::admin(&args.place)?;
        let told = outpace
            .call(Method::GET, "/v1/status", &Value::Null)
            .await?;
        let mut names = names(&told);
        if let Some(target) = &args.target {
            names = vec![target.clone()];
        }
        let mut rows = Vec::new();
        for name in names {
            let told = outpace
                .call(Method::GET, &path(&name, &[]), &Value::Null)
                .await?;
            let blocks = told.get("blocks").and_then(Value::as_array);
            for mut block in blocks.cloned().unwrap_or_default() {
                block["target"] = name.clone().into();
                rows.push(block);
            }
        }
        Ok(print(&match args.json {
            true => format!("{:#}\n", Value::Array(rows)),
            false if rows.is_empty() => "no scope is blocked\n".to_owned(),
            false => table(&rows, COLUMNS),
        }))
    })
}

pub(super) fn unblock(args: &UnblockArgs) -> Result<Exit, Failure> {
    block_on(async {
        let outpace = Instance::admin(&args.place)?;
        let parts = [("limit", &args.limit), ("key", &args.key)];
        let parts = parts.map(|(name, part)| Some((name, part.as_deref()?)));
        let parts: Vec<(&str, &str)> = parts.into_iter().flatten().collect();
        let path = path(&args.target, &parts);
        let told = outpace.call(Method::DELETE, &path, &Value::Null).await?;
        let lifted = told.get("lifted").and_then(Value::as_u64).unwrap_or(0);
        Ok(print(&format!("blocks lifted: {lifted}\n")))
    })
}

/// Returns the names of all targets in a status.
fn names(told: &Value) -> Vec<String> {
    let targets = told.get("targets").and_then(Value::as_array);
    let targets = targets.into_iter().flatten();
    let names = targets.filter_map(|target| target.get("name")?.as_str());
    names.map(ToOwned::to_owned).collect()
}

/// Returns the path of the blocks of a target, with these parameters.
fn path(target: &str, parts: &[(&str, &str)]) -> String {
    let target = encoded(target);
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parts);
    match query.finish() {
        query if query.is_empty() => format!("/v1/targets/{target}/blocks"),
        query => format!("/v1/targets/{target}/blocks?{query}"),
    }
}
