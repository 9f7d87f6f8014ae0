//! `type = "jetstream"`: a stream of a NATS server that several programs share. Each of them publishes events and receives them.
//!
//! A receipt settles when the stream has stored the events. The stream keeps one copy for each sink until the sink's consumer has
//! acknowledged it; the programs themselves hold no state. Sinks store once what is delivered twice. Read [`monitor`] first.

mod group;
mod monitor;
mod publisher;
mod stall;
mod subscription;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::ContextBuilder;
use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::budget::ByteBudget;
use eye_core::context::BuildContext;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::health::Health;
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportConfig, TransportError};
use eye_nats::connection::{self, ConnectionSettings, Connector, Secret, ServerUrls};
use eye_nats::connection_settings;
use eye_nats::dead_letters::DeadLetterStream;
use eye_nats::stream::is_name;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::record;

use monitor::{StreamMonitor, StreamStatus};
use publisher::{PublishRequest, Publisher};
use subscription::JetStreamSubscription;

/// The keys below `[transport]` with `type = "jetstream"`.
#[derive(Clone, Debug, Deserialize)]
pub struct JetStreamConfig {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; several servers of a cluster are separated by commas. User and password, or a
    /// token, may stand in it.
    url: ServerUrls,
    /// The stream, which is created when it is missing. Programs that share it have the same sinks.
    stream: String,
    /// Servers of a cluster that store each event, at most 5. Default 1.
    #[serde(default = "default_replicas", deserialize_with = "eye_core::config::at_least_one")]
    replicas: u8,
    /// Size limit of the stream in bytes; a full stream refuses requests. At least 64 MiB, default 10 GiB.
    #[serde(default = "default_max_bytes")]
    max_bytes: u64,
    /// Milliseconds after which the events of a program that was killed or lost its connection are delivered to another one.
    /// Default 30 s.
    #[serde(default = "default_ack_wait_ms", deserialize_with = "eye_core::config::at_least_one")]
    ack_wait_ms: u64,
    /// A file with a JWT and its key, as `nsc` writes it. Empty: none.
    #[serde(default)]
    credentials_file: String,
    /// Empty: none.
    #[serde(default)]
    token: Secret,
    /// With `password`, an alternative to the URL. Empty: none.
    #[serde(default)]
    user: String,
    /// The password of `user`.
    #[serde(default)]
    password: Secret,
    /// A PEM file with the certificate authorities of the server's certificate. Empty: those of the system.
    #[serde(default)]
    ca_file: String,
}

fn default_replicas() -> u8 {
    1
}

fn default_max_bytes() -> u64 {
    10 << 30
}

fn default_ack_wait_ms() -> u64 {
    30_000
}

/// Space for a few of the largest requests.
const MIN_MAX_BYTES: u64 = 64 << 20;

/// Encoded bytes of events that may wait to be published.
const MAX_WAITING_BYTES: u32 = 64 << 20;

/// Delay after which a refused producer may retry.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Longest wait for the answer to one attempt to publish.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(4);

impl TransportConfig for JetStreamConfig {
    const TYPE: &'static str = "jetstream";

    fn check(&self) -> Vec<BuildError> {
        let (max_bytes, replicas) = (self.max_bytes, self.replicas);
        let no_name = "must be the name of a stream, without any of `.*>/\\ `".to_owned();
        let checks = [
            (!is_name(&self.stream), "stream", no_name),
            (replicas > 5, "replicas", format!("{replicas} is too large: it must be at most 5")),
            (
                max_bytes < MIN_MAX_BYTES,
                "max_bytes",
                format!("{max_bytes} is too small: it must be at least {MIN_MAX_BYTES}"),
            ),
            (i64::try_from(max_bytes).is_err(), "max_bytes", format!("{max_bytes} is more than a stream can hold")),
        ];
        let wrong = checks.into_iter().filter(|(is_wrong, ..)| *is_wrong);
        let wrong = wrong.map(|(_, key, message)| BuildError::at(key, message));
        wrong.chain(self.connection().check().err()).collect()
    }

