//! Token budgets with real SDKs: a mixed load through four replicas that share Postgres, against
//! fakes with the accounting of each vendor, configured as `docs/tokens.md` shows.
//!
//! Each mode of an SDK in each coding has a budget of its own. The table that each test prints shows
//! the part of the budget that was used, the refusals of the fake, and by how much the requests
//! exceeded the budget. `OUTPACE_LLM_SECONDS` (4 by default) is the time that the budgets last.

mod bedrock;
mod judge;
mod load;
mod site;

use std::process::Stdio;
use std::time::Duration;

use crate::fakes::{Anthropic, Bedrock, FakeEntry, Gemini, OpenAi, Vendor};
use crate::harness::soon;
use judge::{BOTH, Budgets, INPUT, TOKENS, judge};
use load::{Call, Cell, announced, cells, has_modules, input, scripts, send, total};
use site::Site;

const REPLICAS: usize = 4;
/// Tokens of each budget in each [`WINDOW`]. The largest call fits.
const BUDGET: u64 = 16_000;
const WINDOW: Duration = Duration::from_secs(8);
/// Requests per window, which no test uses up.
const MANY: u64 = 100_000;
/// Time that the fakes take for a response.
const TAKES: Duration = Duration::from_millis(200);

fn seconds() -> u64 {
    let set = std::env::var("OUTPACE_LLM_SECONDS").ok();
    set.map_or(4, |seconds| seconds.parse().unwrap())
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
    /// True if the API counts tokens apart that its cache holds.
    has_cache: bool,
    /// Part by which a meter may exceed what the fake counted, because nothing is settled.
    excess: f64,
}

impl Sdk {
    async fn run(&self, vendor: impl Vendor) {
        if !has_modules(self.modules).await {
            return;
        }
        let site = Site::start(self.heading, vendor, REPLICAS).await;
        let cells = cells(self.modes, self.cost, self.has_cache);
        send(self.script, &site.programs, &cells).await;
        settled(self.name, &site, &cells, self.budgets, self.excess).await;
    }
}

/// Prints the table of a run, and asserts its figures and that the replicas charged what the fake
/// counted.
async fn settled(name: &str, site: &Site, cells: &[Cell], budgets: Budgets, excess: f64) {
    let log = site.fake.log();
    judge(name, &log, cells, budgets);
    let passed = log.iter().filter(|entry| entry.refused_by.is_none());
    let counted = budgets.iter();
    let counted = counted.map(|(_, cost)| passed.clone().map(cost).sum());
    let counted: Vec<u64> = counted.collect();
    site.meters_agree(&counted, excess).await;
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
        has_cache: false,
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
        has_cache: false,
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
        has_cache: true,
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
        has_cache: false,
        excess: 0.0,
    };
    sdk.run(Gemini::new(MANY, BUDGET, WINDOW)).await;
}

/// Calls an API once in each form by an SDK for Node, and waits until its usage is settled.
async fn node(script: &str, heading: &str, vendor: impl Vendor, counted: &[u64]) {
    let node = scripts().join("node_modules/.bin/node");
    if !node.exists() {
        println!("NOT RUN: Node 24 is not installed");
        return;
    }
    let site = Site::start(heading, vendor, 1).await;
    let replica = &site.programs[0];
    let mut client = tokio::process::Command::new(node);
    client
        .arg(scripts().join(script))
        .env("HTTPS_PROXY", format!("http://{}", replica.listen))
        .env("NODE_USE_ENV_PROXY", "1")
        .env("NODE_EXTRA_CA_CERTS", replica.path("data/ca.pem"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = soon("the end of the client", client.output())
        .await
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{errors}");
    let log = site.fake.log();
    let is_coded = |entry: &FakeEntry| entry.coding != "identity";
    assert!(log.iter().all(is_coded), "{log:?}");
    site.meters_agree(counted, 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_the_sdk_of_openai_for_node_is_settled() {
    let mut openai = OpenAi::new(MANY, BUDGET, WINDOW);
    openai.counts_used = true;
    let heading = "APIs in the form of OpenAI that count what was used";
    node("llm_openai.mjs", heading, openai, &[4 * 180]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_the_sdk_of_anthropic_for_node_is_settled() {
    let anthropic = Anthropic::new(MANY, BUDGET, BUDGET, WINDOW);
    let counted = [2 * (60 + 20), 2 * 120];
    node("llm_anthropic.mjs", "Anthropic", anthropic, &counted).await;
}

/// The API reserves what a request announces, and returns the rest at its end.
#[tokio::test(flavor = "multi_thread")]
async fn budgets_of_bedrock_are_used_over_plain_http() {
    let mut bedrock = Bedrock::new(MANY, BUDGET, WINDOW);
    bedrock.takes = TAKES;
    let site = Site::start("Bedrock", bedrock, REPLICAS).await;
    let cells = cells(&["converse", "invoke"], total, true);
    bedrock::send(&site.programs, &cells).await;
    settled("bedrock", &site, &cells, TOKENS, 0.0).await;
}
