//! A stream of a NATS server, which several programs share: all of them put events in, all of them take events out. A
//! receipt settles once the stream has the events.
//!
//! The programs hold no state. The stream keeps a copy of each event for every sink, until the sink's consumer has
//! acknowledged it. Whatever comes twice, the sinks store once.

mod group;
mod publisher;
mod puller;
mod session;
mod standstill;
mod subscription;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::ContextBuilder;
use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::context::BuildContext;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::health::Health;
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportConfig, TransportError};
use eye_nats::connection::{self, Login, Secret, Server, ServerUrls};
use eye_nats::dead_letters::{Keeper, StreamDeadLetters};
use eye_nats::stream::is_name;
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::record;

use publisher::{Publisher, Request};
use session::{Session, State};
use subscription::JetStreamSubscription;

/// What operators write below `[transport]` with `type = "jetstream"`.
#[derive(Clone, Debug, Deserialize)]
pub struct JetStreamConfig {
    /// Where the server is: `nats://HOST:PORT`, or `tls://HOST:PORT`; several of a cluster are separated by commas. User and
    /// password, or a token, may be in it.
    url: ServerUrls,
    /// The stream, which is made where it is missing. Programs that share it have the same sinks.
    stream: String,
    /// Servers of a cluster that keep each event, at most 5. Default 1.
    #[serde(default = "one", deserialize_with = "eye_core::config::at_least_one")]
    replicas: u8,
    /// Bytes that the stream may hold; beyond, requests are refused. At least 64 MiB, default 10 GiB.
    #[serde(default = "ten_gibibytes")]
    max_bytes: u64,
    /// Milliseconds after which events that a program has said nothing about are delivered to another one, because it was
    /// killed or lost its connection. Default 30 s.
    #[serde(default = "thirty_seconds", deserialize_with = "eye_core::config::at_least_one")]
    ack_wait_ms: u64,
    /// A file with a JWT and its key, as `nsc` makes it. Empty: none.
    #[serde(default)]
    credentials_file: String,
    /// Empty: none.
    #[serde(default)]
    token: Secret,
    /// With `password`, where they are not in the URL. Empty: none.
    #[serde(default)]
    user: String,
    /// Of `user`.
    #[serde(default)]
    password: Secret,
    /// A PEM file with the certificates that the server's must be signed by. Empty: those of the system.
    #[serde(default)]
    ca_file: String,
}

fn one() -> u8 {
    1
}

fn ten_gibibytes() -> u64 {
    10 << 30
}

fn thirty_seconds() -> u64 {
    30_000
}

/// Less would not hold a few of the largest requests.
const MIN_MAX_BYTES: u64 = 64 << 20;

/// Bytes of events that may wait for the stream, as they are sent.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// When a producer that found no room may come back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long one try to publish may wait for its answer.
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
        wrong.chain(self.login().check().err()).collect()
    }

    async fn build(self, _context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        let server = Server::new(&self.login()).await?;
        let name = server.name();
        let (client, events) = server.connect().await.map_err(|error| BuildError::new(error.to_string()))?;
        let (is_connected, connection) = watch::channel(false);
        let session = Arc::new(Session::new(
            ContextBuilder::new().timeout(PUBLISH_TIMEOUT).build(client.clone()),
            &self,
            Keeper::new(client.clone(), &self.stream, self.replicas.into()),
        ));
        let watching = connection::watch(client, events, name, session.clone().note(is_connected));
        let (sender, queue) = mpsc::unbounded_channel();
        tokio::spawn(Publisher::new(session.clone(), queue).run());
        let tasks = [
            AbortOnDropHandle::new(tokio::spawn(watching)),
            AbortOnDropHandle::new(tokio::spawn(session.clone().keep(connection))),
        ];
        let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        Ok(Box::new(JetStreamTransport {
            session,
            queue: RwLock::new(Some(sender)),
            room,
            login: self.login(),
            _tasks: tasks,
        }))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        Some(Box::new(StreamDeadLetters::new(self.login(), &self.stream)))
    }
}

impl JetStreamConfig {
    fn login(&self) -> Login {
        Login {
            url: self.url.clone(),
            credentials_file: self.credentials_file.clone(),
            token: self.token.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            ca_file: self.ca_file.clone(),
        }
    }
}

struct JetStreamTransport {
    session: Arc<Session>,
    /// To the task that publishes. Its length is bounded by `room`. `None` once the transport is closed.
    queue: RwLock<Option<mpsc::UnboundedSender<Request>>>,
    /// A permit a byte, given back when the receipt is settled.
    room: Arc<Semaphore>,
    login: Login,
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
        match self.session.state() {
            State::Here => {}
            State::Starting => return Err(full("not connected yet".to_owned())),
            State::Away(reason) | State::Full(reason) => return Err(full(reason)),
            State::Broken(_) => return Err(PublishError::Closed),
        }
        let bytes: usize = events.iter().map(record::encoded_bytes).sum();
        let permits = bytes.min(MAX_WAITING_BYTES) as u32;
        let permit = self.room.clone().try_acquire_many_owned(permits).map_err(|_| {
            let waiting = MAX_WAITING_BYTES - self.room.available_permits();
            full(format!("{waiting} bytes wait for the stream `{}`", self.session.stream_name()))
        })?;
        let ack = Ack::new(move |outcome| {
            drop(permit);
            settle(outcome);
        });
        // The task has panicked: its requests have failed, and so has this one.
        let _ = queue.send(Request { events, ack, taken_at: Instant::now() });
        Ok(receipt)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        if !is_name(consumer) {
            let rule = "a consumer of the stream has that name: none of `.*>/\\ ` may be in it";
            return Err(TransportError(format!("sinks.{consumer}: {rule}")));
        }
        if self.session.closing().is_cancelled() {
            return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed")));
        }
        let Some(counts) = self.session.add_consumer(consumer) else {
            return Err(TransportError(format!("{consumer} has subscribed already")));
        };
        Ok(Box::new(JetStreamSubscription::new(self.session.clone(), consumer.to_owned(), counts)))
    }

    fn close(&self) {
        self.session.closing().cancel();
        self.queue.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(StreamDeadLetters::new(self.login.clone(), self.session.stream_name())))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn custody(&self, consumer: &str) -> Custody {
        self.session.custody(consumer)
    }

    async fn watch(&self, health: Health) -> TransportError {
        self.session.start();
        let mut states = self.session.states();
        loop {
            match states.borrow_and_update().clone() {
                State::Starting => {}
                State::Here => health.ready(),
                State::Away(reason) | State::Full(reason) => health.unavailable(reason),
                State::Broken(reason) => return TransportError(reason),
            }
            states.changed().await.expect("the session lives as long as the transport");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
