//! Where events come from.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::accounts::{Entry, SourceAccount};
use crate::ack::Receipt;
use crate::dead_letter::DeadLetters;
use crate::event::Event;
use crate::health::Health;
use crate::refusals::{Refusal, Refusals};
use crate::registry::BuildError;
use crate::transport::{PublishError, Transport};

/// Takes events in and answers their producers.
///
/// A source parses through the gate ([`crate::event`]), publishes to its [`Outlet`], and answers each producer from the
/// [`Receipt`] alone: "ok" only after [`Outcome::Delivered`](crate::ack::Outcome::Delivered). It retries nothing.
#[async_trait]
pub trait Source: Send + 'static {
    /// The HTTP routes of this source, for the one listener that ingest, queries and health share.
    ///
    /// Called once, before [`run`](Source::run). A handler runs to its end even when its client disconnects.
    fn routes(&self, _outlet: &Outlet) -> Option<Router> {
        None
    }

    /// Takes events until `shutdown` is cancelled, then stops taking, waits for the receipts it owes an answer to, and
    /// returns. A source that lives from its routes alone keeps the default: the listener drains those.
    ///
    /// # Errors
    /// Only what cannot be cured by trying again: the program stops. A server that is away is retried inside.
    async fn run(self: Box<Self>, _outlet: Outlet, shutdown: CancellationToken) -> Result<(), SourceError> {
        shutdown.cancelled().await;
        Ok(())
    }
}

/// A source's way into the pipeline.
#[derive(Clone)]
pub struct Outlet {
    transport: Arc<dyn Transport>,
    health: Health,
    account: Arc<SourceAccount>,
}

impl Outlet {
    /// An outlet into `transport`; `health` is the source's own entry in `/readyz`.
    pub fn new(transport: Arc<dyn Transport>, health: Health) -> Self {
        let account = Arc::new(SourceAccount::new(health.name()));
        Self { transport, health, account }
    }

    /// Hands events on. See [`Transport::publish`]. Whatever becomes of them, the source's account has it: what the
    /// receipt says, or that they failed, where they were not taken or the receipt was dropped.
    ///
    /// # Errors
    /// [`PublishError`] when the events were not taken; the producer may send them again.
    pub async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        let entry = Entry::open(self.account.clone(), events.len());
        let mut receipt = self.transport.publish(events).await?;
        receipt.entry = Some(entry);
        Ok(receipt)
    }

    /// Notes that so many events did not pass the gate, and what was wrong with them: one thing or several for each.
    pub fn reject(&self, events: usize, refusals: impl IntoIterator<Item = Refusal>) {
        self.account.reject(events, refusals);
    }

    /// Where the source notes what else it refuses or loses: a body or message in which no event could be read.
    pub fn refusals(&self) -> &Refusals {
        self.account.refusals()
    }

    /// What the source has done with its events so far.
    pub fn account(&self) -> &Arc<SourceAccount> {
        &self.account
    }

    /// Where the source says how it is.
    pub fn health(&self) -> &Health {
        &self.health
    }
}

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// What operators write below `[sources.NAME]`. See [`crate::sink::SinkConfig`] for the rules.
pub trait SourceConfig: DeserializeOwned + Send + 'static {
    /// The `type` that picks this plug-in.
    const TYPE: &'static str;

    /// Whether it has [`routes`](Source::routes). The one listener serves one source: a second one is an error of the
    /// configuration.
    const HAS_ROUTES: bool = false;

    /// All that is wrong with the values together, where each alone is good. Each fault begins with the key at whose value
    /// `eye check` reports it. Nothing is opened or connected.
    fn check(&self) -> Vec<BuildError> {
        Vec::new()
    }

    /// Makes the source. A server that is away is not a failure here: [`Source::run`] keeps trying.
    fn build(self) -> impl Future<Output = Result<Box<dyn Source>, BuildError>> + Send;

    /// Where it keeps dead letters; `None` where it keeps none. Nothing is opened or connected yet.
    fn dead_letters(&self) -> Option<Box<dyn DeadLetters>> {
        None
    }
}
