//! Blocks of parts of a target, which this replica shares with the others through the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::{BlockClaim, BlockFilter, BlockScope, ScopedBlock};
use super::link::{Heartbeat, Link};
use super::{SharedState, TargetHandle};
use crate::clock::Instant;

/// Maps the instants of a block to another clock. A missing one stays missing.
fn convert(mut block: ScopedBlock, clock: impl Fn(Instant) -> Instant) -> ScopedBlock {
    block.since = clock(block.since);
    block.until = clock(block.until);
    for optional in [&mut block.asked, &mut block.rest] {
        if *optional > Instant::ZERO {
            *optional = clock(*optional);
        }
    }
    block
}

impl<L: Link> SharedState<L> {
    /// Holds all requests of a target on this replica. Returns the end of the block by the store's
    /// clock, or `None` if a later block is known or this one has ended.
    pub(super) fn hold(&self, handle: &TargetHandle, until: Instant) -> Option<Instant> {
        let theirs = self.store().offset.to_store_clock(until);
        let mut view = handle.view();
        if until <= self.parts.clock.now() || !view.block(theirs) {
            return None;
        }
        let epoch = view.epoch;
        drop(view);
        handle.publish(epoch);
        Some(theirs)
    }

    /// Adds a block to the local ones and reports it to the store.
    pub(super) fn impose(self: &Arc<Self>, target: &Arc<str>, block: ScopedBlock) {
        let (handle, now) = (self.handle(target), self.parts.clock.now());
        let imposed = handle.blocks.change(|blocks| {
            blocks.sweep(now);
            let imposed = blocks.impose(block.clone(), now);
            (imposed.is_some(), imposed)
        });
        let Some(imposed) = imposed else {
            return;
        };
        let is_held = imposed.is_target() && self.hold(&handle, block.until).is_some();
        handle.unreported.fetch_add(1, Ordering::AcqRel);
        let (inner, target) = (Arc::clone(self), Arc::clone(target));
        self.parts.tasks.spawn_detached(async move {
            inner.report_imposed(Arc::clone(&target), block).await;
            handle.unreported.fetch_sub(1, Ordering::AcqRel);
            if is_held {
                inner.learn_block(&handle, target).await;
            }
        });
    }

    /// Reads how the store has counted a block of the whole target that was reported. The store
    /// counts none that an operator has lifted before the report arrived.
    async fn learn_block(&self, handle: &TargetHandle, target: Arc<str>) {
        let mut link_state = self.link_state.subscribe();
        while link_state.wait_for(|link| link.is_up()).await.is_ok() {
            // A block in the past changes nothing and returns the count.
            match self.link.block(Arc::clone(&target), Instant::ZERO).await {
                Ok(epoch) => return handle.view().blocked_at(epoch),
                Err(error) => self.on_failure(&error),
            }
        }
    }

    /// Reports a block to the store as soon as it is connected. The report is dropped when the
    /// block ends.
    async fn report_imposed(&self, target: Arc<str>, block: ScopedBlock) {
        let mut link_state = self.link_state.subscribe();
        while self.parts.clock.now() < block.until {
            if link_state.wait_for(|link| link.is_up()).await.is_err() {
                return;
            }
            let offset = |at| self.store().offset.to_store_clock(at);
            let theirs = convert(block.clone(), offset);
            match self.link.impose(Arc::clone(&target), theirs).await {
                Ok(()) => return,
                Err(error) => self.on_failure(&error),
            }
        }
    }

