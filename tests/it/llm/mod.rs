//! Token budgets with real SDKs: a mixed load through four replicas that share Postgres, against
//! fakes with the accounting of each vendor, configured as `docs/tokens.md` shows.
//!
//! Each mode of an SDK in each coding has a budget of its own. The table that each test prints shows
//! the part of the budget that was used, the refusals of the fake, and by how much the requests
//! exceeded the budget. `OUTPACE_LLM_SECONDS` (5 by default) is the time that the budgets last.

mod load;

use std::process::Stdio;
use std::time::Duration;

use sqlx::Row as _;

use crate::blocks::connected;
use crate::fakes::{Anthropic, Fake, FakeEntry, Gemini, OpenAi, Vendor};
use crate::harness::{Postgres, Program, soon};
use load::{Call, Cell, announced, cells, has_modules, input, scripts, send, total};

const REPLICAS: usize = 4;
/// Tokens of each budget in each [`WINDOW`]. The largest call fits.
const BUDGET: u64 = 16_000;
const WINDOW: Duration = Duration::from_secs(4);
/// Requests per window, which no test uses up.
const MANY: u64 = 100_000;
/// Time that the fakes take for a response.
const TAKES: Duration = Duration::from_millis(200);
/// Length of a run from which the use of the budgets and the refusals are asserted, in seconds.
const LONG: u64 = 60;
/// Part of each budget that a long run uses, and part of the requests that the fake may refuse.
const USED: f64 = 0.9;
const REFUSED: f64 = 0.005;

fn seconds() -> u64 {
    let set = std::env::var("OUTPACE_LLM_SECONDS").ok();
    set.map_or(5, |seconds| seconds.parse().unwrap())
}

fn many() -> String {
    format!("{MANY}/1s")
}

/// Returns the configuration below a heading of the page about tokens, with the test's host and
/// numbers. Each limit on tokens is repeated as a meter, which counts the costs of all keys and holds
/// nothing.
fn configuration(heading: &str) -> (String, Vec<String>) {
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
    let mut text = lines
        .join("\n")
        .replace("500/1m", &many())
        .replace("50/1m", &many())
        + "\n";
    let mut meters = Vec::new();
    for limit in limits {
        let name = limit.lines().next().unwrap();
        let with_rate = |name: &str, rate: &str| {
            let lines =
                limit
                    .lines()
                    .skip(1)
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
            text.push_str(&with_rate(name, &many()));
            continue;
        }
        text.push_str(&with_rate(name, &format!("{BUDGET}/{}s", WINDOW.as_secs())));
        let meter = format!("{name}-meter");
        let rate = "10000000/30d\n        algorithm: sliding_window";
        let limit = with_rate(&meter, rate);
        let shared = limit
            .lines()
            .filter(|line| !line.starts_with("        key: "));
        text.push_str(&(shared.collect::<Vec<_>>().join("\n") + "\n"));
        meters.push(meter);
    }
    (text, meters)
}

/// Replicas with their ledger, before one fake.
struct Site {
    programs: Vec<Program>,
    postgres: Postgres,
    meters: Vec<String>,
    fake: Fake,
}

