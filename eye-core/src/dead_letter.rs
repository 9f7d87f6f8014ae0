//! Dead letters: events that were refused for good after they had been acknowledged.
//!
//! Whoever has custody of acknowledged events keeps a [`DeadLetterStore`]: a durable transport, or a source that
//! cannot tell its producer. The writer puts refused events there before it acknowledges their delivery.

use async_trait::async_trait;

use crate::timestamp::Timestamp;

/// One refused event, or one message in which no event could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Unique within its store, for as long as the letter exists. Without white space or control characters.
    pub id: String,
    /// The key of the component that refused it, such as `sinks.store`.
    pub refused_by: String,
    /// The reason, in that component's words.
    pub reason: String,
    /// The time of the refusal.
    pub time: Timestamp,
    /// The refused event or message, in the form in which a producer may send it again.
    pub payload: Vec<u8>,
}

/// A dead letter that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDeadLetter {
    /// The same whenever this letter is put again, because the first attempt was not confirmed; never that of another
    /// letter. A position in the transport and the name of a sink, such as `123.store`.
    pub key: String,
    /// The key of the component that refused it, such as `sinks.store`.
    pub refused_by: String,
    /// The reason, in that component's words.
    pub reason: String,
    /// The refused event or message, in the form in which a producer may send it again.
    pub payload: Vec<u8>,
}

/// The dead letters of one component.
///
/// All methods but [`put`](Self::put) work beside a program that runs with the same configuration, and without it.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// Stores the letters durably. Letters that are stored already, by their keys, are stored once.
    ///
    /// # Errors
    /// [`DeadLetterError`] when it is not known that all of them are stored. The caller puts all of them again.
    async fn put(&self, letters: &[NewDeadLetter]) -> Result<(), DeadLetterError>;

    /// Returns some letters after the one with the id `after`, or from the first, oldest first. The page is bounded
    /// in number and bytes, and empty only at the end. The letter `after` need not exist any longer.
    ///
    /// # Errors
    /// [`DeadLetterError`] when they cannot be read.
    async fn page(&self, after: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError>;

    /// Returns the letter with this id.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    async fn get(&self, id: &str) -> Result<Option<DeadLetter>, DeadLetterError>;

    /// Removes the letter with this id, durably. Returns whether it existed.
    ///
    /// # Errors
    /// [`DeadLetterError`] when the letter may still exist.
    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError>;
}

/// A failure to store, read or remove dead letters.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeadLetterError(pub String);
