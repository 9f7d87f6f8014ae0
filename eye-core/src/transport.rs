//! The trait of transports, which carry events from the sources to every sink.
//!
//! A transport is bounded, and durable or not. **Custody** decides when a producer hears "ok": the receipt of a publish
//! settles when the events are in durable custody. A durable transport takes custody at its own commit, and keeps
//! dead letters; any other transport settles the receipt when every sink's ack is settled. Read [`Transport`] first,
//! then [`Subscription`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::ack::{Ack, Receipt};
use crate::context::BuildContext;
use crate::dead_letter::DeadLetterStore;
use crate::error::BuildError;
use crate::event::Event;
use crate::health::Health;

/// Carries events from the sources to every sink.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Takes the events of one request, all or none. An empty list is taken and delivered at once.
    ///
    /// May wait a short time for capacity. Dropping the future while it waits takes nothing.
    ///
    /// # Errors
    /// [`PublishError`]: nothing was taken.
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError>;

    /// Creates the subscription of one `consumer` (a sink's name). Every subscription gets every event. All consumers
    /// subscribe before the first event is published.
    ///
    /// # Errors
    /// [`TransportError`] when the subscription cannot be created.
    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError>;

    /// Takes no more events: `publish` answers [`PublishError::Closed`], and each subscription ends once it is drained.
    /// A durable transport may end it sooner and deliver the rest after the next start.
    fn close(&self);

    /// Returns the store of dead letters, which every durable transport has and no other: the writer puts there the
    /// acknowledged events that a sink refuses.
    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        None
    }

    /// Returns whether acknowledged events are safe here while sinks are unavailable. An unavailable sink then keeps
    /// nobody from sending, so the program stays ready.
    fn is_durable(&self) -> bool {
        self.dead_letters().is_some()
    }

    /// Returns whether other programs publish and receive here as well. The events that one of them writes to its sinks
    /// are then not the events that it has acknowledged.
    fn is_shared(&self) -> bool {
        false
    }

    /// Returns how long a subscription waits for a full batch unless the operator sets `max_wait_ms`. Zero where
    /// producers wait for the sink.
    fn default_max_wait(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns the custody of events for one consumer (a sink's name), for the accounting. Cheap and non-blocking; all
    /// zero for a name that has not subscribed.
    ///
    /// The accounting relies on the following, at every moment when no event moves:
    ///
    /// * `taken` includes an event before its receipt can settle as [`Delivered`](crate::ack::Outcome::Delivered),
    ///   unless the transport is [shared](Self::is_shared). `at_start` does not include it, and never changes.
    /// * An event leaves `pending` at its terminal outcome: any outcome where the transport is not durable, since its
    ///   producer was told; `Delivered` or `Rejected` where it is. After `Failed`, a durable transport delivers the
    ///   event again, so it stays pending. A shared transport returns it to all programs, so it leaves `taken` too.
    /// * `pending` and `missing` come from the transport's own state, never from the writer: the accounting compares
    ///   the two.
    fn custody(&self, consumer: &str) -> Custody;

    /// Reports the transport's state to `health`. Called once, when all consumers have subscribed, and polled beside
    /// the pipeline. Returns only when the transport can never work again; the program then stops. Cancel-safe.
    async fn watch(&self, health: Health) -> TransportError {
        health.ready();
        std::future::pending().await
    }
}

/// One sink's view of the transport.
#[async_trait]
pub trait Subscription: Send + 'static {
    /// Waits for at least one delivery, then returns the deliveries that arrive within `limits`. The first delivery is
    /// returned whatever its size. `None` when the transport is closed and drained.
    ///
    /// A caller settles the deliveries it has before it asks for more: the next ones may depend on it.
    ///
    /// Not cancel-safe: the caller polls the future to its end.
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>>;
}

/// The bounds of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most events.
    pub max_events: usize,
    /// The most bytes of events.
    pub max_bytes: usize,
    /// The longest wait for more events after the first, while the batch is not full. Zero takes what has arrived.
    pub max_wait: Duration,
}

/// The number of events that a transport has taken for one consumer since the program started, and their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Custody {
    /// Events taken for the consumer, including those that were pending when the program started.
    pub taken: u64,
    /// Taken events that were pending when the program started.
    pub at_start: u64,
    /// Taken events without a terminal outcome: queued, or with the writer.
    pub pending: u64,
    /// Taken events that were lost because the storage was damaged.
    pub missing: u64,
    /// Messages, of one event or more, that a [shared](Transport::is_shared) transport holds for the consumer, for any
    /// program. At most some seconds old. `None` where it is not known or the transport is not shared.
    pub shared_backlog: Option<u64>,
}

/// Events with the ack that is owed for them: those of one publish, or of as many as a durable transport likes.
#[derive(Debug)]
pub struct Delivery {
    /// Never empty.
    pub events: Vec<Event>,
    /// Settled by the writer.
    pub ack: Ack,
    /// The position of the first event, from which the keys of dead letters are made. `None` where the transport keeps
    /// no dead letters.
    pub position: Option<Position>,
}

/// The position of an event in a durable transport. The same event has the same position whenever it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Distinguishes messages whose events are numbered on their own, such as `17:`; empty where all events of the
    /// transport have one sequence of numbers.
    pub prefix: String,
    /// The number of the event.
    pub number: u64,
}

impl Position {
    /// Returns the key of the event `index` events after this position.
    pub fn key(&self, index: usize) -> String {
        format!("{}{}", self.prefix, self.number + index as u64)
    }
}

/// A publish of which no event was taken. The producer may send the events again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The transport is full, and no capacity became free in time.
    #[error("no capacity: {reason}")]
    Full {
        /// The bound that was reached.
        reason: String,
        /// The time after which to try again.
        retry_after: Duration,
    },
    /// The transport cannot take events now.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// The cause.
        reason: String,
        /// The time after which to try again.
        retry_after: Duration,
    },
    /// The program is shutting down.
    #[error("shutting down")]
    Closed,
}

/// A subscription that could not be created, or a transport that broke.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// The settings that operators write below `[transport]`. See [`crate::sink::SinkConfig`] for the rules.
pub trait TransportConfig: DeserializeOwned + Send + 'static {
    /// The `type` that selects this plug-in.
    const TYPE: &'static str;

    /// Returns the faults of values that are valid each but not together. Opens and connects nothing.
    fn check(&self) -> Vec<BuildError> {
        Vec::new()
    }

    /// Builds the transport.
    ///
    /// # Errors
    /// Permanent failures, such as a folder that cannot be written. An unavailable server is not a failure here.
    fn build(self, context: &BuildContext) -> impl Future<Output = Result<Box<dyn Transport>, BuildError>> + Send;

    /// Returns the dead letters of a transport with these settings, for commands that work without the transport.
    /// `None` where it keeps none. Opens and connects nothing yet.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        None
    }
}
