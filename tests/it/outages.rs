//! P12: every kind of outage of the ledger's database has the same effects, the same words and the
//! same end. For each kind, two replicas send to one origin that counts.

mod kinds;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use kinds::Kind;
use serde_json::Value;
use sqlx::Connection as _;

use crate::harness::{Client, Identity, Origin, Postgres, Program, Proto, soon, worst_window};

const SECOND: Duration = Duration::from_secs(1);
/// Most requests in any second that P1 allows for 20/1s with burst 1.
const MOST: usize = 21;
/// Window that is checked. Twelve replicas on a busy machine delay a request by more than the slack.
const WINDOW: Duration = Duration::from_millis(950);
/// Time after the begin of an outage at which every replica has its fallback share.
const SHARE_WITHIN: Duration = Duration::from_secs(3);
/// Time over which the use of the fallback shares is counted.
const COUNTED: Duration = Duration::from_secs(3);

/// Two replicas with a database of their own, and clients that always want to send.
struct Fleet {
    origin: Origin,
    programs: [Program; 2],
    stop: Arc<AtomicBool>,
    clients: tokio::task::JoinSet<()>,
}

/// Measured effects of one outage.
struct Outage {
    name: &'static str,
    to_share: Duration,
    worst: usize,
    worst_window: usize,
    used: f64,
    warned: Duration,
    warning: String,
    healed: Duration,
}

fn is_warning(event: &Value) -> bool {
    event["message"] == "the ledger's database cannot be used, fallback mode applies"
}

/// Returns the time from `start` to the event, by the clock of its line.
fn after(start: SystemTime, event: &Value) -> Duration {
    let at = event["time"].as_str().unwrap();
    let at = humantime::parse_rfc3339(at).unwrap();
    at.duration_since(start).unwrap_or_default()
}

impl Fleet {
    async fn start(postgres: &Postgres, url: &str, database: &str) -> Self {
        let origin = Origin::ok().await;
        let config = format!(
            "ledger: {{ postgres: {{ url: \"{url}\" }} }}\ntargets:\n  - {{ name: api, hosts: [plain.test], max_wait: 60s, limits: [{{ name: pace, rate: \"20/1s\", burst: 1 }}] }}\n"
        );
        let programs = [
            Program::before(&origin, &config).await,
            Program::before(&origin, &config).await,
        ];
        let url = postgres.url_of("outpace", database);
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        // Two heartbeats later each replica has received its share.
        let mut seen = 0;
        for _ in 0..3 {
            let query = "select coalesce(min(seen_ns), 0) from outpace.replica having count(*) filter (where share_ppm = 500000) = 2 and min(seen_ns) > $1";
            seen = soon("the fallback shares", async {
                loop {
                    let query = sqlx::query_scalar::<_, i64>(query).bind(seen);
                    if let Ok(Some(seen)) = query.fetch_optional(&mut connection).await {
                        return seen;
                    }
                }
            })
            .await;
        }
        let mut fleet = Self {
            origin,
            programs,
            stop: Arc::default(),
            clients: tokio::task::JoinSet::new(),
        };
        fleet.saturate();
        fleet.origin.arrivals.reached(30).await;
        fleet
    }

