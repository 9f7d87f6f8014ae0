//! What lies between sources and sinks.

use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ack::{Ack, Receipt};
use crate::batch::BatchLimits;
use crate::dead_letter::DeadLetters;
use crate::event::Event;
use crate::health::Health;
use crate::registry::BuildError;

/// Carries events from the sources to every sink, bounded, or durable.
///
/// **Custody**: the receipt settles when someone durable has the events. A transport that is not durable settles it when
/// every subscriber's ack is settled; a durable one at its own commit.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Takes the events of one request, all or none. An empty list is taken and delivered at once.
    ///
    /// May wait a short time while there is no room. Dropping the future while it waits takes nothing.
    ///
    /// # Errors
    /// [`PublishError`]: nothing was taken.
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError>;

    /// A subscription of its own for each `consumer` (a sink's name). Every subscription gets every event. All
    /// subscribe before the first event is published.
    ///
    /// # Errors
    /// [`TransportError`] when the subscription cannot be made.
    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError>;

    /// Takes nothing more: `publish` answers [`PublishError::Closed`], and each subscription ends once it is drained. A
    /// durable transport may end it sooner: what it keeps is delivered after the next start.
    fn close(&self);

    /// Whether what was acknowledged is safe here while sinks are away: then a sink that is away does not make the
    /// program unready, since it keeps nobody from sending.
    fn is_durable(&self) -> bool {
        false
    }

    /// Whether other programs put events in and take them out as well: then what one of them writes to its sinks is not
    /// what it has acknowledged.
    fn is_shared(&self) -> bool {
        false
    }

    /// How the custody of the events for one consumer (a sink's name) stands, for the books. Cheap, and does not block;
    /// all zero for a name that has not subscribed.
    ///
    /// Whoever reads the books relies on this, at every moment when no event moves:
    ///
    /// * `taken` has an event before its publisher's receipt can settle as [`Delivered`](crate::ack::Outcome::Delivered),
    ///   where the transport is not [shared](Self::is_shared). `at_start` never has it, and never changes.
    /// * An event leaves `pending` when it is settled for good: by any outcome where the transport is not durable, since
    ///   its producer was told; by `Delivered` or `Rejected` where it is. After `Failed`, a durable transport delivers it
    ///   again, and it stays; or, where the transport is shared, it goes back for whoever asks next, and leaves `taken`,
    ///   too.
    /// * `pending` and `missing` come from what the transport holds, never from what the writer says: the books compare
    ///   the two.
    fn custody(&self, consumer: &str) -> Custody;

    /// Called once, when all have subscribed, and polled beside the pipeline: tells `health` how the transport is.
    /// Returns only when it can never work again, and then the program stops. Cancel-safe.
    async fn watch(&self, health: Health) -> TransportError {
        health.ready();
        std::future::pending().await
    }
}

/// One sink's view of the transport.
#[async_trait]
pub trait Subscription: Send + 'static {
    /// Waits until there is at least one delivery, then returns what is there, within `limits`, without waiting for
    /// more. The first delivery is returned whatever its size. `None` when the transport is closed and drained.
    ///
    /// A caller settles what it received before it asks for more: what comes next may depend on it.
    ///
    /// Not necessarily cancel-safe: a caller polls the future to its end.
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>>;
}

/// How many events a transport has, and has had, for one consumer, since the program started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custody {
    /// Taken into custody for it; with those that were pending when the program started.
    pub taken: u64,
    /// Of them, those that were pending when the program started.
    pub at_start: u64,
    /// Of them, not settled for good: queued, or with the writer.
    pub pending: u64,
    /// Of them, lost for it, because the storage was damaged.
    pub missing: u64,
    /// Messages, of one event or more, that a [shared](Transport::is_shared) transport holds for it, whichever program is to
    /// get them: as it was at most some seconds ago. `None` while that is not known, and where it is not shared.
    pub in_stream: Option<u64>,
}

/// Events with the ack that is owed for them: those of one publish, or of as many as a durable transport likes.
#[derive(Debug)]
pub struct Delivery {
    /// Never empty.
    pub events: Vec<Event>,
    /// Settled by the writer.
    pub ack: Ack,
}

/// Why events were not taken. Nothing of them was; the producer may send them again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No room, and none came in time.
    #[error("no room: {reason}")]
    Full {
        /// Which bound was met.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The program is shutting down.
    #[error("shutting down")]
    Closed,
}

/// Why a subscription could not be made, or a transport broke.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// What operators write below `[transport]`. See [`crate::sink::SinkConfig`] for the rules.
pub trait TransportConfig: DeserializeOwned + Send + 'static {
    /// The `type` that picks this plug-in.
    const TYPE: &'static str;

    /// All that is wrong with the values together, where each alone is good. Each fault begins with the key at whose value
    /// `eye check` reports it. Nothing is opened or connected.
    fn check(&self) -> Vec<BuildError> {
        Vec::new()
    }

    /// Makes the transport.
    fn build(self) -> impl Future<Output = Result<Box<dyn Transport>, BuildError>> + Send;

    /// Where it keeps dead letters; `None` where it keeps none. Nothing is opened or connected yet.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        None
    }
}
