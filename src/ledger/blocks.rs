//! Blocks of a part of a target: one limit, one key of a limit, or one credential. The requests of a
//! blocked scope wait outside of all queues, and one probe per block leaves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::bounds::{BLOCK_KEPT, BLOCKS_MAX, PROBE_PATIENCE};
use crate::clock::Instant;
use crate::policy::{Scope, Target};
use crate::sync;

/// Longest time between two ends of the same block, as a replica and the store compute it. Two blocks
/// of one scope are further apart.
const SAME: Duration = Duration::from_millis(50);

/// The requests of a target that a block holds. Each part that is present narrows them, so a scope
/// without any part is the whole target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct BlockScope {
    /// Name of the limit that applies to the requests.
    pub limit: Option<Arc<str>>,
    /// Key under which the limit counts the requests.
    pub key: Option<Arc<str>>,
    /// Digest of the credential that the client sends.
    pub credential: Option<Arc<str>>,
}

impl BlockScope {
    /// Returns the narrowest part that the scope names, of a closed set of words.
    pub const fn kind(&self) -> &'static str {
        match (&self.limit, &self.key, &self.credential) {
            (_, _, Some(_)) => "credential",
            (_, Some(_), None) => "key",
            (Some(_), None, None) => "limit",
            (None, None, None) => "target",
        }
    }

    /// Returns true for the scope of all requests of the target.
    pub const fn is_target(&self) -> bool {
        self.limit.is_none() && self.credential.is_none()
    }

    /// Returns all scopes that a block of this request could have. The widest comes first.
    pub fn of_request<'a>(
        target: &'a Target,
        scope: &'a Scope,
        credential: Option<&'a Arc<str>>,
    ) -> impl Iterator<Item = Self> + 'a {
        let limits = scope.limits.iter().filter_map(|index| {
            let limit = target.limits.get(index)?;
            let key = scope.shared_key(index).filter(|_| limit.key.is_some());
            Some(Self {
                limit: Some(Arc::clone(&limit.name)),
                key: key.cloned(),
                credential: None,
            })
        });
        let wide = std::iter::once(Self::default()).chain(limits);
        wide.flat_map(move |wide| {
            let narrow = credential.map(|credential| Self {
                credential: Some(Arc::clone(credential)),
                ..wide.clone()
            });
            std::iter::once(wide).chain(narrow)
        })
    }
}

impl std::fmt::Display for BlockScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            self.limit.as_ref().map(|limit| format!("limit `{limit}`")),
            self.key.as_ref().map(|key| format!("key `{key}`")),
            self.credential
                .as_ref()
                .map(|digest| format!("credential `{digest}`")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => f.write_str("the whole target"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

/// The words of an origin that caused a block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlockCause {
    /// Status code of the response.
    pub status: u16,
    /// Field that names the wait, or an empty text if the response names none.
    pub field: Arc<str>,
    /// Value of this field, cut to [`BLOCK_TEXT`](crate::bounds::BLOCK_TEXT) bytes.
    pub value: Arc<str>,
    /// Path of the refused request without its query, cut to the same length.
    pub path: Arc<str>,
}

/// A block of one scope, which lets one probe leave after its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopedBlock {
    /// Requests that are held.
    pub scope: BlockScope,
    /// Instant at which the origin refused a request.
    pub since: Instant,
    /// End of the block, at which a probe may leave.
    pub until: Instant,
    /// Instant before which the origin wants no request, or 0 if it names none.
    pub asked: Instant,
    /// True if the origin asked for more than `block_max`, so that requests are not held.
    pub longer: bool,
    /// Words of the origin that caused the block.
    pub cause: BlockCause,
    /// Instant until which a probe may remain unanswered, or 0 if none is on its way.
    #[serde(default)]
    pub rest: Instant,
}

impl BlockCause {
    /// Returns the place in which the origin named the wait, of a closed set of words.
    pub fn source(&self) -> &'static str {
        let field = &*self.field;
        let is_any = |parts: &[&str]| parts.iter().any(|part| field.contains(part));
        match field {
            "" => "none",
            "body" => "body",
            _ if is_any(&["retry-after", "retry_after"]) => "retry-after",
            _ if is_any(&["reset", "ratelimit"]) => "reset",
            _ => "other",
        }
    }
}

