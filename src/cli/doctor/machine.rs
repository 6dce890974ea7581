//! Checks of this machine that need no configuration.

use std::time::Duration;

use super::finding::Finding;
use crate::clock::{Clock, unix_time};
use crate::config::process_environment;
use crate::connections::ConnectionBounds;
use crate::telemetry;

/// First second of 2025, before which no version of outpace existed.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);
/// Number of connections of clients below which a busy app is refused.
const FEW_CONNECTIONS: usize = 256;

pub(super) fn checks(clock: &Clock) -> Vec<Finding> {
    vec![time(clock), open_files(), roots(), log_levels()]
}

/// Compares the clock with a date that has passed, because certificates depend on it.
fn time(clock: &Clock) -> Finding {
    let now = clock.wall();
    let shown = humantime::format_rfc3339_seconds(now);
    if unix_time(now) < EARLIEST {
        let detail = format!("the clock says {shown}, so certificates seem not yet valid");
        return Finding::fault(
            "clock",
            detail,
            "set the clock, for example with chrony or systemd-timesyncd",
        );
    }
    Finding::sound("clock", format!("the clock says {shown}"))
}

fn open_files() -> Finding {
    let check = "open_files";
    let Ok((_, hard)) = rlimit::getrlimit(rlimit::Resource::NOFILE) else {
        return Finding::skipped(check, "the system does not tell its limit of open files");
    };
    let clients = ConnectionBounds::of(hard).clients;
    let detail = format!("{hard} open files allow {clients} connections of clients");
    if clients < FEW_CONNECTIONS {
        let remedy = "raise the hard limit: `LimitNOFILE=65536` in the unit, or `ulimit -Hn 65536`";
        return Finding::warning(check, detail, remedy);
    }
    Finding::sound(check, detail)
}

/// Checks the variable that selects the levels of the log.
fn log_levels() -> Finding {
    let check = "log_levels";
    let levels = process_environment("OUTPACE_LOG").unwrap_or_default();
    match telemetry::check_levels(&levels) {
        Ok(()) => Finding::sound(check, "OUTPACE_LOG is not set or valid"),
        Err(told) => Finding::of_message(check, &told),
    }
}

/// Counts the root certificates of the system. Without any, a built-in set is used.
fn roots() -> Finding {
    let check = "system_roots";
    match rustls_native_certs::load_native_certs().certs.len() {
        0 => Finding::warning(
            check,
            "this system has no root certificates, so outpace uses a built-in set",
            "install the package `ca-certificates`",
        ),
        count => Finding::sound(check, format!("{count} root certificates are trusted")),
    }
}
