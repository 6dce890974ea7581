//! Structure of the configuration file. Keys of later versions are listed, too, so that `resolve`
//! can report them by name instead of ignoring them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::expression::ExpressionSetting;
use super::value::{DurationText, FromText, Listen, OneOrMany, Percent, Text};
use crate::policy::{Allow, ApiScope, HostPattern, Role, TlsMode, Unmatched};
use crate::spool::BufferSpec;
use crate::units::{ByteSize, HostName, Rate};

/// Reads a document. An empty document has the default of every key.
pub(super) fn read(text: &str) -> Result<ConfigFile, serde_yaml::Error> {
    serde_yaml::from_str(text).map(Option::unwrap_or_default)
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub(super) listen: Option<FromText<Listen>>,
    pub(super) hosts: Vec<FromText<HostName>>,
    pub(super) tls: Option<TlsSection>,
    pub(super) public_url: Option<Text>,
    pub(super) admin: AdminSection,
    pub(super) data_dir: Option<Text>,
    pub(super) drain_timeout: Option<FromText<DurationText>>,
    pub(super) log: LogSection,
    pub(super) allow_open: bool,
    pub(super) unmatched: Unmatched,
    pub(super) connect_ports: Vec<u16>,
    pub(super) routes: Vec<RouteSection>,
    pub(super) clients: Vec<ClientSection>,
    pub(super) ca: CaSection,
    pub(super) egress: EgressSection,
    pub(super) bodies: BodiesSection,
    pub(super) ledger: Option<LedgerSection>,
    pub(super) targets: Vec<TargetSection>,
    pub(super) spool: Option<SpoolSection>,
    #[serde(deserialize_with = "super::value::buffers")]
    pub(super) buffers: Vec<BufferSpec>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogSection {
    pub(super) access: AccessSection,
    pub(super) format: LogFormat,
}

/// Value of `log.format`, the form of the lines on both outputs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    #[default]
    Native,
    Otel,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessSection {
    pub(super) off: bool,
    pub(super) only: Option<Vec<Text>>,
    pub(super) sample: Option<FromText<Percent>>,
}

/// Value of `spool.store`, which selects the store of the items.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoreSetting {
    #[default]
    Disk,
    Postgres,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SpoolSection {
    pub(super) store: Option<StoreSetting>,
    pub(super) lease: Option<FromText<DurationText>>,
    pub(super) dir: Option<Text>,
    pub(super) max: Option<FromText<ByteSize>>,
    pub(super) max_body: Option<FromText<ByteSize>>,
    pub(super) inline: Option<FromText<ByteSize>>,
    pub(super) min_free: Option<FromText<ByteSize>>,
    pub(super) ballast: Option<FromText<ByteSize>>,
    pub(super) key: Option<Text>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) old_keys: Vec<Text>,
    pub(super) keep_delivered: Option<FromText<DurationText>>,
    pub(super) keep_dead: Option<FromText<DurationText>>,
    pub(super) accept_loss: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminSection {
    pub(super) listen: Option<FromText<Listen>>,
    pub(super) hosts: Vec<FromText<HostName>>,
    pub(super) token: Option<Text>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) tokens: Vec<AdminTokenSection>,
    pub(super) tls: Option<TlsSection>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminTokenSection {
    pub(super) role: Option<Role>,
    pub(super) token: Option<Text>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) token_sha256: Option<Text>,
}

/// Certificate and key of a listener, as paths of PEM files.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TlsSection {
    pub(super) cert: Option<Text>,
    pub(super) key: Option<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RouteSection {
    pub(super) host: Option<FromText<HostName>>,
    pub(super) listen: Option<FromText<Listen>>,
    pub(super) hosts: Vec<FromText<HostName>>,
    pub(super) tls: Option<TlsSection>,
    pub(super) to: Option<Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClientSection {
    pub(super) name: Option<Text>,
    pub(super) group: Option<Text>,
    pub(super) token: Option<Text>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) token_sha256: Option<Text>,
    pub(super) scopes: Option<Vec<ApiScope>>,
    pub(super) share: Option<FromText<Percent>>,
    pub(super) limits: Vec<LimitSection>,
    pub(super) spool: SpoolShareSection,
}

