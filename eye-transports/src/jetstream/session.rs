//! What is on the server: the stream, and a consumer for each sink, as they must be.
//!
//! Each sink has a copy of its own of every event, below a subject of its own, and the stream removes a message when it
//! is acknowledged (retention `WorkQueue`), never otherwise. With one message for all sinks, somebody would have to know
//! which messages all of them have acknowledged, and the server does not tell: the ack floor of a consumer passes over
//! messages that are to be delivered again (seen with nats-server 2.9), so what is removed by it may be lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Info as ConsumerInfo, pull};
use async_nats::jetstream::stream::{Config, Info, RetentionPolicy};
use eye_core::transport::Custody;
use eye_nats::connection::Change;
use eye_nats::dead_letters::Keeper;
use eye_nats::room::Room;
use eye_nats::settings::Missing;
use eye_nats::{consumer, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::JetStreamConfig;
use super::standstill::{Look, Standstill, Suspicion};

/// How often the stream is looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long to wait before what is missing is looked for again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long a stream stays full at least, so that it is not tried with every request.
const FULL_FOR: Duration = Duration::from_secs(2);

/// How long the server knows what it has: much longer than a publish is tried again.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How it stands between us and the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is known yet.
    Starting,
    /// Why nothing can be published now.
    Away(String),
    /// On this connection, the stream and all consumers were seen.
    Here,
    /// The same, but the stream takes nothing: why.
    Full(String),
    /// It will never work: why.
    Broken(String),
}

impl State {
    fn is_here(&self) -> bool {
        matches!(self, Self::Here | Self::Full(_))
    }
}

/// One consumer's events that came from the server and were not handed back.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) taken: AtomicU64,
    pub(super) pending: AtomicU64,
    /// Messages, and all that the server has for it, when it was last looked at.
    shared_backlog: AtomicU64,
}

/// What all parts of a transport share.
pub(super) struct Session {
    context: Context,
    stream: Config,
    ack_wait: Duration,
    dead_letters: Keeper,
    room: Room,
    state: watch::Sender<State>,
    full_since: Mutex<Option<Instant>>,
    /// By name; fixed once `started` is cancelled.
    consumers: Mutex<BTreeMap<String, Arc<Counts>>>,
    started: CancellationToken,
    closing: CancellationToken,
    /// Everything that was taken is published, or has failed.
    pub(super) published: CancellationToken,
}