impl Site {
    async fn start(heading: &str, vendor: impl Vendor) -> Self {
        let fake = Fake::start(vendor).await;
        let postgres = Postgres::start().await;
        let (targets, meters) = configuration(heading);
        let url = postgres.url();
        let config = format!("ledger: {{ postgres: {{ url: \"{url}\" }} }}\n{targets}");
        let mut programs = Vec::new();
        for _ in 0..REPLICAS {
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

    /// Returns the units that the replicas charged to each meter in total.
    async fn metered(&self) -> Vec<u64> {
        let mut database = self.postgres.connect().await.unwrap();
        let mut units = Vec::new();
        for meter in &self.meters {
            let sql = "select coalesce(sum(used + (select coalesce(sum(one), 0) from unnest(log_units) one)), 0)::int8 from outpace.schedule where limit_name = $1";
            let row = sqlx::query(sql).bind(meter).fetch_one(&mut database).await;
            let found = row.unwrap().get::<i64, _>(0);
            units.push(u64::try_from(found).unwrap());
        }
        units
    }

    /// Returns the number of bookings that stay charged although no response settled them.
    async fn unsettled(&self) -> u64 {
        let mut slots = 0.0;
        for program in &self.programs {
            let text = program.admin_get("/metrics").await.1;
            let voided = text.lines().filter_map(|line| {
                let rest = line.strip_prefix("outpace_slots_voided_total{")?;
                rest.split_once("} ")?.1.parse::<f64>().ok()
            });
            slots += voided.sum::<f64>();
        }
        slots as u64 + self.fake.refusals() as u64
    }

    /// Waits until each meter shows what the fake counted, or at most `excess` of a unit more.
    async fn meters_agree(&self, counted: &[u64], excess: f64) {
        let unsettled = self.unsettled().await;
        println!("{unsettled} slots were voided or refused, so their estimates stay");
        let largest = 2 * BUDGET * unsettled;
        let log = self.fake.log().len() as u64;
        let most = |counted: u64| match excess {
            0.0 => counted + largest,
            excess => counted + (counted as f64 * excess) as u64 + log + largest,
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

/// Figures of one cell and one of its budgets.
struct Figures {
    used: f64,
    refused: usize,
    overshoot: f64,
}

/// Computes the figures of a budget, of which an entry takes `cost`.
fn figures(log: &[FakeEntry], cell: &Cell, cost: fn(&FakeEntry) -> u64) -> Figures {
    let of_cell = |entry: &&FakeEntry| entry.key.trim_start_matches("Bearer ") == cell.key;
    let mut entries: Vec<&FakeEntry> = log.iter().filter(of_cell).collect();
    entries.sort_by_key(|entry| entry.at);
    let refused = entries.iter().filter(|entry| entry.refused_by.is_some());
    let refused = refused.count();
    entries.retain(|entry| entry.refused_by.is_none());
    assert!(entries.iter().all(|entry| entry.coding == cell.coding));
    assert_eq!(entries.len(), cell.calls.len(), "{}", cell.key);
    let first = entries[0].at;
    let allowed = |entry: &FakeEntry| {
        let windows = (entry.at - first).as_secs_f64() / WINDOW.as_secs_f64();
        BUDGET as f64 * (1.0 + windows)
    };
    let (mut taken, mut overshoot) = (0.0, 0.0_f64);
    for entry in &entries {
        taken += cost(entry) as f64;
        overshoot = overshoot.max(taken - allowed(entry));
    }
    let last = entries.last().unwrap();
    Figures {
        used: taken / allowed(last),
        refused,
        overshoot,
    }
}

/// Budgets of an API: their names, and the units that an entry takes of each.
type Budgets = &'static [(&'static str, fn(&FakeEntry) -> u64)];

const TOKENS: Budgets = &[("tokens", |entry| entry.usage.input + entry.usage.output)];
const INPUT: Budgets = &[("input", |entry| entry.usage.input)];
const BOTH: Budgets = &[INPUT[0], ("output", |entry| entry.usage.output)];

/// Prints the table of an SDK and asserts its figures.
fn judge(name: &str, log: &[FakeEntry], cells: &[Cell], budgets: Budgets) {
    println!(
        "SDK, mode, coding, budget: calls, share of the budget used, 429s, overshoot in tokens"
    );
    let (mut refused, mut least) = (0, f64::INFINITY);
    for cell in cells {
        let mut most = 0.0_f64;
        for (number, (budget, cost)) in budgets.iter().enumerate() {
            let Figures {
                used,
                refused: of_cell,
                overshoot,
            } = figures(log, cell, *cost);
            println!(
                "{name:<10} {:<16} {:<8} {budget:<6} {:>4} {:>5.1} % {of_cell:>3} {overshoot:>6.0}",
                cell.mode,
                cell.coding,
                cell.calls.len(),
                used * 100.0,
            );
            refused += if number == 0 { of_cell } else { 0 };
            most = most.max(used);
        }
        least = least.min(most);
    }
    let share = refused as f64 / log.len() as f64;
    println!(
        "{name}: 429s {:.2} %, least use {:.1} %",
        share * 100.0,
        least * 100.0
    );
    // A busy machine delays the first requests, and the budget of the fake begins with them.
    assert!(
        seconds() < LONG || share <= REFUSED,
        "{name}: {refused} of {}",
        log.len()
    );
    assert!(seconds() < LONG || least >= USED, "{name}: {least}");
}

/// SDK with its modes, and the API that it is tested against.
struct Sdk {
    name: &'static str,
    heading: &'static str,
    script: &'static str,
    modules: &'static str,
    modes: &'static [&'static str],
    budgets: Budgets,
    cost: fn(&Call) -> u64,
    /// Part by which a meter may exceed what the fake counted, because nothing is settled.
    excess: f64,
}

impl Sdk {
    async fn run(&self, vendor: impl Vendor) {
        if !has_modules(self.modules).await {
            return;
        }
        let site = Site::start(self.heading, vendor).await;
        let cells = cells(self.modes, self.cost);
        send(self.script, &site.programs, &cells).await;
        let log = site.fake.log();
        judge(self.name, &log, &cells, self.budgets);
        let passed = log.iter().filter(|entry| entry.refused_by.is_none());
        let counted = self
            .budgets
            .iter()
            .map(|(_, cost)| passed.clone().map(cost).sum());
        let counted: Vec<u64> = counted.collect();
        site.meters_agree(&counted, self.excess).await;
    }
}

/// An estimate is rounded up by at most a sixteenth.
const ROUNDING: f64 = 1.0 / 16.0;

#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_openai_are_used_by_its_sdk() {
    let sdk = Sdk {
        name: "openai",
        heading: "OpenAI",
        script: "llm_openai.py",
        modules: "openai",
        modes: &[
            "chat",
            "chat-stream",
            "chat-default",
            "responses",
            "responses-stream",
        ],
        budgets: TOKENS,
        cost: announced,
        excess: ROUNDING,
    };
    let mut openai = OpenAi::new(MANY, BUDGET, WINDOW);
    openai.takes = TAKES;
    sdk.run(openai).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_apis_that_count_used_tokens_are_used_by_the_sdk_of_openai() {
    let sdk = Sdk {
        name: "compatible",
        heading: "APIs in the form of OpenAI that count what was used",
        script: "llm_openai.py",
        modules: "openai",
        modes: &["chat", "chat-stream", "responses", "responses-stream"],
        budgets: TOKENS,
        cost: total,
        excess: 0.0,
    };
    let mut openai = OpenAi::new(MANY, BUDGET, WINDOW);
    openai.takes = TAKES;
    openai.counts_used = true;
    sdk.run(openai).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_anthropic_are_used_by_its_sdk() {
    let sdk = Sdk {
        name: "anthropic",
        heading: "Anthropic",
        script: "llm_anthropic.py",
        modules: "anthropic",
        modes: &["messages", "messages-stream"],
        budgets: BOTH,
        cost: input,
        excess: 0.0,
    };
    let mut anthropic = Anthropic::new(MANY, BUDGET, BUDGET, WINDOW);
    anthropic.takes = TAKES;
    sdk.run(anthropic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_gemini_are_used_by_its_sdk() {
    let sdk = Sdk {
        name: "gemini",
        heading: "Gemini",
        script: "llm_gemini.py",
        modules: "google.genai",
        modes: &["generate", "generate-stream"],
        budgets: INPUT,
        cost: input,
        excess: 0.0,
    };
    sdk.run(Gemini::new(MANY, BUDGET, WINDOW)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_the_sdk_of_openai_for_node_is_settled() {
    let node = scripts().join("node_modules/.bin/node");
    if !node.exists() {
        println!("NOT RUN: Node 24 is not installed");
        return;
    }
    let mut openai = OpenAi::new(MANY, BUDGET, WINDOW);
    openai.counts_used = true;
    let heading = "APIs in the form of OpenAI that count what was used";
    let site = Site::start(heading, openai).await;
    let replica = &site.programs[0];
    let mut client = tokio::process::Command::new(node);
    client
        .arg(scripts().join("llm_openai.mjs"))
        .env("HTTPS_PROXY", format!("http://{}", replica.listen))
        .env("NODE_USE_ENV_PROXY", "1")
        .env("NODE_EXTRA_CA_CERTS", replica.path("data/ca.pem"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = soon("the end of the client", client.output())
        .await
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "4 ok\n",
        "{errors}"
    );
    let log = site.fake.log();
    assert!(
        log.iter().all(|entry| entry.coding != "identity"),
        "{log:?}"
    );
    site.meters_agree(&[4 * 180], 0.0).await;
}
