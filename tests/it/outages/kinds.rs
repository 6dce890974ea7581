//! The kinds of outages: SQL statements that begin and end each of them, and the words of the log.

/// One kind of outage of a database. `ROLE` and `DATABASE` in its statements stand for names.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Statements that begin the outage.
    pub(super) begin: String,
    /// Statements that end the outage. Without them, the transaction of the first ones stays open
    /// until the outage ends.
    pub(super) end: Option<String>,
    /// SQLSTATE in the warning.
    pub(super) sqlstate: &'static str,
    /// Part of the remedy in the warning.
    pub(super) remedy: &'static str,
}

/// Statement that ends all sessions of the role.
const END_SESSIONS: &str =
    "; select pg_terminate_backend(pid) from pg_stat_activity where usename = 'ROLE'";

fn kind(
    name: &'static str,
    (sqlstate, remedy): (&'static str, &'static str),
    begin: &str,
    end: &str,
) -> Kind {
    Kind {
        name,
        begin: begin.to_owned(),
        end: Some(end.to_owned()),
        sqlstate,
        remedy,
    }
}

/// Returns a kind whose statements also end all sessions of the role.
fn thrown_out(
    name: &'static str,
    told: (&'static str, &'static str),
    begin: &str,
    end: &str,
) -> Kind {
    kind(name, told, &(begin.to_owned() + END_SESSIONS), end)
}

/// Kinds in which the server refuses sessions or all writes.
pub(super) fn access() -> Vec<Kind> {
    let read_only = ("25006", "make the database writable");
    let on = "alter database DATABASE set default_transaction_read_only = on";
    let off = "alter database DATABASE reset default_transaction_read_only";
    let password = ("28P01", "right user and password");
    vec![
        thrown_out("read-only, all sessions ended", read_only, on, off),
        kind(
            "read-only, half of the sessions ended",
            read_only,
            &format!(
                "{on}; select pg_terminate_backend(pid) from (select pid, row_number() over (order by backend_start) as n from pg_stat_activity where usename = 'ROLE') a where n % 2 = 1"
            ),
            off,
        ),
        thrown_out(
            "database closed",
            ("55000", "allow_connections"),
            "alter database DATABASE allow_connections false",
            "alter database DATABASE allow_connections true",
        ),
        thrown_out(
            "login revoked",
            ("28000", "right user and password"),
            "alter role ROLE nologin",
            "alter role ROLE login",
        ),
        thrown_out(
            "password changed",
            password,
            "alter role ROLE password 'another'",
            "alter role ROLE password 'secret'",
        ),
        thrown_out(
            "too many connections",
            ("53300", "max_connections"),
            "alter role ROLE connection limit 0",
            "alter role ROLE connection limit -1",
        ),
    ]
}

/// Returns a kind in which a function executes another statement first.
fn replaced(
    name: &'static str,
    told: (&'static str, &'static str),
    function: &str,
    statement: &str,
) -> Kind {
    let begin = format!(
        r"create table public.original as select pg_get_functiondef(oid) as text from pg_proc where proname = '{function}';
          do $x$ begin execute regexp_replace((select text from public.original), '\nbegin\n', E'\nbegin\n{statement};\n'); end $x$;
          select outpace.clock_v1()"
    );
    let end = "do $x$ begin execute (select text from public.original); end $x$; select outpace.clock_v1()";
    kind(name, told, &begin, end)
}

/// Kinds in which a part of the schema is unusable.
pub(super) fn schema() -> Vec<Kind> {
    let full = ("53100", "free disk space");
    let raise = "raise exception using errcode = ''53100'', message = ''could not extend file: No space left on device''".replace("''", "\\'");
    let (privilege, damaged) = (("42501", "docs/ledger.md"), ("42883", "outpace migrate"));
    vec![
        replaced("disk full, bookings", full, "book_v1", &raise),
        replaced("disk full, heartbeats", full, "heartbeat_v1", &raise),
        kind(
            "EXECUTE revoked, heartbeats",
            privilege,
            "revoke execute on all functions in schema outpace from public, ROLE",
            "grant execute on all functions in schema outpace to public",
        ),
        kind(
            "privileges on a table revoked, bookings",
            privilege,
            "revoke all on outpace.schedule from ROLE",
            "grant all on outpace.schedule to ROLE",
        ),
        kind(
            "function missing, bookings",
            damaged,
            "alter function outpace.book_v1(jsonb) rename to gone_v1",
            "alter function outpace.gone_v1(jsonb) rename to book_v1",
        ),
        kind(
            "table missing, heartbeats",
            ("42P01", "outpace migrate"),
            "alter table outpace.replica rename to gone",
            "alter table outpace.gone rename to replica",
        ),
    ]
}

/// Kinds in which statements do not end.
pub(super) fn waiting() -> Vec<Kind> {
    // One replica waits, and the other one then finds the lock of the heartbeats taken.
    let slow = ("57014 55P03", "pg_locks");
    let held = |name, begin| Kind {
        end: None,
        ..kind(name, slow, begin, "")
    };
    vec![
        held(
            "table locked, bookings",
            "lock table outpace.schedule in access exclusive mode",
        ),
        held(
            "row locked, heartbeats",
            "select from outpace.replica for update",
        ),
        held(
            "row locked, bookings",
            "select from outpace.schedule for update",
        ),
        held(
            "table locked, heartbeats",
            "lock table outpace.replica in share mode",
        ),
        replaced(
            "slow statement, bookings",
            slow,
            "book_v1",
            "perform pg_sleep(60)",
        ),
        replaced(
            "slow statement, heartbeats",
            slow,
            "heartbeat_v1",
            "perform pg_sleep(60)",
        ),
    ]
}
