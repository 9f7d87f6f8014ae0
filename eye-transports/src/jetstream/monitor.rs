//! The stream, the consumer of each sink and the stream of dead letters: created when missing, and checked once a second.
//!
//! [`StreamMonitor`] tells the rest of the transport whether events can be published and received, as a [`StreamStatus`].
//! Nothing is published before all of them exist with the required settings.
//!
//! Each sink has its own copy of every event, below its own subject, and the stream removes a copy only when it is
//! acknowledged (retention `WorkQueue`). One copy for all sinks would need the messages that all of them have acknowledged, and
//! the server does not tell those: a consumer's ack floor passes over messages that are to be delivered again (seen with
//! nats-server 2.9), so that their removal may lose them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Info as ConsumerInfo, pull};
use async_nats::jetstream::stream::{Config, Info, RetentionPolicy};
use eye_core::transport::Custody;
use eye_nats::capacity::StreamCapacity;
use eye_nats::dead_letters::DeadLetterStream;
use eye_nats::settings::ProvisionError;
use eye_nats::{durable, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::JetStreamConfig;
use super::stall::{ConsumerSnapshot, StallDetector, StallSign};

/// Interval of the checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after a failed check.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Shortest time for which a full stream counts as full: not every request tries it.
const MIN_FULL: Duration = Duration::from_secs(2);

/// Time for which the server recognises a message that is sent again: much longer than publishing is retried.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Status of the stream, as far as this program knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StreamStatus {
    /// Not checked yet.
    Starting,
    /// Not usable now. Holds the reason.
    Unavailable(String),
    /// The stream and all consumers were checked on this connection.
    Available,
    /// As `Available`, but the stream takes no message. Holds the reason.
    Full(String),
    /// An operator must act. Holds the reason.
    Broken(String),
}

impl StreamStatus {
    fn is_available(&self) -> bool {
        matches!(self, Self::Available | Self::Full(_))
    }
}

/// Events of one sink that this program received and did not return.
#[derive(Debug, Default)]
pub(super) struct CustodyCounts {
    pub(super) taken: AtomicU64,
    pub(super) pending: AtomicU64,
    /// Messages of the sink in the stream at the last check.
    shared_backlog: AtomicU64,
}

/// Shared by all parts of a transport.
pub(super) struct StreamMonitor {
    pub(super) context: Context,
    stream: Config,
    pub(super) ack_wait: Duration,
    pub(super) dead_letters: Arc<DeadLetterStream>,
    capacity: StreamCapacity,
    pub(super) status: watch::Sender<StreamStatus>,
    full_since: Mutex<Option<Instant>>,
    /// By the sink's name; fixed once `started` is cancelled.
    consumers: Mutex<BTreeMap<String, Arc<CustodyCounts>>>,
    started: CancellationToken,
    pub(super) closing: CancellationToken,
    /// Cancelled when everything that was taken is published or has failed.
    pub(super) published: CancellationToken,
}