    fn saturate(&mut self) {
        for (index, program) in self.programs.iter().enumerate() {
            for _ in 0..3 {
                let (address, stop) = (program.listen, Arc::clone(&self.stop));
                self.clients.spawn(async move {
                    let mut client = Client::to(address, Proto::Http1).await;
                    let url = format!("http://plain.test/{index}");
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(client.try_get(&url).await, Some(200));
                    }
                });
            }
        }
    }

    /// Waits until a request arrives at or after this time.
    async fn arrived_after(&self, at: Duration) {
        while self.origin.arrivals.last().at < at {
            let count = self.origin.arrivals.count();
            self.origin.arrivals.reached(count + 1).await;
        }
    }

    /// Returns the time from `begun` to the first request of each replica at its fallback share,
    /// which follows the longest pause. The slower replica counts.
    fn to_share(&self, begun: Duration) -> Duration {
        let all = self.origin.arrivals.all();
        let each = [0, 1].map(|index| {
            let own = all
                .iter()
                .filter(|one| one.uri.ends_with(&format!("/{index}")));
            let times: Vec<Duration> = own
                .map(|one| one.at)
                .filter(|at| *at + SECOND > begun)
                .collect();
            let longest = times
                .windows(2)
                .filter(|pair| pair[1] > begun)
                .max_by_key(|pair| pair[1] - pair[0])
                .unwrap();
            longest[1] - begun
        });
        each[0].max(each[1])
    }

    /// Waits until both replicas have logged that they are connected again, and returns the time of
    /// the later line after `ended`.
    async fn healed(&self, ended: SystemTime) -> Duration {
        let mut latest = Duration::ZERO;
        for program in &self.programs {
            let connected = |event: &Value| event["message"] == "connected to the ledger";
            let event = program.nth_event(2, connected).await;
            latest = latest.max(after(ended, &event));
        }
        latest
    }

    /// Lets the outage last until its share has been counted, then ends it, and returns its effects.
    async fn observe<B: Future<Output = ()>, E: Future<Output = ()>>(
        mut self,
        name: &'static str,
        begin: impl FnOnce() -> B,
        end: impl FnOnce() -> E,
    ) -> Outage {
        let (begun, start) = (self.origin.arrivals.now(), SystemTime::now());
        begin().await;
        let (from, until) = (begun + SHARE_WITHIN, begun + SHARE_WITHIN + COUNTED);
        self.arrived_after(until).await;
        let ready = self.programs[0].admin_get("/readyz").await.1;
        assert!(
            ready.contains("ledger: fallback share of 50 %"),
            "{name}: {ready}"
        );
        let times = self.origin.arrivals.times();
        let count = times
            .iter()
            .filter(|at| (from..until).contains(*at))
            .count();
        // Half of the rate each, in periods that are 25 ms longer.
        let share = 20.0 / 1.025 * COUNTED.as_secs_f64();
        let to_share = self.to_share(begun);
        let ended = SystemTime::now();
        end().await;
        let healed = self.healed(ended).await;
        let count_then = self.origin.arrivals.count();
        self.origin.arrivals.reached(count_then + 30).await;
        self.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.clients.join_next().await {
            done.unwrap();
        }
        let mut warned = Duration::ZERO;
        let mut warning = String::new();
        for program in &self.programs {
            let events = program.events();
            let warnings: Vec<&Value> = events.iter().filter(|event| is_warning(event)).collect();
            assert_eq!(warnings.len(), 1, "{name}: {warnings:#?}");
            warned = warned.max(after(start, warnings[0]));
            let part = |name: &str| warnings[0][name].as_str().unwrap_or("-").to_owned();
            warning = format!("{} {}; {}", part("sqlstate"), part("cause"), part("remedy"));
        }
        Outage {
            name,
            to_share,
            worst: worst_window(&self.origin.arrivals.times(), SECOND),
            worst_window: worst_window(&self.origin.arrivals.times(), WINDOW),
            used: count as f64 / share,
            warned,
            warning,
            healed,
        }
    }
}

impl Outage {
    fn print(&self) {
        println!(
            "| {} | {:.2} s | {} | {:.0} % | {:.2} s: {} | {:.2} s |",
            self.name,
            self.to_share.as_secs_f64(),
            self.worst,
            self.used * 100.0,
            self.warned.as_secs_f64(),
            self.warning,
            self.healed.as_secs_f64()
        );
    }

    /// Checks all effects that every kind has in common.
    fn check(&self, heals_within: Duration) {
        let name = self.name;
        assert!(self.to_share <= SHARE_WITHIN, "{name}: {:?}", self.to_share);
        assert!(self.worst_window <= MOST, "{name}: {}", self.worst_window);
        assert!(self.used >= 0.95, "{name}: {} of the share", self.used);
        assert!(self.warned <= 2 * SECOND, "{name}: {:?}", self.warned);
        assert!(self.healed <= heals_within, "{name}: {:?}", self.healed);
    }
}

