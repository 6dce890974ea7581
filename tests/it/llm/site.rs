//! Replicas before one fake, configured as `docs/tokens.md` shows, and what they charged.

use std::time::{Duration, SystemTime};

use sqlx::Row as _;

use super::{BUDGET, MANY, WINDOW};
use crate::blocks::connected;
use crate::fakes::{Fake, Vendor};
use crate::harness::{Postgres, Program, soon};

/// Units that a meter can count, and nanoseconds in which it forgets one.
const METERED: u64 = 10_000_000;
const METER_UNIT: i64 = 30 * 86_400 * 1_000_000_000 / 100_000;

/// Returns the configuration below a heading of the page about tokens, with the test's host and
/// numbers. Each limit on tokens is repeated as a meter, which counts the costs of all keys and holds
/// nothing.
fn configuration(heading: &str) -> (String, Vec<String>) {
    let requests = format!("{MANY}/1s");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tokens.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(&format!("## {heading}\n")).unwrap();
    let (_, section) = section.split_once("```yaml\n").unwrap();
    let yaml = section.split("```").next().unwrap();
    let mut limits = yaml.split("      - name: ");
    let head = limits.next().unwrap();
    let mut lines: Vec<String> = head.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("    hosts: ") {
            "    hosts: [api.test]".clone_into(line);
        }
    }
    let mut text = lines.join("\n") + "\n";
    // Limits on requests that stand in one line are not the subject of the tests.
    for rate in ["500/1m", "100/1m", "50/1m"] {
        text = text.replace(&format!("\"{rate}\""), &requests);
    }
    let mut meters = Vec::new();
    for limit in limits {
        let name = limit.lines().next().unwrap();
        let with_rate = |name: &str, rate: &str| {
            let lines = limit
                .lines()
                .skip(1)
                .filter(|line| !line.starts_with("        burst: "))
                .map(|line| match line.starts_with("        rate: ") {
                    true => format!("        rate: {rate}"),
                    false => line.to_owned(),
                });
            format!(
                "      - name: {name}\n{}\n",
                lines.collect::<Vec<_>>().join("\n")
            )
        };
        if !limit.contains("cost:") {
            text.push_str(&with_rate(name, &requests));
            continue;
        }
        let rate = format!("{BUDGET}/{}s", WINDOW.as_secs());
        text.push_str(&with_rate(name, &rate));
        let meter = format!("{name}-meter");
        let rate = format!("100000/30d\n        burst: {METERED}");
        let limit = with_rate(&meter, &rate);
        let shared = limit
            .lines()
            .filter(|line| !line.starts_with("        key: "));
        text.push_str(&(shared.collect::<Vec<_>>().join("\n") + "\n"));
        meters.push(meter);
    }
    (text, meters)
}

/// Replicas with their ledger, before one fake.
pub(super) struct Site {
    pub(super) programs: Vec<Program>,
    postgres: Postgres,
    meters: Vec<String>,
    pub(super) fake: Fake,
}

impl Site {
    /// Starts a fake, and this number of replicas with the configuration below a heading.
    pub(super) async fn start(heading: &str, vendor: impl Vendor, replicas: usize) -> Self {
        let fake = Fake::start(vendor).await;
        let postgres = Postgres::start().await;
        let (targets, meters) = configuration(heading);
        let url = postgres.url();
        let config = format!("ledger: {{ postgres: {{ url: \"{url}\" }} }}\n{targets}");
        let mut programs = Vec::new();
        for _ in 0..replicas {
            programs.push(Program::before(&fake.origin, &config).await);
        }
        for program in &programs {
            connected(program).await;
        }
        Self {
            programs,
            postgres,
            meters,
            fake,
        }
    }

    /// Returns the units that the replicas charged to each meter in total. A meter is a bucket that
    /// was full at the first request, and that forgets next to nothing.
    async fn metered(&self) -> Vec<u64> {
        let first = self.fake.log().iter().map(|entry| entry.at).min();
        let first = self.fake.started + first.unwrap_or_default();
        let first = first.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let first = i64::try_from(first.as_nanos()).unwrap();
        let mut database = self.postgres.connect().await.unwrap();
        let mut units = Vec::new();
        for meter in &self.meters {
            let sql =
                "select coalesce(max(mark), 0)::int8 from outpace.schedule where limit_name = $1";
            let row = sqlx::query(sql).bind(meter).fetch_one(&mut database).await;
            let mark = row.unwrap().get::<i64, _>(0);
            let found = (mark - first).max(0) + METER_UNIT / 2;
            units.push(u64::try_from(found / METER_UNIT).unwrap());
        }
        units
    }

    /// Returns the number of booked slots that came too late, so that they sent nothing.
    async fn voided(&self) -> u64 {
        let mut slots = 0.0;
        for program in &self.programs {
            let text = program.admin_get("/metrics").await.1;
            let voided = text.lines().filter_map(|line| {
                let rest = line.strip_prefix("outpace_slots_voided_total{")?;
                rest.split_once("} ")?.1.parse::<f64>().ok()
            });
            slots += voided.sum::<f64>();
        }
        slots as u64
    }

    /// Waits until each meter shows what the fake counted, or at most `excess` of a unit more. Each
    /// refused request may keep its estimate, and so may a request of each replica that was sent
    /// while the replica repeated its last known state to the ledger.
    pub(super) async fn meters_agree(&self, counted: &[u64], excess: f64) {
        let (voided, refused) = (self.voided().await, self.fake.refusals() as u64);
        println!("{voided} slots came too late, and {refused} requests were refused");
        let requests = self.fake.log().len() as u64;
        let rounding = if excess > 0.0 { requests } else { 0 };
        let most = |counted: u64| {
            let kept = 2 * BUDGET * refused + BUDGET / 2 * self.programs.len() as u64;
            counted + (counted as f64 * excess) as u64 + rounding + kept
        };
        let agree = async {
            loop {
                let metered = self.metered().await;
                let pairs = metered.iter().zip(counted);
                let agrees = |(metered, counted): (&u64, &u64)| {
                    (*counted..=most(*counted)).contains(metered)
                };
                if pairs.clone().all(agrees) {
                    return metered;
                }
                println!("metered {metered:?}, counted {counted:?}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let metered = soon("the settlements", agree).await;
        println!("metered {metered:?}, counted {counted:?}");
    }
}
