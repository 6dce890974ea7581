//! Checks of the ledger's database.

use super::finding::{Finding, or_sound};
use crate::clock::Clock;
use crate::config::{PostgresSettings, Settings, StoreSettings};
use crate::db::{Database, DatabaseError, DatabaseFacts, LEDGER_CONNECTIONS};
use crate::policy::{Bound, Policy};

/// Oldest version of the server that is supported.
const OLDEST: i32 = 140_000;
/// Difference of the clocks from which operators are misled by times in the log.
const CLOCK_MS: i64 = 2_000;
/// Connections of one replica, with those of a spool in the database.
const CONNECTIONS: i64 = 2 * LEDGER_CONNECTIONS as i64;

pub(super) async fn checks(settings: &Settings, policy: &Policy, clock: &Clock) -> Vec<Finding> {
    let Some(postgres) = &settings.ledger.postgres else {
        let detail = "the ledger is in memory, for one replica";
        return vec![Finding::skipped("postgres", detail)];
    };
    let mut findings = Vec::new();
    let database = match Database::open(&postgres.source, LEDGER_CONNECTIONS, None) {
        Ok(database) => database,
        Err(error) => return vec![Finding::of_message("postgres_url", &error.to_string())],
    };
    findings.push(Finding::sound(
        "postgres_url",
        "`ledger.postgres.url` can be read",
    ));
    let facts = match database.inspect(clock).await {
        Ok(facts) => facts,
        Err(error) => {
            findings.push(Finding::of_message(
                "postgres_reachable",
                &error.to_string(),
            ));
            return findings;
        }
    };
    let place = database.place();
    findings.push(Finding::sound(
        "postgres_reachable",
        format!("{place} accepts connections"),
    ));
    findings.extend(server(&facts, &place, settings));
    findings.extend(connections(&facts, &place));
    findings.push(schema(&database, postgres, &facts).await);
    findings.push(privileges(&facts));
    findings.extend(shares(&facts, policy));
    findings.push(replicas(&facts));
    findings
}

/// Returns the sound finding, or the problem with the same check.
fn either(is_sound: bool, detail: impl Into<String>, problem: Finding) -> Finding {
    match is_sound {
        true => Finding::sound(problem.check(), detail),
        false => problem,
    }
}

/// Returns the findings about the server itself.
fn server(facts: &DatabaseFacts, place: &str, settings: &Settings) -> Vec<Finding> {
    let (major, minor) = (facts.version / 10_000, facts.version % 10_000);
    let version = format!("the server is PostgreSQL {major}.{minor}");
    let too_old = Finding::fault(
        "postgres_version",
        version.as_str(),
        "use PostgreSQL 14 or later",
    );
    let read_only = Finding::fault(
        "postgres_writable",
        format!("{place} is read-only, so nothing can be booked"),
        "name the primary server, and run `alter database NAME reset default_transaction_read_only`",
    );
    let ahead = facts.clock_ahead_ms;
    let clocks = format!("the clock of the server is {ahead} ms ahead of this machine's");
    let clocks_differ = Finding::warning(
        "postgres_clock",
        clocks.as_str(),
        "synchronise both clocks (NTP); pacing uses the clock of the server only",
    );
    let store = settings.spool.as_ref().map(|spool| &spool.store);
    let lossy = Finding::fault(
        "postgres_durability",
        "acknowledged writes may be lost in a crash (`synchronous_commit` or `fsync` is off)",
        "run `alter role NAME set synchronous_commit = on`, and set `fsync = on`",
    );
    // The ledger itself does not need durable writes.
    let lossy = match store {
        Some(StoreSettings::Postgres(_)) => lossy,
        Some(StoreSettings::Disk(_)) | None => lossy.softened(),
    };
    vec![
        either(facts.version >= OLDEST, version, too_old),
        either(!facts.is_read_only, "the database takes writes", read_only),
        either(ahead.abs() <= CLOCK_MS, clocks, clocks_differ),
        either(facts.is_durable, "acknowledged writes are on disk", lossy),
    ]
}