/// Runs all kinds at the same time, each with a database and a role of its own.
async fn observed(all: Vec<Kind>) {
    let postgres = Arc::new(Postgres::start().await);
    postgres.require_password("+limited").await;
    postgres.execute("postgres", "create role limited").await;
    let mut running = tokio::task::JoinSet::new();
    for (index, kind) in all.into_iter().enumerate() {
        let (database, role) = (format!("database{index}"), format!("role{index}"));
        let created = format!("create role {role} login password 'secret' in role limited");
        postgres.execute("postgres", &created).await;
        let created = format!("create database {database} owner {role}");
        postgres.execute("postgres", &created).await;
        let postgres = Arc::clone(&postgres);
        running.spawn(async move {
            let named = |text: &str| text.replace("ROLE", &role).replace("DATABASE", &database);
            // Statements about the schema are executed in its database.
            let place = |text: &str| match text.contains("outpace.") || text.contains("schema") {
                true => database.clone(),
                false => "postgres".to_owned(),
            };
            let url = postgres.url_of(&format!("{role}:secret"), &database);
            let fleet = Fleet::start(&postgres, &url, &database).await;
            let held = postgres.url_of("outpace", &database);
            let mut held = sqlx::PgConnection::connect(&held).await.unwrap();
            let begin = named(&kind.begin);
            let outage = match &kind.end {
                Some(end) => {
                    let end = named(end);
                    let begin = || async { postgres.execute(&place(&begin), &begin).await };
                    let end = || async { postgres.execute(&place(&end), &end).await };
                    fleet.observe(kind.name, begin, end).await
                }
                None => {
                    let begin = sqlx::AssertSqlSafe(format!("begin; {begin}"));
                    let held = tokio::sync::Mutex::new(&mut held);
                    let run = |sql| async {
                        let mut held = held.lock().await;
                        sqlx::raw_sql(sql).execute(&mut **held).await.unwrap();
                    };
                    let end = sqlx::AssertSqlSafe("rollback".to_owned());
                    fleet.observe(kind.name, || run(begin), || run(end)).await
                }
            };
            let mut codes = kind.sqlstate.split(' ');
            assert!(
                codes.any(|code| outage.warning.starts_with(code)),
                "{}: {}",
                kind.name,
                outage.warning
            );
            assert!(
                outage.warning.contains(kind.remedy),
                "{}: {}",
                kind.name,
                outage.warning
            );
            outage
        });
    }
    let mut outages = Vec::new();
    while let Some(outage) = running.join_next().await {
        let outage = outage.unwrap();
        outage.print();
        outages.push(outage);
    }
    outages.iter().for_each(|outage| outage.check(2 * SECOND));
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_database_that_refuses_sessions_or_writes() {
    observed(kinds::access()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_database_with_a_damaged_schema() {
    observed(kinds::schema()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_database_that_does_not_answer_statements() {
    observed(kinds::waiting()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_server_that_is_gone() {
    let postgres = Postgres::start().await;
    let (url, fleet) = (
        postgres.url(),
        Fleet::start(&postgres, &postgres.url(), "postgres").await,
    );
    let server = tokio::sync::Mutex::new(postgres);
    let begin = || async { server.lock().await.crash() };
    let end = || async { server.lock().await.run().await };
    let outage = fleet.observe("server stopped", begin, end).await;
    outage.print();
    outage.check(4 * SECOND);
    assert!(
        // A server that is still shutting down has a code of its own.
        outage.warning.contains("the server runs"),
        "{url}: {}",
        outage.warning
    );
}

/// The server presents the certificate of a CA that the replicas do not trust, and later the old one.
#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_server_with_a_certificate_that_is_not_trusted() {
    let postgres = Postgres::start().await;
    let [trusted, _] = ["trusted", "other"].map(|name| {
        let identity = Identity::new(vec!["127.0.0.1".to_owned()]);
        postgres.write(&format!("{name}.pem"), &identity.cert);
        postgres.write(&format!("{name}.key"), &identity.key());
        postgres.write(&format!("{name}-ca.pem"), &identity.ca)
    });
    postgres.switch_tls_on("trusted").await;
    let verified = format!("?sslmode=verify-full&sslrootcert={}", trusted.display());
    let url = postgres.url() + &verified;
    let fleet = Fleet::start(&postgres, &url, "postgres").await;
    let end_sessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'outpace' and pid <> pg_backend_pid()";
    let begin = || async {
        postgres.present_certificate("other").await;
        postgres.execute("postgres", end_sessions).await;
    };
    let end = || postgres.present_certificate("trusted");
    let outage = fleet.observe("certificate of another CA", begin, end).await;
    outage.print();
    outage.check(2 * SECOND);
    assert!(
        outage.warning.contains("certificate") && outage.warning.contains("sslrootcert"),
        "{}",
        outage.warning
    );
}
