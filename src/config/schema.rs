//! The file as it is written. Every key stands here, also those that a later version honours:
//! `resolve` refuses them by name, so that nothing is accepted silently.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::value::{Listen, OneOrMany, Parsed, Percent, Span, Text};
use crate::policy::{Allow, ApiScope, HostPattern};
use crate::spool::WrittenBuffer;
use crate::units::{ByteSize, HostName, Rate};

/// Reads a document; an empty one is all defaults.
pub(super) fn read(text: &str) -> Result<File, serde_yaml::Error> {
    let file: Option<File> = serde_yaml::from_str(text)?;
    Ok(file.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) listen: Option<Parsed<Listen>>,
    pub(super) public_url: Option<Text>,
    pub(super) admin: Admin,
    pub(super) data_dir: Option<Text>,
    pub(super) drain_timeout: Option<Parsed<Span>>,
    pub(super) allow_open: bool,
    pub(super) unmatched: Unmatched,
    pub(super) connect_ports: Vec<u16>,
    pub(super) routes: Vec<Route>,
    pub(super) clients: Vec<Client>,
    pub(super) ca: Ca,
    pub(super) egress: Egress,
    pub(super) bodies: Bodies,
    pub(super) ledger: Option<Ledger>,
    pub(super) targets: Vec<Target>,
    pub(super) spool: Option<Spool>,
    #[serde(deserialize_with = "super::value::buffers")]
    pub(super) buffers: Vec<WrittenBuffer>,
}

/// Where items are kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoreKind {
    #[default]
    Disk,
    Postgres,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spool {
    pub(super) store: Option<StoreKind>,
    pub(super) lease: Option<Parsed<Span>>,
    pub(super) dir: Option<Text>,
    pub(super) max: Option<Parsed<ByteSize>>,
    pub(super) max_body: Option<Parsed<ByteSize>>,
    pub(super) inline: Option<Parsed<ByteSize>>,
    pub(super) min_free: Option<Parsed<ByteSize>>,
    pub(super) ballast: Option<Parsed<ByteSize>>,
    pub(super) key: Option<Text>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) old_keys: Vec<Text>,
    pub(super) keep_delivered: Option<Parsed<Span>>,
    pub(super) keep_dead: Option<Parsed<Span>>,
    pub(super) accept_loss: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: Option<Parsed<Listen>>,
    pub(super) token: Option<Text>,
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unmatched {
    #[default]
    Tunnel,
    Refuse,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Route {
    pub(super) host: Option<Parsed<HostName>>,
    pub(super) listen: Option<Parsed<Listen>>,
    pub(super) to: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Client {
    pub(super) name: Option<Text>,
    pub(super) group: Option<Text>,
    pub(super) token: Option<Text>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) scopes: Option<Vec<ApiScope>>,
    pub(super) limits: Vec<Limit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Ca {
    pub(super) cert: Option<Text>,
    pub(super) key: Option<Text>,
    pub(super) export_dir: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Egress {
    pub(super) allow: Vec<Parsed<Allow>>,
    pub(super) roots: Vec<Text>,
    pub(super) resolve: BTreeMap<String, Text>,
    pub(super) upstream_proxy: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Bodies {
    pub(super) memory: Option<Parsed<ByteSize>>,
    pub(super) memory_total: Option<Parsed<ByteSize>>,
    pub(super) disk: Option<Parsed<ByteSize>>,
    pub(super) disk_total: Option<Parsed<ByteSize>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Ledger {
    pub(super) postgres: Option<Postgres>,
    pub(super) on_outage: Option<OnOutage>,
    pub(super) share_for: Option<Parsed<Span>>,
    pub(super) bootstrap_share: Option<Parsed<Percent>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Postgres {
    pub(super) url: Option<Text>,
    pub(super) url_file: Option<PathBuf>,
    pub(super) migrate: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnOutage {
    Share,
    Closed,
    Open,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Target {
    pub(super) name: Option<Text>,
    pub(super) preset: Option<IgnoredAny>,
    pub(super) hosts: Vec<Parsed<HostPattern>>,
    pub(super) limits: Vec<Limit>,
    pub(super) lanes: Vec<Lane>,
    pub(super) max_wait: Option<Parsed<Span>>,
    pub(super) max_waiting: Option<usize>,
    pub(super) overflow: Overflow,
    pub(super) tls: Tls,
    pub(super) mode: Mode,
    pub(super) retry: Retry,
    pub(super) idempotent: bool,
    pub(super) set_headers: BTreeMap<String, Text>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Tls {
    #[default]
    Intercept,
    Tunnel,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Overflow {
    #[default]
    Refuse,
    Spool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    #[default]
    Enforce,
    Observe,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<Parsed<Span>>,
    pub(super) backoff_max: Option<Parsed<Span>>,
    pub(super) on_429: Option<bool>,
    pub(super) on_503: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limit {
    pub(super) name: Option<Text>,
    pub(super) rate: Option<Parsed<Rate>>,
    pub(super) burst: Option<u32>,
    pub(super) algorithm: Option<Algorithm>,
    pub(super) concurrent: Option<u32>,
    pub(super) r#match: Option<Match>,
    pub(super) key: Option<Text>,
    pub(super) cost: Option<Cost>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cost {
    pub(super) estimate: Option<OneOrMany>,
    pub(super) default: Option<u32>,
    pub(super) settle: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Lane {
    pub(super) name: Option<Text>,
    pub(super) r#match: Option<Match>,
    pub(super) weight: Option<u32>,
    pub(super) reserve: Option<Parsed<Percent>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Algorithm {
    TokenBucket,
    SlidingWindow,
    FixedWindow,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) path: Option<Text>,
    pub(super) method: Option<OneOrMany>,
    pub(super) header: Option<Text>,
    pub(super) client: Option<OneOrMany>,
    pub(super) group: Option<Text>,
}