/// Returns the findings about the connections to the server.
fn connections(facts: &DatabaseFacts, place: &str) -> Vec<Finding> {
    let local = ["localhost", "127.", "::1", "/"];
    let is_local = local.iter().any(|begin| place.starts_with(begin));
    let encrypted = match facts.is_encrypted {
        true => "the connection is encrypted",
        false => "the database is on this machine",
    };
    let in_clear = Finding::warning(
        "postgres_tls",
        format!(
            "the connection to {place} is not encrypted, so it can be read and changed on the way"
        ),
        "set `sslmode=verify-full` and `sslrootcert=FILE` in the URL",
    );
    let pooled = Finding::warning(
        "postgres_pooler",
        "a pooler in transaction mode passes no notifications on, so pins and blocks of other replicas are seen later",
        "use the port of the server itself, or accept the delay",
    );
    let free = facts.free_connections;
    let room = format!(
        "the server accepts {free} further connections, and a replica needs up to {CONNECTIONS}"
    );
    let full = Finding::warning(
        "postgres_connections",
        room.as_str(),
        "raise `max_connections`, or use a pooler",
    );
    vec![
        either(facts.is_encrypted || is_local, encrypted, in_clear),
        either(
            !facts.is_pooled,
            "each connection has a session of its own",
            pooled,
        ),
        either(free >= CONNECTIONS, room, full),
    ]
}

/// Checks that the schema fits this program, or that a start creates it.
async fn schema(
    database: &Database,
    postgres: &PostgresSettings,
    facts: &DatabaseFacts,
) -> Finding {
    let check = "postgres_schema";
    match database.check().await {
        Ok(()) => Finding::sound(check, "the schema `outpace` fits this program"),
        Err(DatabaseError::TooOld) if postgres.migrate && facts.may_create => Finding::sound(
            check,
            "the schema `outpace` is created or brought up to date at the start",
        ),
        Err(DatabaseError::TooOld) if postgres.migrate => {
            let detail =
                "the schema `outpace` is missing or too old, and this user may not create it";
            Finding::fault(
                check,
                detail,
                "run `outpace migrate` as a user with `create` on the database (docs/ledger.md)",
            )
        }
        Err(error) => Finding::of_message(check, &error.to_string()),
    }
}

fn privileges(facts: &DatabaseFacts) -> Finding {
    let check = "postgres_privileges";
    match facts.missing_privileges.is_empty() {
        true => Finding::sound(check, "the user has all privileges on the schema"),
        false => {
            let missing = facts.missing_privileges.join(", ");
            Finding::fault(
                check,
                format!("the user lacks {missing}"),
                "grant them as docs/ledger.md says",
            )
        }
    }
}

/// Finds replicas that are silent, for which a part of each rate is reserved.
fn replicas(facts: &DatabaseFacts) -> Finding {
    let detail = format!("none of {} known replicas is silent", facts.replicas);
    let silent = facts.silent.join(", ");
    let lost = Finding::warning(
        "replicas",
        format!(
            "{} of {} replicas are silent, and a part of each rate is reserved for them: {silent}",
            facts.silent.len(),
            facts.replicas
        ),
        "start them again, or see `outpace status --fleet` for the time at which the others get their part",
    );
    either(facts.silent.is_empty(), detail, lost)
}

/// Finds rates of which each replica may use nothing while the database is unreachable.
fn shares(facts: &DatabaseFacts, policy: &Policy) -> Vec<Finding> {
    let check = "fallback_shares";
    let replicas = facts.replicas.max(1);
    let limits = policy.targets.iter();
    let limits = limits.flat_map(|target| target.limits.iter().map(move |limit| (target, limit)));
    let problems = limits.filter_map(|(target, limit)| {
        let Bound::Rate { rate, .. } = limit.bound else {
            return None;
        };
        let count = i64::from(rate.count());
        (count < replicas).then(|| {
            let detail = format!("with {replicas} replicas, the fallback share of limit {} of target {} is nothing during an outage of the database", limit.name, target.name);
            Finding::warning(check, detail, "use fewer replicas, or write the rate with a longer period, such as 60/1m for 1/1s")
        })
    });
    or_sound(
        problems.collect(),
        check,
        format!("each of {replicas} replicas has a share of every rate"),
    )
}