impl Session {
    pub(super) fn new(context: Context, config: &JetStreamConfig, dead_letters: Keeper) -> Self {
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
            dead_letters,
            room: Room::default(),
            state: watch::Sender::new(State::Starting),
            full_since: Mutex::default(),
            consumers: Mutex::default(),
            started: CancellationToken::new(),
            closing: CancellationToken::new(),
            published: CancellationToken::new(),
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn client(&self) -> Client {
        self.context.client()
    }

    pub(super) fn stream_name(&self) -> &str {
        &self.stream.name
    }

    /// Where a sink's copy of the events is published.
    pub(super) fn subject(&self, sink: &str) -> String {
        format!("eye.{}.events.{sink}", self.stream.name)
    }

    /// The names of the sinks.
    pub(super) fn sinks(&self) -> Vec<String> {
        self.consumers().keys().cloned().collect()
    }

    pub(super) fn ack_wait(&self) -> Duration {
        self.ack_wait
    }

    pub(super) fn dead_letters(&self) -> &Keeper {
        &self.dead_letters
    }

    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// All have subscribed.
    pub(super) fn start(&self) {
        self.started.cancel();
    }

    /// `None` when there is one of this name.
    pub(super) fn add_consumer(&self, name: &str) -> Option<Arc<Counts>> {
        let mut consumers = self.consumers();
        let counts = Arc::new(Counts::default());
        (!consumers.contains_key(name)).then(|| {
            consumers.insert(name.to_owned(), counts.clone());
            counts
        })
    }

    pub(super) fn custody(&self, consumer: &str) -> Custody {
        let consumers = self.consumers();
        let Some(counts) = consumers.get(consumer) else { return Custody::default() };
        let is_here = self.state.borrow().is_here();
        Custody {
            taken: counts.taken.load(Relaxed),
            pending: counts.pending.load(Relaxed),
            shared_backlog: is_here.then(|| counts.shared_backlog.load(Relaxed)),
            ..Custody::default()
        }
    }

    fn consumers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Counts>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Waits until the stream and the consumers are there.
    pub(super) async fn here(&self) {
        let _ = self.state.subscribe().wait_for(State::is_here).await;
    }

    /// Waits until they are not.
    pub(super) async fn away(&self) {
        let _ = self.state.subscribe().wait_for(|state| !state.is_here()).await;
    }

    /// The server has no room for what was published.
    pub(super) fn note_full(&self, reason: String) {
        *self.full_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.set(State::Full(reason));
    }

    /// What is broken stays so.
    fn set(&self, state: State) {
        self.state.send_if_modified(|before| {
            let changed = *before != state && !matches!(before, State::Broken(_));
            if changed {
                *before = state;
            }
            changed
        });
    }

    /// What becomes known of the connection.
    pub(super) fn note(self: Arc<Self>, is_connected: watch::Sender<bool>) -> impl FnMut(Change) + Send {
        move |change| match change {
            Change::Connected => {
                is_connected.send_replace(true);
            }
            Change::Lost => {
                // First: what was seen on it, nobody notes after this.
                is_connected.send_replace(false);
                self.set(State::Away("the connection was lost".to_owned()));
            }
            Change::Failed(reason) => self.set(State::Away(reason)),
            // It was not acknowledged, so it comes again.
            Change::Dropped => {}
        }
    }

    /// Sees to it that all is there, on every connection anew. Ends when somebody must do something about it.
    pub(super) async fn keep(self: Arc<Self>, mut connection: watch::Receiver<bool>) {
        self.started.cancelled().await;
        loop {
            if connection.wait_for(|is_connected| *is_connected).await.is_err() {
                return self.set(State::Broken("the NATS client has given up".to_owned()));
            }
            let this = connection.clone();
            tokio::select! {
                biased;
                _ = connection.changed() => {}
                missing = self.work(&this) => match missing {
                    Missing::ForGood(reason) => return self.set(State::Broken(reason)),
                    Missing::Yet(reason) => {
                        self.set(State::Away(reason));
                        sleep(RETRY_DELAY).await;
                    }
                },
            }
        }
    }

    /// Looks at it all again and again, until something is not as it must be.
    async fn work(&self, connection: &watch::Receiver<bool>) -> Missing {
        let name = self.stream_name();
        let mut made_at = None;
        let mut standstills = BTreeMap::new();
        loop {
            let info = match self.find(&mut standstills).await {
                Ok(info) => info,
                Err(missing) => return missing,
            };
            if *made_at.get_or_insert(info.created) != info.created {
                tracing::error!(
                    stream = name,
                    "somebody has deleted the stream and made it again: what it held is lost"
                );
                return Missing::Yet(format!("the stream `{name}` is another one"));
            }
            self.room.see(&info);
            self.see(connection, info.state.bytes);
            sleep(TICK).await;
        }
    }

    /// All is there, with so many bytes in the stream. That does not count any more once the connection has changed.
    pub(super) fn see(&self, connection: &watch::Receiver<bool>, bytes: u64) {
        // Held meanwhile: it does not change in between.
        let connection = connection.borrow();
        if !connection.has_changed() {
            self.set(self.here_or_full(bytes));
        }
    }

    /// The stream, the consumers, and where dead letters are kept: as they must be, or made.
    async fn find(&self, standstills: &mut BTreeMap<String, Standstill>) -> Result<Info, Missing> {
        let way_out = "change it with `nats stream edit`, or the keys below [transport]";
        let info = stream::find(&self.context, &self.stream, &[], way_out).await?;
        self.dead_letters.find().await?;
        let consumers = self.consumers().clone();
        for (name, counts) in &consumers {
            let mut found = self.find_consumer(name).await?;
            let standstill = standstills.entry(name.clone()).or_default();
            let is_astray = match standstill.note(Look::new(&found, &info.state)) {
                None => false,
                Some(Suspicion::DeliversNothing) => true,
                Some(Suspicion::NothingMoves) => {
                    let (messages, now) = stream::count(&self.context, self.stream_name(), &self.subject(name)).await?;
                    !standstill.is_right(Look::new(&found, &now.state), messages)
                }
            };
            if is_astray {
                self.remove_consumer(name).await?;
                found = self.find_consumer(name).await?;
                standstill.made_anew();
            }
            counts.shared_backlog.store(found.num_pending + found.num_ack_pending as u64, Relaxed);
        }
        Ok(info)
    }

    async fn find_consumer(&self, name: &str) -> Result<ConsumerInfo, Missing> {
        let wanted = pull::Config {
            durable_name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: consumer::MAX_ACK_PENDING.into(),
            filter_subject: self.subject(name),
            ..pull::Config::default()
        };
        let way_out = "change it with `nats consumer edit`, or the keys below [transport]";
        consumer::find(&self.context, self.stream_name(), name, &wanted, way_out).await
    }

    /// Removes a consumer that the server has lost its way in; of the stream it takes nothing.
    async fn remove_consumer(&self, name: &str) -> Result<(), Missing> {
        consumer::remove(&self.context, self.stream_name(), name).await?;
        tracing::warn!(
            stream = self.stream_name(),
            sink = name,
            "the NATS server did not deliver what it has for the sink, as 2.9 does once it was killed: its consumer is made \
             anew, and what was at hand is delivered again"
        );
        Ok(())
    }

    /// Whether a message with such a payload may be published.
    ///
    /// # Errors
    /// When the server does not say.
    pub(super) async fn has_room_for(&self, payload_bytes: usize) -> Result<bool, String> {
        let taken = self.room.takes(&self.context, self.stream_name(), payload_bytes).await;
        taken.map_err(|error| error.to_string())
    }

    /// A stream that was full is so until an eighth of it is free: it does not flicker.
    fn here_or_full(&self, bytes: u64) -> State {
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = *full_since else { return State::Here };
        let max_bytes = self.stream.max_bytes as u64;
        if since.elapsed() >= FULL_FOR && bytes <= max_bytes - max_bytes / 8 {
            *full_since = None;
            return State::Here;
        }
        match self.state() {
            full @ State::Full(_) => full,
            _ => State::Full(self.full_reason("it was full when the connection was lost")),
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
