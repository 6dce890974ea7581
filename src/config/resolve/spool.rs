//! Sections `spool` and `buffers`, which define the store of the items and the declared buffers.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::super::{SpoolSettings, StoreSettings, schema};
use super::limit::lane;
use super::{Violation, Violations, bytes, secret, span};
use crate::bounds::{LANES_MAX, LEASE_MAX, LEASE_MIN};
use crate::delivery::{check_buffer, check_credentials, check_name};
use crate::policy::{Client, Policy, Secret, Target};
use crate::spool::{
    BufferConfig, BufferOwner, BufferSpec, DiskSettings, KEY_BYTES_MIN, PostgresSpoolSettings,
};
use crate::units::{ByteSize, is_name};

const MAX: u64 = 1024 << 20;
const MAX_BODY: u64 = 16 << 20;
const INLINE: u64 = 256 << 10;
const MIN_FREE: u64 = 64 << 20;
const BALLAST: u64 = 16 << 20;
/// Default time for which a silent replica keeps its lease on buffers.
const LEASE: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Name of the lane in which deliveries of the spool wait.
const LANE: &str = "deliveries";

pub(super) fn spool(
    p: &mut Violations,
    written: Option<schema::SpoolSection>,
    buffers: Vec<BufferSpec>,
    data_dir: &Path,
    shared: bool,
) -> Option<SpoolSettings> {
    if written.is_none() && buffers.is_empty() {
        return None;
    }
    let written = written.unwrap_or_default();
    let newest = secret(p, "spool.key", &written.key, &written.key_file);
    let old = written.old_keys.iter().map(|key| Secret::new(&*key.0));
    let keys: Vec<Secret> = newest.into_iter().chain(old).collect();
    for key in &keys {
        let size = key.reveal().trim().len();
        if size < KEY_BYTES_MIN {
            report!(p, "spool.key" =>
                "a key of {size} bytes can be guessed; each key needs {KEY_BYTES_MIN} bytes or more, for example the output of `openssl rand -hex 32`");
        }
    }
    let max = bytes(written.max, MAX);
    let max_body = bytes(written.max_body, MAX_BODY);
    if max < 4 << 20 {
        report!(p, "spool.max" =>
            "a spool of less than 4MiB keeps next to nothing; write 64MiB or more");
    }
    if max_body > max / 2 {
        report!(p, "spool.max_body" =>
            "one body must not fill the spool; write less than half of `spool.max`");
    }
    Some(SpoolSettings {
        keep_delivered: span(written.keep_delivered, 7 * DAY),
        keep_dead: span(written.keep_dead, 30 * DAY),
        store: match written.store.unwrap_or_default() {
            schema::StoreSetting::Disk => StoreSettings::Disk(disk(p, &written, max, data_dir)),
            schema::StoreSetting::Postgres => {
                StoreSettings::Postgres(postgres(p, &written, max, shared))
            }
        },
        max_body: ByteSize::from_bytes(max_body),
        keys,
        buffers,
    })
}

/// Sets the share of each client in the spool that the file does not set. With several clients one of
/// them may have half of the spool.
pub(super) fn shares(clients: &mut [Client], spool: Option<&SpoolSettings>) {
    let Some(spool) = spool.filter(|_| clients.len() > 1) else {
        return;
    };
    let half = spool.store.max() / 2;
    for client in clients {
        client.spool.max.get_or_insert(half);
    }
}

fn disk(
    p: &mut Violations,
    written: &schema::SpoolSection,
    max: u64,
    data_dir: &Path,
) -> DiskSettings {
    if written.lease.is_some() {
        report!(p, "spool.lease" =>
            "it is about a store that replicas share; write `store: postgres`, or leave it out");
    }
    let dir = written.dir.as_ref();
    DiskSettings {
        dir: dir.map_or_else(|| data_dir.join("spool"), |dir| dir.0.as_str().into()),
        max,
        min_free: bytes(written.min_free, MIN_FREE),
        ballast: bytes(written.ballast, BALLAST),
        inline: bytes(written.inline, INLINE),
        accept_loss: written.accept_loss.unwrap_or(false),
    }
}

fn postgres(
    p: &mut Violations,
    written: &schema::SpoolSection,
    max: u64,
    shared: bool,
) -> PostgresSpoolSettings {
    if !shared {
        report!(p, "spool.store" =>
            "`postgres` is the database of the ledger; set `ledger.postgres.url`");
    }
    let about_disk = [
        ("spool.dir", written.dir.is_some()),
        ("spool.inline", written.inline.is_some()),
        ("spool.min_free", written.min_free.is_some()),
        ("spool.ballast", written.ballast.is_some()),
        ("spool.accept_loss", written.accept_loss.is_some()),
    ];
    for (key, _) in about_disk.iter().filter(|(_, is_there)| *is_there) {
        report!(p, "{key}" => "it is about the store on disk; leave it out with `store: postgres`");
    }
    let lease = span(written.lease, LEASE);
    if !(LEASE_MIN..=LEASE_MAX).contains(&lease) {
        report!(p, "spool.lease" =>
            "a replica must be able to renew it several times, and its buffers wait for it when it dies; write 1s to 5m");
    }
    PostgresSpoolSettings { max, lease }
}

/// Checks the declared buffers as the API checks those of a call.
pub(super) fn declared(p: &mut Violations, buffers: &[BufferSpec], policy: &Policy) {
    let mut names = HashSet::new();
    for (index, buffer) in buffers.iter().enumerate() {
        let key = format!("buffers[{index}]");
        let name = buffer.name.as_deref().unwrap_or_default();
        if !is_name(name) || !names.insert(name) {
            report!(p, "{key}.name" =>
                "`{name}` is empty, no name, or there already; give each buffer a name of letters, digits, `-`, `_` and `.`, other than `.` and `..`");
        }
        if let Err(error) = check_name(name) {
            report!(p, "{key}.name" => "{error}");
        }
        for (place, client) in buffer.clients.iter().flatten().enumerate() {
            if !policy.clients.iter().any(|known| *known.name == **client) {
                report!(p, "{key}.clients[{place}]" =>
                    "there is no client `{client}`; define it in `clients`");
            }
        }
        let no_url = buffer.url.as_deref().is_none_or(str::is_empty);
        if no_url {
            report!(p, "{key}" =>
                "a buffer needs a `url`; write it as \"https://api.example.com/path\"");
        }
        match buffer.apply(BufferConfig::default()) {
            Err(error) => report!(p, "{key}" => "{error}"),
            Ok(_) if no_url => {}
            Ok(mut config) => {
                config.owner = BufferOwner::Declared;
                let checked =
                    check_buffer(&config, policy).and_then(|()| check_credentials(&config, policy));
                if let Err(error) = checked {
                    report!(p, "{key}" => "{error}");
                }
            }
        }
    }
}

/// Adds a lane for deliveries of the spool to a target. An existing lane `deliveries` is used.
/// Otherwise one with weight 1 is added if there is room.
///
/// A target without lanes also gets a lane `requests` with weight 4, so requests of clients weigh
/// four times as much.
pub(super) fn add_lane(target: &mut Target) {
    let own = target.lanes.iter().position(|lane| &*lane.name == LANE);
    let own = own.or_else(|| {
        if target.lanes.is_empty() {
            target.lanes.push(lane("requests", 4));
        }
        let room = target.lanes.len() < LANES_MAX;
        room.then(|| {
            target.lanes.push(lane(LANE, 1));
            target.lanes.len() - 1
        })
    });
    target.deliveries = own.and_then(|lane| u8::try_from(lane).ok());
}
