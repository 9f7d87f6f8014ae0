//! The trait of sources, which take events in and answer their producers.
//!
//! A source parses input with [`crate::event`], publishes the events to its [`Outlet`], and answers each producer from
//! the [`PendingReceipt`] alone: "ok" only after [`Outcome::Delivered`]. It retries nothing. Read [`Source`] first.

use std::sync::Arc;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::ack::{Outcome, Receipt};
use crate::context::BuildContext;
use crate::counters::{SourceCounters, WaitingEvents};
use crate::dead_letter::DeadLetterStore;
use crate::error::BuildError;
use crate::event::{Event, Origin};
use crate::health::Health;
use crate::refusals::{Refusal, Refusals};
use crate::transport::{PublishError, Transport};

/// Takes events in and answers their producers.
#[async_trait]
pub trait Source: Send + 'static {
    /// Takes events until `shutdown` is cancelled, then stops taking, waits for the receipts it owes an answer to, and
    /// returns. A source that only serves requests of a listener keeps the default: the listener drains those.
    ///
    /// # Errors
    /// Only failures that no retry can cure: the program stops. An unavailable server is retried inside.
    async fn run(self: Box<Self>, shutdown: CancellationToken) -> Result<(), SourceError> {
        shutdown.cancelled().await;
        Ok(())
    }
}

/// The environment handed to a source when it is built.
#[derive(Clone)]
pub struct SourceContext {
    /// The part that every component has.
    pub component: BuildContext,
    /// The source's entrance to the pipeline.
    pub outlet: Outlet,
}

/// A source's entrance to the pipeline. Cloning shares it.
#[derive(Clone)]
pub struct Outlet {
    transport: Arc<dyn Transport>,
    health: Health,
    counters: Arc<SourceCounters>,
    origin: Arc<Origin>,
}

impl Outlet {
    /// Creates an outlet into `transport`; `health` is the source's own entry in the health report.
    pub fn new(transport: Arc<dyn Transport>, health: Health) -> Self {
        let counters = Arc::new(SourceCounters::new(health.name()));
        let name = health.name().rsplit('.').next().unwrap_or_default();
        let origin = Arc::new(Origin::new(name, None));
        Self { transport, health, counters, origin }
    }

    /// Publishes events. See [`Transport::publish`]. The source's counters include the events whatever their outcome:
    /// as the receipt says, or as failed when they were not taken or the receipt was dropped.
    ///
    /// # Errors
    /// [`PublishError`] when the events were not taken; the producer may send them again.
    pub async fn publish(&self, events: Vec<Event>) -> Result<PendingReceipt, PublishError> {
        let waiting = WaitingEvents::new(self.counters.clone(), events.len());
        let receipt = self.transport.publish(events).await?;
        Ok(PendingReceipt { receipt, waiting })
    }

    /// Counts events that were invalid, and their faults: one or several for each event.
    pub fn reject_invalid(&self, events: usize, refusals: impl IntoIterator<Item = Refusal>) {
        self.counters.reject_invalid(events, refusals);
    }

    /// Returns the reports of further refusals and losses, such as a body in which no event could be read.
    pub fn refusals(&self) -> &Refusals {
        self.counters.refusals()
    }

    /// Returns the source's counters.
    pub fn counters(&self) -> &Arc<SourceCounters> {
        &self.counters
    }

    /// Returns the source's entry in the health report.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the origin of events whose producer is not known any better: the source's name.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }
}

/// The receipt of one publish, counted by the source. Dropped without an outcome, its events count as failed.
#[derive(Debug)]
pub struct PendingReceipt {
    receipt: Receipt,
    waiting: WaitingEvents,
}

impl PendingReceipt {
    /// Waits for the outcome and counts it. No bound of its own: the source sets one.
    pub async fn outcome(self) -> Outcome {
        let outcome = self.receipt.outcome().await;
        self.waiting.settle(&outcome);
        outcome
    }
}

/// A source that ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// The settings that operators write below `[sources.NAME]`. See [`crate::sink::SinkConfig`] for the rules.
pub trait SourceConfig: DeserializeOwned + Send + 'static {
    /// The `type` that selects this plug-in.
    const TYPE: &'static str;

    /// Returns the faults of values that are valid each but not together. Opens and connects nothing.
    fn check(&self) -> Vec<BuildError> {
        Vec::new()
    }

    /// Returns what only one source of the program may have, such as an endpoint of the shared listener. A second
    /// source that claims the same is a fault of the configuration.
    fn claims(&self) -> Vec<String> {
        Vec::new()
    }

    /// Builds the source.
    ///
    /// # Errors
    /// Permanent failures. An unavailable server is not a failure here: [`Source::run`] keeps trying.
    fn build(self, context: &SourceContext) -> impl Future<Output = Result<Box<dyn Source>, BuildError>> + Send;

    /// Returns the dead letters of a source with these settings, for commands that work without the source. `None`
    /// where it keeps none. Opens and connects nothing yet.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        None
    }
}
