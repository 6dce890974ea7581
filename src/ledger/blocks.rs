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
    /// True if the origin asked for more than `block_max`, so that requests are not held.
    pub longer: bool,
    /// Words of the origin that caused the block.
    pub cause: BlockCause,
    /// Instant until which a probe may remain unanswered, or 0 if none is on its way.
    #[serde(default)]
    pub rest: Instant,
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
}

impl TargetBlocks {
    /// Adds a block, unless a later one of the same scope is known. A second credential that is
    /// refused within the block of another one widens the block. Returns the scope that is blocked
    /// now, or `None` if nothing has changed.
    pub fn impose(&mut self, mut block: ScopedBlock, now: Instant) -> Option<BlockScope> {
        if block.until <= now {
            return None;
        }
        if block.scope.credential.is_some() && self.blocks_another(&block.scope, now) {
            block.scope.credential = None;
            let wide = block.scope.clone();
            self.blocks
                .retain(|scope, _| scope.limit != wide.limit || scope.key != wide.key);
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
        self.blocks
            .retain(|_, block| block.until.max(block.rest) + BLOCK_KEPT > now);
    }

    /// Asks for permission to send a request of this scope. At most one request gets it per block,
    /// and another one if the first stays without an answer.
    pub fn claim(&mut self, scope: &BlockScope, now: Instant) -> BlockClaim {
        let Some(block) = self.blocks.get_mut(scope) else {
            return BlockClaim::Open;
        };
        let held = block.until.max(block.rest);
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
    pub fn lift(&mut self, filter: &BlockFilter) -> Vec<ScopedBlock> {
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
mod tests {
    use super::*;

    fn at(seconds: i64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    fn of_key(key: &str) -> BlockScope {
        BlockScope {
            limit: Some("l".into()),
            key: Some(key.into()),
            credential: None,
        }
    }

    fn of_credential(digest: &str) -> BlockScope {
        BlockScope {
            credential: Some(digest.into()),
            ..BlockScope::default()
        }
    }

    fn block(scope: BlockScope, until: i64) -> ScopedBlock {
        ScopedBlock {
            scope,
            since: at(0),
            until: at(until),
            longer: false,
            cause: BlockCause::default(),
            rest: Instant::ZERO,
        }
    }

    #[test]
    fn p7_one_probe_leaves_per_block_and_other_keys_are_free() {
        let mut blocks = TargetBlocks::default();
        assert_eq!(
            blocks.impose(block(of_key("a"), 10), at(1)),
            Some(of_key("a"))
        );
        assert_eq!(blocks.claim(&of_key("a"), at(2)), BlockClaim::Wait(at(10)));
        assert_eq!(blocks.claim(&of_key("b"), at(2)), BlockClaim::Open);
        assert_eq!(
            blocks.claim(&of_key("a"), at(10)),
            BlockClaim::Probe(at(10))
        );
        let rest = at(10) + PROBE_PATIENCE;
        assert_eq!(blocks.claim(&of_key("a"), at(10)), BlockClaim::Wait(rest));
        // The probe is refused, so the next interval begins.
        assert_eq!(
            blocks.impose(block(of_key("a"), 20), at(11)),
            Some(of_key("a"))
        );
        assert!(!blocks.end_probe(&of_key("a"), at(10), true));
        assert_eq!(blocks.claim(&of_key("a"), at(12)), BlockClaim::Wait(at(20)));
        assert_eq!(
            blocks.claim(&of_key("a"), at(21)),
            BlockClaim::Probe(at(20))
        );
        assert!(blocks.end_probe(&of_key("a"), at(20), true));
        assert_eq!(blocks.claim(&of_key("a"), at(21)), BlockClaim::Open);
    }

    #[test]
    fn p7_a_probe_that_never_left_or_got_no_answer_is_replaced() {
        let mut blocks = TargetBlocks::default();
        blocks.impose(block(of_key("a"), 10), at(1));
        blocks.claim(&of_key("a"), at(10));
        assert!(blocks.end_probe(&of_key("a"), at(10), false));
        assert_eq!(
            blocks.claim(&of_key("a"), at(10)),
            BlockClaim::Probe(at(10))
        );
        let later = at(10) + PROBE_PATIENCE;
        assert_eq!(blocks.claim(&of_key("a"), later), BlockClaim::Probe(at(10)));
    }

    #[test]
    fn p7_late_refusals_only_extend() {
        let mut blocks = TargetBlocks::default();
        blocks.impose(block(of_key("a"), 10), at(1));
        assert_eq!(blocks.impose(block(of_key("a"), 9), at(2)), None);
        assert_eq!(blocks.impose(block(of_key("a"), 3), at(4)), None);
        assert_eq!(
            blocks.impose(block(of_key("a"), 11), at(2)),
            Some(of_key("a"))
        );
    }

    #[test]
    fn p7_a_second_credential_within_the_block_widens_it() {
        let mut blocks = TargetBlocks::default();
        blocks.impose(block(of_credential("a"), 10), at(1));
        // The same credential and a credential after the block widen nothing.
        let same = blocks.impose(block(of_credential("a"), 12), at(2));
        assert_eq!(same, Some(of_credential("a")));
        let after = blocks.clone().impose(block(of_credential("b"), 20), at(13));
        assert_eq!(after, Some(of_credential("b")));
        let wide = blocks.impose(block(of_credential("b"), 20), at(3));
        assert_eq!(wide, Some(BlockScope::default()));
        assert!(wide.is_some_and(|wide| wide.is_target()));
        assert_eq!(blocks.all().len(), 1);
    }

    /// Reaches the bound `BLOCKS_MAX`.
    #[test]
    fn p14_bounds_keys_that_rotate_make_a_bounded_number_of_blocks() {
        let mut blocks = TargetBlocks::default();
        let most = i64::try_from(BLOCKS_MAX).unwrap();
        for number in 0..most + 5 {
            blocks.impose(block(of_key(&number.to_string()), 100 + number), at(1));
        }
        assert_eq!(blocks.len(), BLOCKS_MAX);
        // The blocks that end first make room.
        assert_eq!(blocks.get(&of_key("4")), None);
        assert!(blocks.get(&of_key("5")).is_some());
        blocks.sweep(at(101 + most + 5) + BLOCK_KEPT + Duration::from_secs(1));
        assert_eq!(blocks.len(), 0);
    }

    #[test]
    fn p7_an_operator_lifts_one_block_or_all() {
        let lift = |limit: Option<&str>, keys: &[&str]| {
            let mut blocks = TargetBlocks::default();
            for scope in [
                of_key("a"),
                of_key("b"),
                of_credential("c"),
                BlockScope::default(),
            ] {
                blocks.impose(block(scope, 10), at(1));
            }
            let filter = BlockFilter {
                limit: limit.map(Into::into),
                keys: keys.iter().map(|key| (*key).into()).collect(),
            };
            blocks.lift(&filter).len()
        };
        for (limit, keys, lifted) in [
            (None, &[][..], 4),
            (Some("l"), &[], 2),
            (Some("l"), &["a"], 1),
            (None, &["c"], 1),
            (Some("m"), &[], 0),
        ] {
            assert_eq!(lift(limit, keys), lifted, "{limit:?} {keys:?}");
        }
    }
}
