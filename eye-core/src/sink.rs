//! The trait of sinks, which store events.
//!
//! A sink writes one batch at a time into durable storage and says exactly why it could not. It does not retry, batch,
//! filter or know of acks: the [writer](crate::writer) does all of that, for every sink alike. Read [`Sink`] first,
//! then [`WriteError`], whose variant decides the writer's next step.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::context::BuildContext;
use crate::error::BuildError;
use crate::event::Event;
use crate::store::EventStore;

/// Writes batches of events to durable storage.
///
/// Obligations of every sink:
///
/// * **Durable**: `Ok` from [`write`](Sink::write) means that every event of the batch survives a crash.
/// * **Idempotent by event key** (`timestamp` and `id`): the same batch may come twice, and so may one event within a
///   batch. The event is stored once, as it came first, and the answer is `Ok`.
/// * **All or nothing**: after an error no event of the batch counts as written. Events that were written nevertheless
///   are covered by the rule above.
/// * **Concurrent**: `write` may be called while another `write` runs, and while the store answers queries.
///
/// The writer never drops a running future of a sink, so a sink need not be cancel-safe. At a shutdown that exceeds its
/// deadline the process exits with the future unfinished.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Makes the sink ready to write, or checks that it still is: connect, create the schema, ping.
    ///
    /// Called before the first write, regularly while nothing is written, and after a batch was given up until it
    /// succeeds. So it must be cheap when all is well. While a batch is retried, only `write` is called: it must
    /// reconnect by itself. A sink without preparation keeps the default.
    ///
    /// # Errors
    /// [`WriteError::Retry`] while the sink is unavailable. [`WriteError::Reject`] when it will never be ready (such as
    /// a schema from a newer version): the program stops.
    async fn prepare(&self) -> Result<(), WriteError> {
        Ok(())
    }

    /// Stores every event of the batch durably, or none that counts.
    ///
    /// # Errors
    /// See [`WriteError`]: the variant decides the writer's next step.
    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError>;

    /// Flushes and releases the sink's resources. Called once, after the last `write`.
    ///
    /// # Errors
    /// [`SinkError`] if something could not be flushed; the writer logs it.
    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A sink that was built, with its read side where it can answer queries.
pub struct BuiltSink {
    /// The write side.
    pub sink: Arc<dyn Sink>,
    /// The read side; there exactly where [`SinkConfig::ANSWERS_QUERIES`] is true.
    pub store: Option<Arc<dyn EventStore>>,
}

impl BuiltSink {
    /// A sink that cannot answer queries.
    pub fn write_only(sink: impl Sink) -> Self {
        Self { sink: Arc::new(sink), store: None }
    }

    /// A sink that answers queries itself.
    pub fn with_store<S: Sink + EventStore + 'static>(sink: S) -> Self {
        let sink = Arc::new(sink);
        Self { sink: sink.clone(), store: Some(sink) }
    }
}

/// The result of a successful write. The default reports no duplicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Events of the batch that were stored already. Used by the accounting alone; a sink that cannot tell says 0.
    pub duplicates: usize,
}

/// A batch that was not written. The variant decides the writer's next step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The sink is unavailable or busy: the writer backs off and tries the same batch again.
    #[error("{reason}")]
    Retry {
        /// The sink's message, with the cure where there is one. No secrets.
        reason: String,
        /// The pause that the sink asks for; a minute at most is granted.
        after: Option<Duration>,
    },
    /// At least one event of the batch can never be stored: the writer bisects the batch until that event is alone.
    #[error("{reason}")]
    Reject {
        /// The sink's message about the event.
        reason: String,
    },
    /// The sink cannot tell which of the two it is: the writer tries a few times, then treats it as a rejection.
    #[error("{reason}")]
    Unknown {
        /// The sink's message.
        reason: String,
    },
}

impl WriteError {
    /// Creates a retryable error without a wish for a pause.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }

    /// Creates a permanent error.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { reason: reason.into() }
    }
}

/// A sink that could not be closed cleanly.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// The settings that operators write below `[sinks.NAME]`: the configuration is the factory.
///
/// Field names are the keys, and their types' `Deserialize` checks the values: an error is reported with file, line and
/// column. Unknown keys are refused for every plug-in without `deny_unknown_fields`. The tables `writer` and `filter`
/// belong to the pipeline and never reach the plug-in.
pub trait SinkConfig: DeserializeOwned + Send + 'static {
    /// The `type` that selects this plug-in.
    const TYPE: &'static str;

    /// True if the sink can answer queries, so that a wrong `[query] sink` is an error before anything starts.
    const ANSWERS_QUERIES: bool = false;

    /// Builds the sink.
    ///
    /// # Errors
    /// Permanent failures, such as a file that cannot be opened. An unavailable server is not a failure here:
    /// [`Sink::prepare`] finds it.
    fn build(self, context: &BuildContext) -> impl Future<Output = Result<BuiltSink, BuildError>> + Send;
}
