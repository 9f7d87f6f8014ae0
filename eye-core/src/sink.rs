//! Where events go.

use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::event::Event;
use crate::registry::BuildError;
use crate::store::EventStore;

/// Writes batches of events somewhere durable.
///
/// A sink does not retry, batch, or know of acks: the writer does all of it, for every sink alike. What a sink owes:
///
/// * **Durable**: `Ok` from [`write`](Sink::write) means that every event of the batch survives a crash.
/// * **Idempotent by event key** (`timestamp` and `id`): the same batch may come twice, and so may one event within a
///   batch. It is stored once, as it came first, and the answer is `Ok`.
/// * **All or nothing**: after an error no event of the batch counts as written; those that were are covered by the rule
///   above.
/// * **Concurrent**: `write` may be called while another `write` runs, and while the store answers queries.
///
/// The writer never drops a running future of a sink, so a sink need not be cancel-safe. At a shutdown that exceeds its
/// deadline the process exits with the future unfinished.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Makes the sink ready to write, or finds out that it still is: connect, create the schema, ping.
    ///
    /// Called before the first write, now and then while nothing is written, so it must be cheap when all is well, and from
    /// when a batch was given up until it succeeds. Until a batch is given up, `write` alone is called again: it must find
    /// its way back by itself. A sink that has nothing to prepare keeps the default.
    ///
    /// # Errors
    /// [`WriteError::Retry`] while the sink is away. [`WriteError::Reject`] when it will never be ready (such as a
    /// schema from a newer version): the program stops.
    async fn prepare(&self) -> Result<(), WriteError> {
        Ok(())
    }

    /// Stores every event of the batch durably, or none that counts.
    ///
    /// # Errors
    /// See [`WriteError`]: the variant decides what the writer does next.
    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError>;

    /// Flushes and lets go of what the sink holds. Called once, after the last `write`.
    ///
    /// # Errors
    /// When something could not be flushed; it is logged.
    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The read side, for sinks that can answer queries ([`SinkConfig::ANSWERS_QUERIES`] says so beforehand).
    fn store(&self) -> Option<&dyn EventStore> {
        None
    }
}

/// What a sink knows of a batch that it has stored. The default knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Events of the batch that were there already, and so were not stored again. For the books alone: a sink that
    /// cannot tell says 0.
    pub duplicates: usize,
}

/// Why a batch was not written, and so what the writer does about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The sink is away or busy: the writer backs off and tries the same batch again.
    #[error("{reason}")]
    Retry {
        /// What the sink said, with the way out where there is one. No secrets.
        reason: String,
        /// When the sink asks to be left alone for some time; longer than a minute counts as one.
        after: Option<Duration>,
    },
    /// At least one event of the batch can never be stored: the writer halves the batch until that event stands alone.
    #[error("{reason}")]
    Reject {
        /// What the sink said of the event.
        reason: String,
    },
    /// The sink cannot tell which of the two it is: the writer tries a few times, then treats it as a refusal.
    #[error("{reason}")]
    Unknown {
        /// What the sink said.
        reason: String,
    },
}

impl WriteError {
    /// Away or busy, without a wish for how long.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }

    /// Refused for good.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { reason: reason.into() }
    }
}

/// Why a sink could not be closed cleanly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// What operators write below `[sinks.NAME]`: the configuration is the factory.
///
/// Field names are the keys, their types' `Deserialize` checks the values: an error of theirs is reported with file,
/// line and column. Unknown keys are refused for every plug-in without `deny_unknown_fields`.
pub trait SinkConfig: DeserializeOwned + Send + 'static {
    /// The `type` that picks this plug-in.
    const TYPE: &'static str;

    /// Whether [`Sink::store`] will be there, so that a wrong `[query] sink` is an error before anything starts.
    const ANSWERS_QUERIES: bool = false;

    /// Makes the sink. It does here what can fail for good (open a file, check a value); a server that is away is not
    /// such a failure, [`Sink::prepare`] finds it.
    fn build(self) -> impl Future<Output = Result<Box<dyn Sink>, BuildError>> + Send;
}