/// Share of a client in the spool.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SpoolShareSection {
    pub(super) max: Option<FromText<ByteSize>>,
    pub(super) items: Option<u64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CaSection {
    pub(super) cert: Option<Text>,
    pub(super) key: Option<Text>,
    pub(super) export_dir: Option<Text>,
    pub(super) constrain: ConstrainSetting,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ConstrainSetting {
    #[default]
    None,
    Targets,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EgressSection {
    pub(super) allow: Vec<FromText<Allow>>,
    pub(super) roots: Vec<Text>,
    pub(super) resolve: BTreeMap<String, Text>,
    pub(super) upstream_proxy: Option<Text>,
    pub(super) no_proxy: Vec<Text>,
    pub(super) client_certs: Vec<ClientCertSection>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientCertSection {
    pub(super) hosts: Vec<FromText<HostPattern>>,
    pub(super) cert: Text,
    pub(super) key: Text,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BodiesSection {
    pub(super) memory: Option<FromText<ByteSize>>,
    pub(super) memory_total: Option<FromText<ByteSize>>,
    pub(super) disk: Option<FromText<ByteSize>>,
    pub(super) disk_total: Option<FromText<ByteSize>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LedgerSection {
    pub(super) postgres: Option<PostgresSection>,
    pub(super) on_outage: Option<OnOutageSetting>,
    pub(super) share_for: Option<FromText<DurationText>>,
    pub(super) bootstrap_share: Option<FromText<Percent>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PostgresSection {
    pub(super) url: Option<Text>,
    pub(super) url_file: Option<PathBuf>,
    pub(super) migrate: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnOutageSetting {
    Share,
    Closed,
    Open,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TargetSection {
    pub(super) name: Option<Text>,
    #[schemars(skip)]
    pub(super) preset: Option<IgnoredAny>,
    pub(super) hosts: Vec<FromText<HostPattern>>,
    pub(super) limits: Vec<LimitSection>,
    pub(super) lanes: Vec<LaneSection>,
    pub(super) max_wait: Option<FromText<DurationText>>,
    pub(super) body_idle_timeout: Option<FromText<DurationText>>,
    pub(super) max_waiting: Option<usize>,
    pub(super) block_max: Option<FromText<DurationText>>,
    pub(super) overflow: OverflowSetting,
    pub(super) tls: TlsMode,
    pub(super) mode: ModeSetting,
    pub(super) retry: RetrySection,
    pub(super) signals: SignalsSection,
    pub(super) idempotent: bool,
    pub(super) close_notify: CloseNotifySetting,
    pub(super) set_headers: BTreeMap<String, Text>,
    pub(super) set_headers_over_http: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CloseNotifySetting {
    #[default]
    Required,
    Optional,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OverflowSetting {
    #[default]
    Refuse,
    Spool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeSetting {
    #[default]
    Enforce,
    Observe,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RetrySection {
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<FromText<DurationText>>,
    pub(super) backoff_max: Option<FromText<DurationText>>,
    pub(super) on_429: Option<bool>,
    pub(super) on_503: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SignalsSection {
    pub(super) limited: Vec<SignalSection>,
    pub(super) overloaded: Vec<SignalSection>,
    pub(super) quota: Vec<SignalSection>,
    pub(super) lock: Vec<SignalSection>,
    pub(super) wait: Vec<WaitSection>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SignalSection {
    pub(super) status: Option<OneOrMany>,
    pub(super) header: Option<Text>,
    pub(super) json: BTreeMap<String, Text>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WaitSection {
    pub(super) header: Option<Text>,
    pub(super) json: Option<Text>,
    pub(super) unit: UnitSetting,
}

/// Value of `wait[].unit`, the unit of a number that has none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnitSetting {
    #[default]
    S,
    Ms,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitSection {
    pub(super) name: Option<Text>,
    pub(super) rate: Option<FromText<Rate>>,
    pub(super) burst: Option<u32>,
    pub(super) algorithm: Option<AlgorithmSetting>,
    pub(super) concurrent: Option<u32>,
    pub(super) r#match: Option<MatchSection>,
    pub(super) key: Option<OneOrMany>,
    pub(super) max_keys: Option<u32>,
    pub(super) cost: Option<CostSection>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CostSection {
    pub(super) estimate: Option<ExpressionSetting>,
    pub(super) default: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) settle: Option<ExpressionSetting>,
    pub(super) on_error: Option<OnErrorSetting>,
}

/// Value of `cost.on_error`, for all errors or by status.
#[derive(Debug, Clone)]
pub(super) enum OnErrorSetting {
    All(ErrorCostSetting),
    ByStatus(Vec<(String, ErrorCostSetting)>),
}

/// Cost of a request that is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ErrorCostSetting {
    Keep,
    Refund,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LaneSection {
    pub(super) name: Option<Text>,
    pub(super) r#match: Option<MatchSection>,
    pub(super) weight: Option<u32>,
    pub(super) reserve: Option<FromText<Percent>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AlgorithmSetting {
    TokenBucket,
    SlidingWindow,
    FixedWindow,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MatchSection {
    pub(super) path: Option<Text>,
    pub(super) method: Option<OneOrMany>,
    pub(super) header: Option<Text>,
    pub(super) query: BTreeMap<String, Text>,
    pub(super) json: BTreeMap<String, Text>,
    pub(super) client: Option<OneOrMany>,
    pub(super) group: Option<Text>,
}