impl ScopedBlock {
    /// Returns the instant at which the next request of the scope may leave.
    pub fn next_attempt(&self) -> Instant {
        self.until.max(self.rest)
    }

    /// Returns the end that the origin asked for, or `None` if it named none.
    pub fn asked(&self) -> Option<Instant> {
        (self.asked > Instant::ZERO).then_some(self.asked)
    }

    /// Returns true unless the block ended long ago and no request has asked about it since.
    fn is_kept(&self, now: Instant) -> bool {
        self.next_attempt() + BLOCK_KEPT > now
    }
}

/// Part of a target's blocks that an operator lifts. Each part that is present narrows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockFilter {
    /// Name of the limit of the blocks, or `None` for the blocks of all limits and of the target.
    pub limit: Option<Arc<str>>,
    /// Keys or digests of credentials, of which the block has one. Empty for all blocks.
    pub keys: Vec<Arc<str>>,
}

impl BlockFilter {
    /// Returns true if the block of this scope is to be lifted.
    pub fn selects(&self, scope: &BlockScope) -> bool {
        let is_named = |known: &Option<Arc<str>>| {
            known
                .as_ref()
                .is_some_and(|known| self.keys.contains(known))
        };
        let limit = self.limit.is_none() || self.limit == scope.limit;
        let keys = self.keys.is_empty() || is_named(&scope.key) || is_named(&scope.credential);
        limit && keys
    }
}

/// Permission to send the next request of a blocked scope, or the time to wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockClaim {
    /// The scope is not blocked any more.
    Open,
    /// The request is the probe of the block that ended at this instant.
    Probe(Instant),
    /// No request may leave before this instant.
    Wait(Instant),
}

/// All blocks of one target.
#[derive(Debug, Clone, Default)]
pub struct TargetBlocks {
    blocks: HashMap<BlockScope, ScopedBlock>,
    /// Last time that an operator lifted blocks.
    lifted: Instant,
}

impl TargetBlocks {
    /// Adds a block, unless a later one of the same scope is known. A refusal from before the last
    /// lift adds none, because its report was on its way when the operator lifted the blocks. A second credential that is
    /// refused within the block of another one widens the block. Returns the scope that is blocked
    /// now, or `None` if nothing has changed.
    pub fn impose(&mut self, mut block: ScopedBlock, now: Instant) -> Option<BlockScope> {
        if block.until <= now || block.since <= self.lifted {
            return None;
        }
        if block.scope.credential.is_some() && self.blocks_another(&block.scope, now) {
            block.scope.credential = None;
            let wide = block.scope.clone();
            self.blocks.retain(|scope, _| {
                let is_wider = scope.credential.is_none();
                is_wider || scope.limit != wide.limit || scope.key != wide.key
            });
        }
        if let Some(known) = self.blocks.get(&block.scope)
            && known.until >= block.until
        {
            return None;
        }
        self.make_room(now);
        block.rest = Instant::ZERO;
        let scope = block.scope.clone();
        self.blocks.insert(scope.clone(), block);
        Some(scope)
    }

    /// Returns true if another credential of the same limit and key is blocked now.
    fn blocks_another(&self, scope: &BlockScope, now: Instant) -> bool {
        self.blocks.values().any(|known| {
            let other = &known.scope;
            known.until > now
                && (&other.limit, &other.key) == (&scope.limit, &scope.key)
                && other.credential.is_some()
                && other.credential != scope.credential
        })
    }

    /// Removes blocks that ended long ago, and beyond [`BLOCKS_MAX`] the one that ends first.
    fn make_room(&mut self, now: Instant) {
        if self.blocks.len() < BLOCKS_MAX {
            return;
        }
        self.sweep(now);
        if self.blocks.len() >= BLOCKS_MAX {
            let first = self.blocks.values().min_by_key(|block| block.until);
            if let Some(scope) = first.map(|block| block.scope.clone()) {
                self.blocks.remove(&scope);
            }
        }
    }

    /// Removes blocks that ended long ago and that no request has asked about since.
    pub fn sweep(&mut self, now: Instant) {
        self.blocks.retain(|_, block| block.is_kept(now));
    }

    /// Asks for permission to send a request of this scope. At most one request gets it per block,
    /// and another one if the first stays without an answer.
    pub fn claim(&mut self, scope: &BlockScope, now: Instant) -> BlockClaim {
        let Some(block) = self.blocks.get_mut(scope) else {
            return BlockClaim::Open;
        };
        let held = block.next_attempt();
        if held > now {
            return BlockClaim::Wait(held);
        }
        block.rest = now + PROBE_PATIENCE;
        BlockClaim::Probe(block.until)
    }

