//! Operations that the writer performs, and the delivery of their results.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::{
    Buffer, BufferConfig, Finished, IdempotencyKey, Item, ItemChange, Millis, NewItem, Purge,
    Pushed, Redrive, StoreError,
};

type Tell<T> = oneshot::Sender<Result<T, StoreError>>;

/// Operation for the writer, with the channel for its result. Its fields match the parameters of
/// the corresponding method of [`Store`](super::super::Store).
#[derive(Debug)]
pub(super) enum Op {
    Create {
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
        tell: Tell<(Buffer, bool)>,
    },
    ItemChange {
        buffer: i64,
        terms: BufferConfig,
        tell: Tell<Buffer>,
    },
    Remove {
        buffer: i64,
        forced: bool,
        tell: Tell<()>,
    },
    Pause {
        buffer: i64,
        reason: Option<Arc<str>>,
        tell: Tell<Buffer>,
    },
    Push {
        buffer: i64,
        items: Vec<NewItem>,
        /// True for each item with a body file of its own.
        large: Vec<bool>,
        once: Option<IdempotencyKey>,
        now: Millis,
        /// Permit for its part of the memory of waiting pushes, released with the operation.
        _room: OwnedSemaphorePermit,
        tell: Tell<Pushed>,
    },
    Claim {
        item: Arc<str>,
        tell: Tell<Item>,
    },
    Finish {
        finished: Box<Finished>,
        now: Millis,
        tell: Tell<Item>,
    },
    Unclaim {
        item: Arc<str>,
        tell: Tell<()>,
    },
    Expire {
        item: Arc<str>,
        now: Millis,
        tell: Tell<()>,
    },
    Alter {
        item: Arc<str>,
        change: ItemChange,
        now: Millis,
        tell: Tell<Item>,
    },
    Purge {
        buffer: i64,
        what: Purge,
        before: Option<Millis>,
        tell: Tell<u64>,
    },
    Redrive {
        buffer: i64,
        which: Redrive,
        now: Millis,
        tell: Tell<u64>,
    },
    Close {
        tell: Tell<()>,
    },
    Forget {
        delivered_before: Millis,
        dead_before: Millis,
        tell: Tell<u64>,
    },
}

/// Result of a successful operation, before its conversion to the caller's type.
pub(super) enum Value {
    Unit,
    Count(u64),
    Buffer(Buffer, bool),
    Pushed(Pushed),
    Item(Box<Item>),
}

impl Op {
    /// Sends the result to the caller of this operation. A value of the wrong kind is an internal
    /// error and becomes [`StoreError::Away`].
    pub(super) fn answer(self, result: Result<Value, StoreError>) {
        match (self, result) {
            (Self::Create { tell, .. }, result) => tell_as(tell, result, |value| match value {
                Value::Buffer(buffer, new) => Some((buffer, new)),
                _ => None,
            }),
            (Self::ItemChange { tell, .. } | Self::Pause { tell, .. }, result) => {
                tell_as(tell, result, |value| match value {
                    Value::Buffer(buffer, _) => Some(buffer),
                    _ => None,
                });
            }
            (Self::Push { tell, .. }, result) => tell_as(tell, result, |value| match value {
                Value::Pushed(pushed) => Some(pushed),
                _ => None,
            }),
            (
                Self::Claim { tell, .. } | Self::Finish { tell, .. } | Self::Alter { tell, .. },
                result,
            ) => tell_as(tell, result, |value| match value {
                Value::Item(item) => Some(*item),
                _ => None,
            }),
            (
                Self::Remove { tell, .. }
                | Self::Unclaim { tell, .. }
                | Self::Expire { tell, .. }
                | Self::Close { tell },
                result,
            ) => tell_as(tell, result, |_| Some(())),
            (
                Self::Purge { tell, .. } | Self::Redrive { tell, .. } | Self::Forget { tell, .. },
                result,
            ) => tell_as(tell, result, |value| match value {
                Value::Count(count) => Some(count),
                _ => None,
            }),
        }
    }

    pub(super) const fn is_push(&self) -> bool {
        matches!(self, Self::Push { .. })
    }
}

fn tell_as<T>(
    tell: Tell<T>,
    result: Result<Value, StoreError>,
    of: impl FnOnce(Value) -> Option<T>,
) {
    let answer = result.and_then(|value| {
        of(value).ok_or_else(|| StoreError::Away("its writer returned a wrong result".to_owned()))
    });
    // The caller may have been cancelled. The operation took effect regardless.
    let _ = tell.send(answer);
}
