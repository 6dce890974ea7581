//! A link that measures the calls of another link for the metrics.

use std::sync::Arc;
use std::time::Duration;

use super::call::Id;
use super::shared::{Heartbeat, Link, LinkError, Reply};
use super::{
    BlockClaim, BlockFilter, BlockScope, Call, Replica, ReplicaReport, ReplicaRows, SchedulesRead,
    ScopedBlock,
};
use crate::bounds::LEDGER_CALL_TIMEOUT;
use crate::clock::{Clock, Instant};
use crate::policy::KeySecret;
use crate::schedule::{CostChange, Spec};
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

    /// Begins the measurement of a call. A call whose future is dropped is not counted.
    fn begin(&self, kind: LedgerCallKind) -> CallTimer<'_> {
        CallTimer {
            clock: &self.clock,
            metrics: &self.metrics,
            kind,
            began: self.clock.now(),
        }
    }

    fn other(&self) -> CallTimer<'_> {
        self.begin(LedgerCallKind::Other)
    }
}

/// Measurement of one call that is in progress.
struct CallTimer<'a> {
    clock: &'a Clock,
    metrics: &'a LedgerMetrics,
    kind: LedgerCallKind,
    began: Instant,
}

impl CallTimer<'_> {
    /// Counts the call with this result, and returns the result.
    fn end<T>(self, called: Result<T, LinkError>) -> Result<T, LinkError> {
        let took = self.clock.now().since(self.began);
        let class = called.as_ref().err().map(|error| class(error, took));
        self.metrics.called(self.kind, took, class);
        called
    }
}

fn class(error: &LinkError, took: Duration) -> LedgerErrorClass {
    let LinkError::Unavailable(fault) = error else {
        return LedgerErrorClass::Refused;
    };
    match fault.sqlstate.as_deref() {
        // The server cancelled the statement, or did not get a lock in time.
        Some("57014" | "55P03") => LedgerErrorClass::Timeout,
        _ if took >= LEDGER_CALL_TIMEOUT => LedgerErrorClass::Timeout,
        // The server ends, starts, or ends this connection.
        Some(code) if !code.starts_with("57P") => LedgerErrorClass::Server,
        _ => LedgerErrorClass::Unavailable,
    }
}

impl<L: Link> Link for MeasuredLink<L> {
    async fn call(&self, call: &Call) -> Result<Reply, LinkError> {
        let timer = self.begin(LedgerCallKind::Book);
        timer.end(self.inner.call(call).await)
    }

    async fn block(&self, target: Arc<str>, until: Instant) -> Result<u64, LinkError> {
        let timer = self.other();
        timer.end(self.inner.block(target, until).await)
    }

    async fn probe(&self, target: Arc<str>, epoch: u64, answered: bool) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.probe(target, epoch, answered).await)
    }

    async fn impose(&self, target: Arc<str>, block: ScopedBlock) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.impose(target, block).await)
    }

    async fn claim(&self, target: Arc<str>, scope: BlockScope) -> Result<BlockClaim, LinkError> {
        let timer = self.other();
        timer.end(self.inner.claim(target, scope).await)
    }

    async fn end_probe(
        &self,
        target: Arc<str>,
        scope: BlockScope,
        until: Instant,
        answered: bool,
    ) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.end_probe(target, scope, until, answered).await)
    }

    async fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Result<usize, LinkError> {
        let timer = self.other();
        timer.end(self.inner.lift(target, filter).await)
    }

    async fn blocks(&self, target: Arc<str>) -> Result<Vec<ScopedBlock>, LinkError> {
        let timer = self.other();
        timer.end(self.inner.blocks(target).await)
    }

    async fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        change: CostChange,
    ) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.correct(target, limit, key, change).await)
    }

    async fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.forget_settled(target, limit, key).await)
    }

    async fn withdraw(&self, target: Arc<str>, replica: Replica) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.withdraw(target, replica).await)
    }

    async fn reach(&self) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.reach().await)
    }

    async fn now(&self) -> Result<Instant, LinkError> {
        let timer = self.other();
        timer.end(self.inner.now().await)
    }

    async fn key_secret(&self, candidate: &KeySecret) -> Result<KeySecret, LinkError> {
        let timer = self.other();
        timer.end(self.inner.key_secret(candidate).await)
    }

    async fn heartbeat(
        &self,
        replica: Replica,
        report: &ReplicaReport,
        share_for: i64,
        held: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        let timer = self.begin(LedgerCallKind::Heartbeat);
        let heartbeat = self.inner.heartbeat(replica, report, share_for, held);
        timer.end(heartbeat.await)
    }

    async fn peek(
        &self,
        target: Arc<str>,
        schedules: Vec<Id>,
        replica: Replica,
    ) -> Result<SchedulesRead, LinkError> {
        let timer = self.other();
        timer.end(self.inner.peek(target, schedules, replica).await)
    }

    async fn replicas(&self) -> Result<ReplicaRows, LinkError> {
        let timer = self.other();
        timer.end(self.inner.replicas().await)
    }

    async fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        spec: Option<Spec>,
    ) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.pin(target, limit, spec).await)
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.sweep().await)
    }

    async fn leave(&self, replica: Replica) -> Result<(), LinkError> {
        let timer = self.other();
        timer.end(self.inner.leave(replica).await)
    }

    async fn notified(&self) {
        self.inner.notified().await;
    }
}
