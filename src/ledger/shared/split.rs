//! Calls that the store refuses because of one of their inputs. The call is split until that input
//! is found, so that it fails alone and all others are booked.
//!
//! A call without inputs decides if the store itself is at fault. If it fails too, an outage begins.

use std::sync::Arc;

use smallvec::SmallVec;

use super::link::{Link, LinkError, Reply};
use super::{SharedState, TargetHandle};
use crate::bounds::FAULT_LOG;
use crate::clock::Instant;
use crate::ledger::{Answer, Call, Grant, Run, Short};
use crate::policy::Target;
use crate::sync::lock;

impl LinkError {
    /// Returns true if the store refused the content of the call.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl<L: Link> SharedState<L> {
    /// Books runs of which at least one was refused with `error`. Returns `None` if the store is
    /// busy or gives no answer.
    pub(super) async fn book_apart(
        &self,
        handle: &TargetHandle,
        target: &Target,
        runs: &SmallVec<[Run; 2]>,
        error: &LinkError,
    ) -> Option<Answer> {
        if let Some((first, second)) = halves(runs) {
            let first = Box::pin(self.book_connected(handle, target, &first)).await?;
            let count = second.len();
            let second = Box::pin(self.book_connected(handle, target, &second)).await;
            let now = self.parts.clock.now();
            return Some(joined(first, second.unwrap_or_else(|| later(count, now))));
        }
        let control = Call::empty(&target.name, self.parts.replica);
        if let Err(error) = self.send(&control).await {
            self.on_failure(&error);
            return None;
        }
        self.note_refusal(&target.name, error);
        let refused = Grant {
            refused: true,
            ..Grant::default()
        };
        Some(Answer {
            now: self.parts.clock.now(),
            epoch: handle.view().epoch,
            runs: runs.iter().map(|_| refused.clone()).collect(),
            ..Answer::default()
        })
    }

    /// Sends a report, which books nothing. A row that the store refuses is dropped, and all other
    /// rows are stored.
    pub(super) async fn send_report(&self, report: &Call) -> Result<(), LinkError> {
        let mut parts = vec![report.clone()];
        while let Some(part) = parts.pop() {
            match self.send(&part).await {
                Ok(()) => {}
                Err(error) if !error.is_refusal() || part.rows.is_empty() => return Err(error),
                Err(error) => match halves(&part.rows) {
                    Some(rows) => parts.extend([rows.1, rows.0].map(|rows| Call {
                        rows,
                        ..part.clone()
                    })),
                    None => {
                        let control = Call::empty(&part.target, part.replica);
                        self.send(&control).await?;
                        self.note_refusal(&part.target, &error);
                    }
                },
            }
        }
        Ok(())
    }

    /// Sends a call that books nothing, and repeats it while the store is busy.
    async fn send(&self, call: &Call) -> Result<(), LinkError> {
        while matches!(self.link.call(call).await?, Reply::Busy) {
            self.pause().await;
        }
        Ok(())
    }

    /// Logs an input that the store refused, at most once per [`FAULT_LOG`].
    fn note_refusal(&self, target: &Arc<str>, error: &LinkError) {
        let now = self.parts.clock.now();
        let mut warned = lock(&self.refusal_warned);
        if warned.is_some_and(|last| now.since(last) < FAULT_LOG) {
            return;
        }
        *warned = Some(now);
        drop(warned);
        tracing::warn!(target_name = %target, %error, "the ledger's database refused the key or cost of a request; the request failed and all others were booked");
    }
}

type Halves<T> = (SmallVec<[T; 2]>, SmallVec<[T; 2]>);

/// Returns both halves of a list, or `None` if it has fewer than two entries.
fn halves<T: Clone>(all: &SmallVec<[T; 2]>) -> Option<Halves<T>> {
    let (first, second) = all.split_at(all.len() / 2);
    (!first.is_empty()).then(|| {
        (
            first.iter().cloned().collect(),
            second.iter().cloned().collect(),
        )
    })
}

/// Joins the answers to both halves of a call. The rows are in the local view already. The lower
/// epoch counts, so that a block between both calls makes the slots void.
fn joined(first: Answer, second: Answer) -> Answer {
    Answer {
        now: first.now.max(second.now),
        epoch: first.epoch.min(second.epoch),
        blocked: first.blocked.max(second.blocked),
        runs: first.runs.into_iter().chain(second.runs).collect(),
        ..Answer::default()
    }
}

/// Returns the answer for runs that were not booked and may be booked by another call at once.
fn later(count: usize, now: Instant) -> Answer {
    let short = Short {
        held_by: None,
        ask_again: Some(now),
        waiting: 0,
        units: 0,
        weight: 0,
    };
    let grant = Grant {
        short: Some(short),
        ..Grant::default()
    };
    Answer {
        now,
        epoch: u64::MAX,
        runs: std::iter::repeat_n(grant, count).collect(),
        ..Answer::default()
    }
}

#[cfg(test)]
mod tests;
