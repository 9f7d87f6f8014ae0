//! What was refused for good after it had been acknowledged: kept, with the reason, by whoever had custody.

use async_trait::async_trait;

use crate::timestamp::Timestamp;

/// One refused event, or one message in which no event could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Names it among those of its keeper, for as long as it is kept. Without white space or control characters.
    pub id: String,
    /// The key of the component that refused it, such as `sinks.store`.
    pub refused_by: String,
    /// Why, in that component's words.
    pub reason: String,
    /// When it was refused.
    pub time: Timestamp,
    /// What was refused, as `POST /api/event/` takes it.
    pub payload: Vec<u8>,
}

/// The dead letters of one component. Works beside a program that runs with the same configuration, and without it.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Those after `after`, or from the first, oldest first: some, bounded in number and bytes, and none only where there
    /// are no more. `after` need not exist any longer.
    ///
    /// # Errors
    /// [`DeadLetterError`] when they cannot be read.
    async fn page(&self, after: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError>;

    /// The one of this id.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    async fn get(&self, id: &str) -> Result<Option<DeadLetter>, DeadLetterError>;

    /// Removes the one of this id, durably; whether it was there.
    ///
    /// # Errors
    /// [`DeadLetterError`] when it is still there, as far as is known.
    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError>;
}

/// Why dead letters cannot be read or removed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeadLetterError(pub String);