impl StreamMonitor {
    pub(super) fn new(context: Context, config: &JetStreamConfig, dead_letters: DeadLetterStream) -> Self {
        let stream = Config {
            num_replicas: config.replicas.into(),
            max_bytes: i64::try_from(config.max_bytes).expect("it is checked"),
            duplicate_window: DUPLICATE_WINDOW,
            ..stream::config(&config.stream, format!("eye.{}.events.*", config.stream), RetentionPolicy::WorkQueue)
        };
        Self {
            context,
            stream,
            ack_wait: Duration::from_millis(config.ack_wait_ms),
            dead_letters: Arc::new(dead_letters),
            capacity: StreamCapacity::default(),
            status: watch::Sender::new(StreamStatus::Starting),
            full_since: Mutex::default(),
            consumers: Mutex::default(),
            started: CancellationToken::new(),
            closing: CancellationToken::new(),
            published: CancellationToken::new(),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.context.client()
    }

    pub(super) fn stream_name(&self) -> &str {
        &self.stream.name
    }

    /// Returns the subject of a sink's copies.
    pub(super) fn subject(&self, sink: &str) -> String {
        format!("eye.{}.events.{sink}", self.stream.name)
    }

    /// Returns the names of the sinks.
    pub(super) fn sinks(&self) -> Vec<String> {
        self.consumers().keys().cloned().collect()
    }

    /// Begins the checks: all sinks have subscribed.
    pub(super) fn start(&self) {
        self.started.cancel();
    }

    /// Adds the consumer of a sink; `None` when the sink has one.
    pub(super) fn add_consumer(&self, name: &str) -> Option<Arc<CustodyCounts>> {
        let mut consumers = self.consumers();
        let counts = Arc::new(CustodyCounts::default());
        (!consumers.contains_key(name)).then(|| {
            consumers.insert(name.to_owned(), counts.clone());
            counts
        })
    }

    pub(super) fn custody(&self, consumer: &str) -> Custody {
        let consumers = self.consumers();
        let Some(counts) = consumers.get(consumer) else { return Custody::default() };
        let is_available = self.status.borrow().is_available();
        Custody {
            taken: counts.taken.load(Relaxed),
            pending: counts.pending.load(Relaxed),
            shared_backlog: is_available.then(|| counts.shared_backlog.load(Relaxed)),
            ..Custody::default()
        }
    }

    fn consumers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<CustodyCounts>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> StreamStatus {
        self.status.borrow().clone()
    }

    /// Waits until the stream and the consumers are available.
    pub(super) async fn available(&self) {
        let _ = self.status.subscribe().wait_for(StreamStatus::is_available).await;
    }

    /// Waits until they are unavailable.
    pub(super) async fn unavailable(&self) {
        let _ = self.status.subscribe().wait_for(|status| !status.is_available()).await;
    }

    /// Records that the stream refused a message because it is full.
    pub(super) fn note_full(&self, reason: String) {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.set(StreamStatus::Full(reason));
    }

    /// Sets the status. `Broken` is final.
    fn set(&self, status: StreamStatus) {
        self.status.send_if_modified(|before| {
            let changed = *before != status && !matches!(before, StreamStatus::Broken(_));
            if changed {
                *before = status;
            }
            changed
        });
    }

    /// Records that the connection was lost or cannot be established.
    pub(super) fn note_unavailable(&self, reason: String) {
        self.set(StreamStatus::Unavailable(reason));
    }

    /// Checks everything on each connection. Ends when an operator must act.
    pub(super) async fn run(self: Arc<Self>, mut connection: watch::Receiver<bool>) {
        self.started.cancelled().await;
        loop {
            if connection.wait_for(|is_connected| *is_connected).await.is_err() {
                return self.set(StreamStatus::Broken("the NATS client has stopped".to_owned()));
            }
            let current = connection.clone();
            tokio::select! {
                biased;
                _ = connection.changed() => {}
                error = self.check_repeatedly(&current) => match error {
                    ProvisionError::Permanent(reason) => return self.set(StreamStatus::Broken(reason)),
                    ProvisionError::Temporary(reason) => {
                        self.set(StreamStatus::Unavailable(reason));
                        sleep(RETRY_DELAY).await;
                    }
                },
            }
        }
    }

    async fn check_repeatedly(&self, connection: &watch::Receiver<bool>) -> ProvisionError {
        let name = self.stream_name();
        let mut created_at = None;
        let mut detectors = BTreeMap::new();
        loop {
            let info = match self.check(&mut detectors).await {
                Ok(info) => info,
                Err(error) => return error,
            };
            if *created_at.get_or_insert(info.created) != info.created {
                tracing::error!(stream = name, "the stream was deleted and recreated: its events are lost");
                return ProvisionError::Temporary(format!("the stream `{name}` was deleted and recreated"));
            }
            self.note_checked(connection, info.state.bytes);
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Sets the status after a check that found so many bytes in the stream, unless the connection has changed since.
    pub(super) fn note_checked(&self, connection: &watch::Receiver<bool>, bytes: u64) {
        // The borrow blocks changes while the status is set.
        let connection = connection.borrow();
        if !connection.has_changed() {
            self.set(self.available_or_full(bytes));
        }
    }

    /// Checks the stream, the stream of dead letters and the consumers, and creates those that are missing.
    async fn check(&self, detectors: &mut BTreeMap<String, StallDetector>) -> Result<Info, ProvisionError> {
        let way_out = "change it with `nats stream edit`, or the keys below [transport]";
        let info = stream::ensure(&self.context, &self.stream, &[], way_out).await?;
        // At once: messages that are published later are not in it.
        self.capacity.observe(&info);
        self.dead_letters.ensure().await?;
        let consumers = self.consumers().clone();
        for (name, counts) in &consumers {
            let mut found = self.ensure_consumer(name).await?;
            let detector = detectors.entry(name.clone()).or_default();
            let is_stalled = match detector.observe(ConsumerSnapshot::new(&found, &info.state)) {
                None => false,
                Some(StallSign::DeliversNothing) => true,
                Some(StallSign::NothingMoves) => {
                    let (messages, now) = stream::count(&self.context, self.stream_name(), &self.subject(name)).await?;
                    !detector.confirm_count(ConsumerSnapshot::new(&found, &now.state), messages)
                }
            };
            if is_stalled {
                self.remove_consumer(name).await?;
                found = self.ensure_consumer(name).await?;
                detector.consumer_recreated();
            }
            counts.shared_backlog.store(found.num_pending + found.num_ack_pending as u64, Relaxed);
        }
        Ok(info)
    }

    async fn ensure_consumer(&self, name: &str) -> Result<ConsumerInfo, ProvisionError> {
        let required = pull::Config {
            durable_name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: durable::MAX_ACK_PENDING.into(),
            filter_subject: self.subject(name),
            ..pull::Config::default()
        };
        let way_out = "change it with `nats consumer edit`, or the keys below [transport]";
        durable::ensure(&self.context, self.stream_name(), name, &required, way_out).await
    }

    /// Removes a consumer that does not deliver. The stream keeps its messages.
    async fn remove_consumer(&self, name: &str) -> Result<(), ProvisionError> {
        durable::remove(&self.context, self.stream_name(), name).await?;
        tracing::warn!(
            stream = self.stream_name(),
            sink = name,
            "the NATS server did not deliver the sink's messages, as version 2.9 does after it was killed: the consumer is \
             recreated, and messages in flight are delivered again"
        );
        Ok(())
    }

    /// Reserves space for a message with such a payload; false when the stream is full.
    ///
    /// # Errors
    /// The reason for which the server does not answer.
    pub(super) async fn reserve(&self, payload_bytes: usize) -> Result<bool, String> {
        let reserved = self.capacity.reserve(&self.context, self.stream_name(), payload_bytes).await;
        reserved.map_err(|error| error.to_string())
    }

    /// Returns the status for so many bytes. A full stream stays full until an eighth is free, so that the status does not
    /// flicker.
    fn available_or_full(&self, bytes: u64) -> StreamStatus {
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = *full_since else { return StreamStatus::Available };
        let max_bytes = self.stream.max_bytes as u64;
        if since.elapsed() >= MIN_FULL && bytes <= max_bytes - max_bytes / 8 {
            *full_since = None;
            return StreamStatus::Available;
        }
        match self.status() {
            full @ StreamStatus::Full(_) => full,
            _ => StreamStatus::Full(self.full_reason("it was full when the connection was lost")),
        }
    }

    pub(super) fn full_reason(&self, error: &str) -> String {
        format!(
            "the stream `{}` takes nothing (transport.max_bytes = {}): {error}",
            self.stream_name(),
            self.stream.max_bytes
        )
    }
}
