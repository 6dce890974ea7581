//! Operations that wait for the writer, each with its change and the channel for its result.

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::super::StoreError;
use super::batch::{Batch, Failed};

/// Change of the database, applied within the writer's transaction.
pub(super) trait Change: Send + Sync + 'static {
    /// Result for the caller, which gets it after the commit.
    type Output: Send + 'static;

    /// True for a push. The rows of pushes gather in the batch and are inserted before the next
    /// change of another kind. If the disk is full, pushes are refused and other changes are not.
    const IS_PUSH: bool = false;

    /// Returns the bytes of the change, by which the writer divides its transactions.
    fn bytes(&self) -> u64 {
        0
    }

    /// Notes that the change was committed with this result.
    fn committed(&self, _output: &Self::Output) {}

    /// Notes that nothing is known about the commit, because the disk failed.
    fn uncertain(&self) {}

    /// Applies the change. A change whose transaction was rolled back may be applied again.
    fn apply(
        &self,
        batch: &mut Batch<'_>,
    ) -> impl Future<Output = Result<Self::Output, Failed>> + Send;
}

/// Operation for the writer, for a change of any type.
#[async_trait]
pub(super) trait Operation: Send {
    fn is_push(&self) -> bool;

    /// Returns the bytes of the change.
    fn bytes(&self) -> u64;

    /// Applies the change and keeps its result. Fails if the whole transaction must end.
    async fn apply(&mut self, batch: &mut Batch<'_>) -> Result<(), sqlx::Error>;

    /// Sends the result to the caller, or `error` if the transaction failed.
    fn answer(self: Box<Self>, error: Option<&StoreError>);
}

/// Message to the writer.
pub(super) enum Message {
    Change(Box<dyn Operation>),
    /// Request to move the log into the database and to end.
    Close(oneshot::Sender<Result<(), StoreError>>),
}

type ChangeResult<C> = Result<<C as Change>::Output, StoreError>;

/// A change with the channel to its caller.
pub(super) struct WaitingChange<C: Change> {
    change: C,
    result: Option<ChangeResult<C>>,
    tell: oneshot::Sender<ChangeResult<C>>,
}

impl<C: Change> WaitingChange<C> {
    /// Returns the operation, and the channel on which its result arrives.
    pub(super) fn new(change: C) -> (Box<Self>, oneshot::Receiver<ChangeResult<C>>) {
        let (tell, told) = oneshot::channel();
        let waiting = Self {
            change,
            result: None,
            tell,
        };
        (Box::new(waiting), told)
    }
}

#[async_trait]
impl<C: Change> Operation for WaitingChange<C> {
    fn is_push(&self) -> bool {
        C::IS_PUSH
    }

    fn bytes(&self) -> u64 {
        self.change.bytes()
    }

    async fn apply(&mut self, batch: &mut Batch<'_>) -> Result<(), sqlx::Error> {
        if !C::IS_PUSH {
            batch.flush().await?;
        }
        self.result = Some(match self.change.apply(batch).await {
            Ok(output) => Ok(output),
            Err(Failed::Rule(error)) => Err(error),
            Err(Failed::Database(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, error: Option<&StoreError>) {
        let Self {
            change,
            result,
            tell,
        } = *self;
        let result = match (error, result) {
            (None, Some(result)) => result.inspect(|output| change.committed(output)),
            (Some(error), _) => {
                if matches!(error, StoreError::Away(_)) {
                    change.uncertain();
                }
                Err(error.clone())
            }
            (None, None) => Err(StoreError::Away("its writer has stopped".to_owned())),
        };
        // The room of a push is released, and files of a refused one are removed, before its caller
        // goes on.
        drop(change);
        // The caller may have been cancelled. The change took effect regardless.
        let _ = tell.send(result);
    }
}
