//! The gate before the line of a target. Requests of a blocked scope wait here, so that they take no
//! place in the queue and no part in calls to the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;

use super::line::{Line, LineState};
use super::{Pacer, Refusal, RefusalKind, Ticket};
use crate::clock::Instant;
use crate::ledger::{BlockClaim, BlockScope, BlockTable, Ledger, ScopedBlock};
use crate::policy::{KeySecret, Scope, Target};

/// Permission to send the next request of a blocked scope. A drop without a request gives it to
/// another one, and otherwise ends the block unless the origin has renewed it.
#[derive(Debug)]
pub struct Probe {
    ledger: Arc<dyn Ledger>,
    target: Arc<Target>,
    scope: BlockScope,
    /// End of the block to which the permission belongs.
    until: Instant,
    sent: AtomicBool,
}

impl Probe {
    /// Marks the request as sent, so that its end tells if the block is over.
    pub(super) fn leave(&self) {
        self.sent.store(true, Ordering::Release);
    }

    /// Ends the block now, because the origin has answered without a new one.
    pub(super) fn answered(&self) {
        let target = &self.target;
        self.ledger.end_probe(target, &self.scope, self.until, true);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let sent = *self.sent.get_mut();
        self.ledger
            .end_probe(&self.target, &self.scope, self.until, sent);
    }
}

/// Block that holds a request now, as the gate has found it.
struct BlockHold {
    block: ScopedBlock,
    /// Instant at which the request may ask for permission to leave.
    until: Instant,
}

/// Request whose blocks are looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passenger<'a> {
    pub(super) target: &'a Target,
    pub(super) scope: &'a Scope,
    pub(super) credential: Option<&'a HeaderValue>,
    pub(super) probes: &'a [Arc<Probe>],
}

impl Passenger<'_> {
    /// Returns the block that holds the request longest. A block of the whole target counts only if
    /// it is longer than `block_max`, because the ledger holds its requests otherwise.
    fn held(&self, table: &BlockTable, secret: &KeySecret, now: Instant) -> Option<BlockHold> {
        let credential = self.credential.map(|value| digest(value, secret));
        table.read(|blocks| {
            BlockScope::of_request(self.target, self.scope, credential.as_ref())
                .filter(|scope| !self.probes.iter().any(|probe| probe.scope == *scope))
                .filter_map(|scope| {
                    let block = blocks.get(&scope)?;
                    let is_refused = block.longer && block.until > now;
                    (!scope.is_target() || is_refused).then(|| BlockHold {
                        block: block.clone(),
                        until: block.next_attempt(),
                    })
                })
                .max_by_key(|held| held.until)
        })
    }

    /// Returns true if a block holds the request now.
    pub(super) fn is_held(&self, table: &BlockTable, secret: &KeySecret, now: Instant) -> bool {
        !table.is_empty() && self.held(table, secret, now).is_some()
    }
}

/// Returns the digest by which blocks know a credential.
pub fn digest(credential: &HeaderValue, secret: &KeySecret) -> Arc<str> {
    secret.digest(&String::from_utf8_lossy(credential.as_bytes()))
}

impl Ticket {
    pub(super) fn passenger(&self) -> Passenger<'_> {
        Passenger {
            target: &self.target,
            scope: &self.scope,
            credential: self.credential.as_ref(),
            probes: &self.probes,
        }
    }
}

impl Pacer {
    /// Returns true if a block of a part of the target holds the request, so that it must not enter
    /// the line.
    pub fn is_blocked(&self, ticket: &Ticket) -> bool {
        let table = self.ledger.blocks(&ticket.target.name);
        !table.is_empty()
            && ticket
                .passenger()
                .is_held(&table, &self.ledger.key_secret(), self.clock.now())
    }

    /// Returns the block that holds a request of this scope and credential now.
    pub fn block_of(
        &self,
        target: &Arc<Target>,
        scope: &Scope,
        credential: Option<&HeaderValue>,
    ) -> Option<ScopedBlock> {
        let passenger = Passenger {
            target,
            scope,
            credential,
            probes: &[],
        };
        let (table, secret) = (self.ledger.blocks(&target.name), self.ledger.key_secret());
        let held = passenger.held(&table, &secret, self.clock.now());
        let held = held.map(|held| held.block);
        held.or_else(|| self.target_block(target))
    }

    /// Returns the block of the whole target, unless it has ended. The ledger holds its requests.
    pub fn target_block(&self, target: &Target) -> Option<ScopedBlock> {
        let (table, now) = (self.ledger.blocks(&target.name), self.clock.now());
        let block = table.read(|blocks| blocks.get(&BlockScope::default()).cloned());
        block.filter(|block| block.until > now)
    }

    /// Waits until no block holds the request, or until it is the probe of those that do.
    ///
    /// # Errors
    /// Returns the refusal if the block ends after the deadline, or the origin asked for more than
    /// `block_max`.
    pub async fn pass(&self, ticket: &mut Ticket) -> Result<(), Refusal> {
        let table = self.ledger.blocks(&ticket.target.name);
        let mut changes = table.changes();
        let secret = self.ledger.key_secret();
        loop {
            changes.borrow_and_update();
            let now = self.clock.now();
            let Some(held) = ticket.passenger().held(&table, &secret, now) else {
                return Ok(());
            };
            if held.until <= now {
                let scope = held.block.scope.clone();
                let claim = self.ledger.claim(&ticket.target, scope.clone()).await;
                if let BlockClaim::Probe(until) = claim {
                    ticket.probes.push(Arc::new(Probe {
                        ledger: Arc::clone(&self.ledger),
                        target: Arc::clone(&ticket.target),
                        scope,
                        until,
                        sent: AtomicBool::new(false),
                    }));
                }
                continue;
            }
            let is_late = held.block.until > ticket.deadline.max(now) || now >= ticket.deadline;
            if held.block.longer && held.block.until > now || is_late {
                let available = held.until;
                return Err(blocked(held.block, available));
            }
            tokio::select! {
                () = self.clock.sleep_until(held.until.min(ticket.deadline)) => {}
                // The ledger keeps the sender, so this cannot fail.
                _ = changes.changed() => {}
            }
        }
    }

    /// Blocks a part of a target or the whole target, because its origin refused a request.
    pub fn impose(&self, target: &Arc<Target>, block: ScopedBlock) {
        self.ledger.impose(target, block);
        self.line(target).follow_blocks();
    }
}

fn blocked(block: ScopedBlock, available: Instant) -> Refusal {
    Refusal {
        kind: RefusalKind::WaitTooLong,
        available,
        held_by: block.scope.limit.clone(),
        waiting: 0,
        blocked: Some(Box::new(block)),
    }
}

impl Line {
    /// Sends the waiters of blocked scopes to the gate, after the ledger got a new block.
    pub(super) fn follow_blocks(&self) {
        self.evict_blocked(&mut self.lock());
        self.changed.notify_one();
    }

    /// Sends the waiters of blocked scopes to the gate, if the blocks have changed.
    pub(super) fn evict_blocked(&self, state: &mut LineState) {
        let changes = *state.changes.borrow_and_update();
        if std::mem::replace(&mut state.changes_seen, changes) == changes || self.blocks.is_empty()
        {
            return;
        }
        let (secret, now) = (self.ledger.key_secret(), self.clock.now());
        let is_held = |waiter: Passenger<'_>| waiter.is_held(&self.blocks, &secret, now);
        state.queue.evict(is_held);
    }
}
