//! Fleet of replicas that share Postgres, and the bound of the attempts of a blocked scope.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::blocks::{blocks, connected};
use crate::harness::buffers::operate;
use crate::harness::{Origin, Postgres, Program, soon};

pub(super) const REPLICAS: usize = 4;

/// Replicas in front of one origin, which is the target `api`.
pub(super) struct Fleet {
    pub(super) programs: Vec<Program>,
    _postgres: Postgres,
}

impl Fleet {
    /// Starts the replicas with these further members of their target, and waits for their ledger.
    pub(super) async fn before(origin: &Origin, target: &str) -> Self {
        let postgres = Postgres::start().await;
        let config = format!(
            "ledger: {{ postgres: {{ url: \"{}\" }} }}\ntargets:\n  - name: api\n    hosts: [api.test, other.test]\n    max_wait: 10s\n    {target}\n",
            postgres.url(),
        );
        let mut programs = Vec::new();
        for _ in 0..REPLICAS {
            programs.push(Program::before(origin, &config).await);
        }
        for program in &programs {
            connected(program).await;
        }
        Self {
            programs,
            _postgres: postgres,
        }
    }

    /// Waits until all replicas know one block.
    pub(super) async fn all_know_one_block(&self) {
        soon("the block at all replicas", async {
            for program in &self.programs {
                while blocks(program).await.is_empty() {}
            }
        })
        .await;
    }

    /// Returns the scopes that any replica knows as blocked.
    pub(super) async fn blocked_scopes(&self) -> BTreeSet<String> {
        let mut scopes = BTreeSet::new();
        for program in &self.programs {
            let name = |block: &Value| block["scope"].to_string();
            scopes.extend(blocks(program).await.iter().map(name));
        }
        scopes
    }

    /// Lifts all blocks and waits until no replica knows one. A refusal whose client has gone away
    /// may bring a block back, so the lift is repeated.
    pub(super) async fn unblock(&self) {
        soon("the lift at all replicas", async {
            loop {
                let path = "/v1/targets/api/blocks";
                let (status, told) = operate(&self.programs[1], "DELETE", path, json!({})).await;
                assert_eq!(status, 200, "{told}");
                if self.blocked_scopes().await.is_empty() {
                    return;
                }
            }
        })
        .await;
    }
}

/// Asserts that at most one attempt leaves per block. The first attempt began the first block, of
/// which all replicas knew before any other one could leave.
pub(super) fn assert_probes(attempts: &[Duration], gap: Duration, context: &str) {
    let first = attempts.first().copied().unwrap_or_default();
    let since: Vec<Duration> = attempts.iter().map(|at| *at - first).collect();
    for (number, at) in since.iter().enumerate() {
        let earliest = gap * u32::try_from(number).unwrap();
        assert!(
            *at >= earliest,
            "{context}: more than one per {gap:?}: {since:?}"
        );
    }
}

pub(super) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let last = times.len().saturating_sub(1);
    let time = times.get((times.len() * percent / 100).min(last));
    time.copied().unwrap_or_default()
}