    async fn build(self, _context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        let connector = Connector::new(&self.connection()).await?;
        let name = connector.name();
        let (client, events) = connector.connect().await.map_err(|error| BuildError::new(error.to_string()))?;
        let context = ContextBuilder::new().timeout(PUBLISH_TIMEOUT).build(client.clone());
        let monitor =
            Arc::new(StreamMonitor::new(context, &self, self.dead_letter_stream().with_client(client.clone())));
        let watched = monitor.clone();
        let on_unavailable = move |reason| watched.note_unavailable(reason);
        let (connection, watching) = connection::watch_state(client, events, name, on_unavailable);
        let (sender, queue) = mpsc::unbounded_channel();
        tokio::spawn(Publisher::new(monitor.clone(), queue).run());
        let tasks = [watching, AbortOnDropHandle::new(tokio::spawn(monitor.clone().run(connection)))];
        let budget = ByteBudget::new(MAX_WAITING_BYTES);
        Ok(Box::new(JetStreamTransport { monitor, queue: RwLock::new(Some(sender)), budget, _tasks: tasks }))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        Some(Box::new(self.dead_letter_stream()))
    }
}

impl JetStreamConfig {
    fn connection(&self) -> ConnectionSettings {
        connection_settings!(self)
    }

    fn dead_letter_stream(&self) -> DeadLetterStream {
        DeadLetterStream::new(self.connection(), &self.stream)
    }
}

struct JetStreamTransport {
    monitor: Arc<StreamMonitor>,
    /// To the task that publishes. `budget` bounds its length. `None` once the transport is closed.
    queue: RwLock<Option<mpsc::UnboundedSender<PublishRequest>>>,
    /// Reservations are released when the receipt is settled.
    budget: ByteBudget,
    _tasks: [AbortOnDropHandle<()>; 2],
}

#[async_trait]
impl Transport for JetStreamTransport {
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        let (settle, receipt) = Receipt::pair();
        if events.is_empty() {
            settle(Outcome::Delivered);
            return Ok(receipt);
        }
        let queue = self.queue.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = queue.as_ref() else { return Err(PublishError::Closed) };
        let full = |reason: String| PublishError::Full { reason, retry_after: RETRY_AFTER };
        let unavailable = |reason: String| PublishError::Unavailable { reason, retry_after: RETRY_AFTER };
        match self.monitor.status() {
            StreamStatus::Available => {}
            StreamStatus::Starting => return Err(unavailable("not connected yet".to_owned())),
            StreamStatus::Unavailable(reason) => return Err(unavailable(reason)),
            StreamStatus::Full(reason) => return Err(full(reason)),
            StreamStatus::Broken(_) => return Err(PublishError::Closed),
        }
        let bytes = events.iter().map(record::encoded_bytes).sum();
        let reservation = self.budget.try_reserve(bytes).ok_or_else(|| {
            full(format!("{} bytes wait for the stream `{}`", self.budget.used_bytes(), self.monitor.stream_name()))
        })?;
        let ack = Ack::new(move |outcome| {
            drop(reservation);
            settle(outcome);
        });
        // Fails only if the task has panicked. Its requests have failed then, and so does this one.
        let _ = queue.send(PublishRequest { events, ack, taken_at: Instant::now() });
        Ok(receipt)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        if !is_name(consumer) {
            let rule = "a consumer of the stream has this name: it must not contain any of `.*>/\\ `";
            return Err(TransportError(format!("sinks.{consumer}: {rule}")));
        }
        if self.monitor.closing.is_cancelled() {
            return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed")));
        }
        let Some(counts) = self.monitor.add_consumer(consumer) else {
            return Err(TransportError(format!("{consumer} has subscribed already")));
        };
        Ok(Box::new(JetStreamSubscription::new(self.monitor.clone(), consumer.to_owned(), counts)))
    }

    fn close(&self) {
        self.monitor.closing.cancel();
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(self.monitor.dead_letters.clone())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn custody(&self, consumer: &str) -> Custody {
        self.monitor.custody(consumer)
    }

    async fn watch(&self, health: Health) -> TransportError {
        self.monitor.start();
        let mut statuses = self.monitor.status.subscribe();
        loop {
            match statuses.borrow_and_update().clone() {
                StreamStatus::Starting => {}
                StreamStatus::Available => health.ready(),
                StreamStatus::Unavailable(reason) | StreamStatus::Full(reason) => health.unavailable(reason),
                StreamStatus::Broken(reason) => return TransportError(reason),
            }
            statuses.changed().await.expect("the monitor lives as long as the transport");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