    /// Asks the store for permission to send a request of a blocked scope, if this replica knows
    /// none that holds it. While the store is unreachable, this replica decides alone.
    pub(super) async fn claim(self: Arc<Self>, target: Arc<str>, scope: BlockScope) -> BlockClaim {
        let (handle, now) = (self.handle(&target), self.parts.clock.now());
        let own = handle
            .blocks
            .change(|blocks| (false, blocks.claim(&scope, now)));
        let is_up = self.link_state.borrow().is_up();
        if !matches!(own, BlockClaim::Probe(_)) || !is_up {
            return own;
        }
        match self.link.claim(target, scope.clone()).await {
            Ok(BlockClaim::Probe(_)) | Err(_) => own,
            Ok(BlockClaim::Open) => {
                handle.blocks.change(|blocks| (blocks.remove(&scope), ()));
                BlockClaim::Open
            }
            Ok(BlockClaim::Wait(until)) => {
                let until = self.store().offset.to_local_clock(until);
                handle
                    .blocks
                    .change(|blocks| (true, blocks.rest_until(&scope, until)));
                BlockClaim::Wait(until)
            }
        }
    }

    /// Ends the probe of the block that ended at `until`, here and in the store.
    pub(super) fn end_probe(
        self: &Arc<Self>,
        target: &Arc<str>,
        scope: &BlockScope,
        until: Instant,
        answered: bool,
    ) {
        let handle = self.handle(target);
        let ended = handle.blocks.change(|blocks| {
            let ended = blocks.end_probe(scope, until, answered);
            (ended, ended)
        });
        if !ended {
            return;
        }
        let theirs = self.store().offset.to_store_clock(until);
        let (inner, target, scope) = (Arc::clone(self), Arc::clone(target), scope.clone());
        self.parts.tasks.spawn_detached(async move {
            // If this report is lost, another probe follows once this one has been open for 2 s.
            let _ = inner.link.end_probe(target, scope, theirs, answered).await;
        });
    }

    /// Lifts the selected blocks, here and in the store. Returns their number.
    pub(super) async fn lift(
        &self,
        target: Arc<str>,
        filter: BlockFilter,
    ) -> Result<usize, String> {
        let (handle, now) = (self.handle(&target), self.parts.clock.now());
        let lifted = handle.blocks.change(|blocks| {
            let lifted = blocks.lift(&filter, now);
            (!lifted.is_empty(), lifted)
        });
        let is_target = filter.selects(&BlockScope::default());
        if is_target {
            handle.view().lift_block();
        }
        let told = self.link.lift(target, filter).await;
        let told = told
            .map_err(|error| format!("the ledger did not lift the blocks: {error}; try again"))?;
        if is_target {
            // A call that was executed before the lift may have brought the block back.
            handle.view().lift_block();
        }
        Ok(lifted.len().max(told))
    }

    /// Reads the blocks of all targets whose blocks have changed in the store.
    pub(super) async fn refresh_blocks(&self, heartbeat: &Heartbeat) {
        for (target, version) in &heartbeat.blocks {
            let handle = self.handle(target);
            let is_known = handle.version.load(Ordering::Acquire) == *version;
            if is_known || handle.unreported.load(Ordering::Acquire) > 0 {
                continue;
            }
            // After a failure the next heartbeat repeats the call.
            let Ok(blocks) = self.link.blocks(Arc::clone(target)).await else {
                continue;
            };
            self.replace_blocks(&handle, blocks);
            handle.version.store(*version, Ordering::Release);
        }
    }

    fn replace_blocks(&self, handle: &TargetHandle, blocks: Vec<ScopedBlock>) {
        // A block that was imposed during the call is not among its results.
        if handle.unreported.load(Ordering::Acquire) > 0 {
            return;
        }
        let store = self.store();
        let local = |at| store.offset.to_local_clock(at);
        let blocks: Vec<ScopedBlock> = blocks
            .into_iter()
            .map(|block| convert(block, local))
            .collect();
        drop(store);
        let is_free = handle.blocks.change(|known| {
            known.replace(blocks.into_iter());
            (true, known.get(&BlockScope::default()).is_none())
        });
        let now = self.store().offset.to_store_clock(self.parts.clock.now());
        let mut view = handle.view();
        // A block that was imposed and lifted between two heartbeats is known from calls only.
        if is_free && view.summary().1 > now {
            view.lift_block();
        }
    }
}
