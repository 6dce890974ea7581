//! A link that measures the calls of another link for the metrics.

use std::future::Future;
use std::sync::Arc;

use super::shared::{Heartbeat, Link, LinkError, Reply};
use super::{BlockClaim, BlockFilter, BlockScope, Call, Replica, ScopedBlock};
use crate::bounds::LEDGER_CALL_TIMEOUT;
use crate::clock::{Clock, Instant};
use crate::policy::KeySecret;
use crate::schedule::Spec;
use crate::telemetry::{LedgerCallKind, LedgerErrorClass, LedgerMetrics, Metrics};

/// A link that passes all calls on and counts their durations and errors.
#[derive(Debug)]
pub struct MeasuredLink<L> {
    inner: L,
    clock: Clock,
    metrics: LedgerMetrics,
}

impl<L: Link> MeasuredLink<L> {
    /// Creates a link that measures the calls of `inner` by this clock.
    pub fn new(inner: L, clock: Clock, metrics: &Metrics) -> Self {
        Self {
            inner,
            clock,
            metrics: metrics.ledger(),
        }
    }

    /// Awaits a call and counts it. A call whose future is dropped is not counted.
    async fn measure<T>(
        &self,
        kind: LedgerCallKind,
        call: impl Future<Output = Result<T, LinkError>> + Send,
    ) -> Result<T, LinkError> {
        let began = self.clock.now();
        let called = call.await;
        let took = self.clock.now().since(began);
        let class = called.as_ref().err().map(|error| match error {
            LinkError::Refused(_) => LedgerErrorClass::Refused,
            LinkError::Unavailable(_) if took >= LEDGER_CALL_TIMEOUT => LedgerErrorClass::Timeout,
            LinkError::Unavailable(_) => LedgerErrorClass::Unavailable,
        });
        self.metrics.called(kind, took, class);
        called
    }

    async fn other<T>(
        &self,
        call: impl Future<Output = Result<T, LinkError>> + Send,
    ) -> Result<T, LinkError> {
        self.measure(LedgerCallKind::Other, call).await
    }
}

impl<L: Link> Link for MeasuredLink<L> {
    async fn call(&self, call: &Call) -> Result<Reply, LinkError> {
        let booking = self.inner.call(call);
        self.measure(LedgerCallKind::Book, booking).await
    }

    async fn block(&self, target: Arc<str>, until: Instant) -> Result<u64, LinkError> {
        self.other(self.inner.block(target, until)).await
    }

    async fn probe(&self, target: Arc<str>, epoch: u64, answered: bool) -> Result<(), LinkError> {
        self.other(self.inner.probe(target, epoch, answered)).await
    }

    async fn impose(&self, target: Arc<str>, block: ScopedBlock) -> Result<(), LinkError> {
        self.other(self.inner.impose(target, block)).await
    }

    async fn claim(&self, target: Arc<str>, scope: BlockScope) -> Result<BlockClaim, LinkError> {
        self.other(self.inner.claim(target, scope)).await
    }

    async fn end_probe(
        &self,
        target: Arc<str>,
        scope: BlockScope,
        until: Instant,
        answered: bool,
    ) -> Result<(), LinkError> {
        let ended = self.inner.end_probe(target, scope, until, answered);
        self.other(ended).await
    }

    async fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Result<usize, LinkError> {
        self.other(self.inner.lift(target, filter)).await
    }

    async fn blocks(&self, target: Arc<str>) -> Result<Vec<ScopedBlock>, LinkError> {
        self.other(self.inner.blocks(target)).await
    }

    async fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        units: i64,
    ) -> Result<(), LinkError> {
        let corrected = self.inner.correct(target, limit, key, units);
        self.other(corrected).await
    }

    async fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Result<(), LinkError> {
        let forgotten = self.inner.forget_settled(target, limit, key);
        self.other(forgotten).await
    }

    async fn reach(&self) -> Result<(), LinkError> {
        self.other(self.inner.reach()).await
    }

    async fn key_secret(&self, candidate: &KeySecret) -> Result<KeySecret, LinkError> {
        self.other(self.inner.key_secret(candidate)).await
    }

    async fn heartbeat(
        &self,
        replica: Replica,
        share_for: i64,
        held: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        let heartbeat = self.inner.heartbeat(replica, share_for, held);
        self.measure(LedgerCallKind::Heartbeat, heartbeat).await
    }

    async fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        spec: Option<Spec>,
    ) -> Result<(), LinkError> {
        self.other(self.inner.pin(target, limit, spec)).await
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        self.other(self.inner.sweep()).await
    }

    async fn leave(&self, replica: Replica) -> Result<(), LinkError> {
        self.other(self.inner.leave(replica)).await
    }

    async fn notified(&self) {
        self.inner.notified().await;
    }
}