    /// Ends the probe of the block that ended at `until`. An answered probe ends the block, and
    /// after one that was never sent another request may be the probe. Returns true if the block
    /// has changed.
    pub fn end_probe(&mut self, scope: &BlockScope, until: Instant, answered: bool) -> bool {
        let Some(block) = self.blocks.get_mut(scope) else {
            return false;
        };
        let apart = block.until.since(until).max(until.since(block.until));
        if apart > SAME {
            return false;
        }
        if answered {
            self.blocks.remove(scope);
        } else {
            block.rest = Instant::ZERO;
        }
        true
    }

    /// Removes the block of this scope. Returns true if there was one.
    pub(super) fn remove(&mut self, scope: &BlockScope) -> bool {
        self.blocks.remove(scope).is_some()
    }

    /// Lets no request of the scope ask again before `until`.
    pub(super) fn rest_until(&mut self, scope: &BlockScope, until: Instant) {
        if let Some(block) = self.blocks.get_mut(scope) {
            block.rest = until;
        }
    }

    /// Replaces all blocks by others.
    pub(super) fn replace(&mut self, blocks: impl Iterator<Item = ScopedBlock>) {
        let blocks = blocks.map(|block| (block.scope.clone(), block));
        self.blocks = blocks.collect();
    }

    /// Removes the selected blocks and returns them.
    pub fn lift(&mut self, filter: &BlockFilter, now: Instant) -> Vec<ScopedBlock> {
        self.lifted = now;
        let mut lifted = Vec::new();
        self.blocks.retain(|scope, block| {
            let selected = filter.selects(scope);
            lifted.extend(selected.then(|| block.clone()));
            !selected
        });
        lifted
    }

    /// Returns the block of this scope.
    pub fn get(&self, scope: &BlockScope) -> Option<&ScopedBlock> {
        self.blocks.get(scope)
    }

    /// Returns the blocks that have not ended long ago, in no order.
    pub fn kept(&self, now: Instant) -> impl Iterator<Item = &ScopedBlock> {
        self.blocks.values().filter(move |block| block.is_kept(now))
    }

    /// Returns the number of blocks that have not ended long ago, and the first `most` of them. The
    /// one whose requests wait longest comes first.
    pub fn longest(&self, most: usize, now: Instant) -> (usize, Vec<ScopedBlock>) {
        let mut all: Vec<&ScopedBlock> = self.kept(now).collect();
        let order = |one: &&ScopedBlock, other: &&ScopedBlock| {
            let by_end = other.next_attempt().cmp(&one.next_attempt());
            by_end.then_with(|| one.scope.cmp(&other.scope))
        };
        all.sort_by(order);
        let longest = all.iter().take(most).map(|block| (*block).clone());
        (all.len(), longest.collect())
    }

    /// Returns all blocks in the order of their scopes.
    pub fn all(&self) -> Vec<ScopedBlock> {
        let mut all: Vec<ScopedBlock> = self.blocks.values().cloned().collect();
        all.sort_by(|one, other| one.scope.cmp(&other.scope));
        all
    }

    /// Returns true if nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Returns the number of blocks, with those that have ended but got no answer since.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }
}

/// The blocks of one target that this replica knows, with a channel that publishes changes.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Mutex<TargetBlocks>,
    /// Number of blocks, so that requests of a target without any need no lock.
    count: AtomicUsize,
    changes: watch::Sender<u64>,
}

impl BlockTable {
    /// Returns true if the target has no block.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Returns a channel with the number of changes so far.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Reads the blocks under their lock.
    pub fn read<T>(&self, then: impl FnOnce(&TargetBlocks) -> T) -> T {
        then(&sync::lock(&self.blocks))
    }

    /// Changes the blocks under their lock, and publishes the change if `then` returns true first.
    pub(super) fn change<T>(&self, then: impl FnOnce(&mut TargetBlocks) -> (bool, T)) -> T {
        let mut blocks = sync::lock(&self.blocks);
        let (changed, result) = then(&mut blocks);
        self.count.store(blocks.len(), Ordering::Release);
        drop(blocks);
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
        result
    }
}

#[cfg(test)]
mod tests;
