//! `mode = "jetstream"`: a durable pull consumer. A message is acknowledged once its events are stored.

use std::pin::pin;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use eye_core::ack::Rejection;
use eye_core::event::EventId;
use eye_core::health::Health;
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{self, Change, Server, flush};
use eye_nats::consumer;
use eye_nats::dead_letters::{Keeper, Refused};
use eye_nats::place::Place;
use eye_nats::pull::{Address, Request, SUBJECTS_BYTES, is_over, is_word};
use eye_nats::settings::Missing;
use futures_util::stream::ReadyChunks;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::{Builder, Variant, Version};

use crate::decode::NewIds;
use crate::ingestor::Ingested;
use crate::verdict::Verdict;

use super::NatsConfig;
use super::dead_letters::{By, Sifted};
use super::message::{Body, Intake, MAX_GROUP_BYTES, MAX_GROUP_MESSAGES, framing, message_id};

/// After how long a message is delivered again that could not be stored.
const NAK_DELAY: Duration = Duration::from_secs(5);

/// How long to wait before the consumer is looked for again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long words to the server may wait to be sent; it has to when the connection is lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

const KEPT: Refusal = Refusal { part: "message", problem: "refused for good, kept in the stream's `_dead_letters`" };
const NOT_KEPT: Refusal =
    Refusal { part: "message", problem: "refused for good, but cannot be kept as a dead letter; delivered again" };

/// Takes messages until `shutdown`, then waits for the receipts of those it has, and acknowledges them.
///
/// # Errors
/// When the consumer exists with other settings.
pub(super) async fn run(
    server: Server,
    config: NatsConfig,
    intake: Intake,
    shutdown: CancellationToken,
) -> Result<(), SourceError> {
    let name = server.name();
    let (client, events) = server.connect().await.map_err(|error| SourceError(error.to_string()))?;
    let health = intake.ingestor.outlet.health().clone();
    let (is_connected, connection) = watch::channel(false);
    let watching = connection::watch(client.clone(), events, name, note(is_connected, health.clone()));
    let _watching = AbortOnDropHandle::new(tokio::spawn(watching));

    let room = Room {
        messages: Arc::new(Semaphore::new(config.max_in_flight as usize)),
        bytes: Arc::new(Semaphore::new(config.max_pending_bytes as usize)),
    };
    let tasks = TaskTracker::new();
    let desk = Arc::new(Desk { client: client.clone(), config, intake, shutdown, room, tasks: tasks.clone() });
    let ended = desk.work(connection, &health).await;
    tasks.close();
    tasks.wait().await;
    flush(&client).await;
    ended
}

/// What becomes known of the connection. It is of use only once there is a consumer, too: that it is ready, others say.
fn note(is_connected: watch::Sender<bool>, health: Health) -> impl FnMut(Change) + Send {
    move |change| match change {
        Change::Connected => {
            let _ = is_connected.send(true);
        }
        Change::Lost => {
            health.unavailable("the connection was lost");
            let _ = is_connected.send(false);
        }
        Change::Failed(reason) => health.unavailable(reason),
        // It was not acknowledged, so it comes again.
        Change::Dropped => {}
    }
}

/// What all messages share.
struct Desk {
    client: Client,
    config: NatsConfig,
    intake: Intake,
    shutdown: CancellationToken,
    room: Room,
    tasks: TaskTracker,
}

/// One permit for each message that may be at hand, and one for each byte of them.
struct Room {
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// What messages at hand take of the room.
struct Taken {
    messages: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

impl Taken {
    /// What these messages take of it. More than it has is never taken: more than was asked for may come where a request
    /// was thought to be over, and a message may be larger than all the room.
    fn split(&mut self, messages: &[Message]) -> Self {
        let bytes = messages.iter().map(|message| message.length).sum::<usize>().min(self.bytes.num_permits());
        let messages = messages.len().min(self.messages.num_permits());
        let split = |permit: &mut OwnedSemaphorePermit, count| permit.split(count).expect("there are so many");
        Self { messages: split(&mut self.messages, messages), bytes: split(&mut self.bytes, bytes) }
    }
}

impl Desk {
    /// Finds the consumer and takes from it, again and again where it must, until the shutdown.
    async fn work(self: &Arc<Self>, mut connection: watch::Receiver<bool>, health: &Health) -> Result<(), SourceError> {
        loop {
            let found = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                found = async {
                    let connected = connection.wait_for(|is_connected| *is_connected).await.map(drop);
                    connected.map_err(|_| Missing::ForGood("the NATS client has given up".to_owned()))?;
                    find(&self.client, &self.config).await
                } => found,
            };
            let taken = match found {
                Ok(dead_letters) => {
                    health.ready();
                    let taken = self.take_all(&dead_letters, &mut connection).await;
                    taken.map_err(|error| format!("cannot take messages from the consumer: {error}"))
                }
                Err(Missing::ForGood(reason)) => return Err(SourceError(reason)),
                Err(Missing::Yet(reason)) => Err(reason),
            };
            if let Err(reason) = taken {
                health.unavailable(reason);
                let _ = timeout(RETRY_DELAY, self.shutdown.cancelled()).await;
            }
        }
    }

    /// Until the shutdown or a change of the connection.
    ///
    /// # Errors
    /// Why the consumer gives nothing any more.
    async fn take_all(
        self: &Arc<Self>,
        dead_letters: &Keeper,
        connection: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        let inbox = self.client.new_inbox();
        let messages = self.client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let mut messages = messages.ready_chunks(MAX_GROUP_MESSAGES);
        let address = Address { stream: &self.config.stream, consumer: &self.config.durable, inbox: &inbox };
        loop {
            let mut room = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                room = self.some_room() => room,
            };
            // Whatever comes has a place: nothing waits here while its time runs at the server.
            let (count, bytes) = (room.messages.num_permits(), room.bytes.num_permits());
            let bytes = bytes.max(self.client.max_payload() + SUBJECTS_BYTES);
            let mut asked = Some(Request::ask(&self.client, address, count, bytes, false).await?);
            while let Some(request) = asked {
                let ready = tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => return self.leave(messages).await,
                    _ = connection.changed() => return Ok(()),
                    ready = messages.next() => ready.ok_or("the NATS client has given up")?,
                    () = sleep_until(request.until) => break,
                };
                let (words, ready): (Vec<_>, Vec<_>) = ready.into_iter().partition(is_word);
                asked = request.less(ready.len());
                self.hand_on(ready, &mut room, dead_letters);
                for word in words {
                    is_over(&word)?;
                    asked = None;
                }
            }
        }
    }

    /// What is there already goes back at once.
    async fn leave(&self, mut messages: ReadyChunks<Subscriber>) -> Result<(), String> {
        while let Some(Some(ready)) = messages.next().now_or_never() {
            let _ = timeout(SEND_TIMEOUT, self.say(&ready, AckKind::Nak(None))).await;
        }
        Ok(())
    }

    /// Waits until half of the room is free, so that messages are not asked for one by one, and takes what is there.
    async fn some_room(&self) -> Taken {
        let half_of = async |room: &Arc<Semaphore>, size: u32| {
            let half = room.clone().acquire_many_owned(size.div_ceil(2)).await;
            let mut taken = half.expect("the semaphore is never closed");
            if let Ok(rest) = room.clone().try_acquire_many_owned(room.available_permits() as u32) {
                taken.merge(rest);
            }
            taken
        };
        let messages = half_of(&self.room.messages, self.config.max_in_flight).await;
        Taken { messages, bytes: half_of(&self.room.bytes, self.config.max_pending_bytes).await }
    }

    /// Messages that are there at once go on together.
    fn hand_on(self: &Arc<Self>, ready: Vec<Message>, room: &mut Taken, dead_letters: &Keeper) {
        let mut ready = ready.into_iter().peekable();
        while let Some(first) = ready.next() {
            let mut bytes = first.payload.len();
            let mut group = vec![first];
            while let Some(next) = ready.next_if(|next| bytes + next.payload.len() <= MAX_GROUP_BYTES) {
                bytes += next.payload.len();
                group.push(next);
            }
            let (desk, dead_letters, taken) = (self.clone(), dead_letters.clone(), room.split(&group));
            self.tasks.spawn(async move { desk.take(group, taken, &dead_letters).await });
        }
    }

    async fn take(self: &Arc<Self>, messages: Vec<Message>, mut room: Taken, dead_letters: &Keeper) {
        let body = |message: &Message| Body {
            payload: message.payload.clone(),
            framing: framing(message.headers.as_ref()),
            new_ids: new_ids(message),
        };
        let bodies = messages.iter().map(body).collect();
        let handled = self.at_work(&messages, self.intake.take(bodies, ())).await;
        let (mut stored, mut failed) = (Vec::new(), Vec::new());
        for (message, Ingested { answer, refused }) in messages.into_iter().zip(handled) {
            match answer.verdict() {
                Verdict::Accepted => stored.push(message),
                Verdict::RetryLater => failed.push(message),
                _ => {
                    let taken = room.split(slice::from_ref(&message));
                    let (desk, dead_letters) = (self.clone(), dead_letters.clone());
                    self.tasks.spawn(async move { desk.set_aside(message, refused, taken, &dead_letters).await });
                }
            }
        }
        self.tell(&stored, AckKind::Ack).await;
        drop(room.split(&stored));
        self.hand_back(&failed).await;
    }

    /// Something in the message is refused for good.
    async fn set_aside(&self, message: Message, refused: Vec<Rejection>, room: Taken, dead_letters: &Keeper) {
        let messages = slice::from_ref(&message);
        match self.at_work(messages, self.keep(&message, refused, dead_letters)).await {
            Ok(()) => {
                self.intake.ingestor.outlet.refusals().note([KEPT]);
                self.tell(messages, AckKind::Term).await;
            }
            Err(error) => {
                tracing::debug!(error, "a dead letter is not kept");
                self.intake.ingestor.outlet.refusals().note([NOT_KEPT]);
                self.hand_back(messages).await;
            }
        }
        drop(room);
    }

    /// Tells the server again and again, until it is done, that the messages are being worked on.
    async fn at_work<T>(&self, messages: &[Message], work: impl Future<Output = T>) -> T {
        let progress_interval = Duration::from_millis(self.config.ack_wait_ms.div_ceil(3));
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(progress_interval) => {
                    let _ = timeout(SEND_TIMEOUT, self.say(messages, AckKind::Progress)).await;
                }
            }
        }
    }

    /// The messages come again. They keep their room until then: while the store is away, not the whole stream is tried.
    async fn hand_back(&self, messages: &[Message]) {
        if !messages.is_empty() {
            self.tell(messages, AckKind::Nak(Some(NAK_DELAY))).await;
            let _ = timeout(NAK_DELAY, self.shutdown.cancelled()).await;
        }
    }

    /// Keeps what of the message was refused for good.
    async fn keep(&self, message: &Message, refused: Vec<Rejection>, dead_letters: &Keeper) -> Result<(), String> {
        let Place { consumer, number, published_ns } = place(message).ok_or("it has no place in the stream")?;
        let place = format!("{consumer}:{published_ns}:{number}");
        let from = Sifted {
            payload: message.payload.clone(),
            framing: framing(message.headers.as_ref()),
            max_body_bytes: self.intake.max_body_bytes,
            context: self.intake.ingestor.parse_context(self.intake.ingestor.outlet.origin().clone()),
            new_ids: new_ids(message),
            refused,
            max_payload: self.client.max_payload(),
        };
        let letters = spawn_blocking(move || from.letters()).await.expect("it does not panic, and is not cancelled");
        for (index, letter) in letters.into_iter().enumerate() {
            let refused_by = match letter.by {
                By::Gate => self.intake.ingestor.outlet.health().name(),
                By::Store => "transport",
            };
            let (reason, key) = (&letter.reason, format!("{place}:{index}"));
            dead_letters.keep(&Refused { refused_by, reason, payload: letter.payload, key }).await?;
        }
        Ok(())
    }

    /// Tells the server what became of the messages, and waits until it says that it has heard: of the last one, since it
    /// listens to one after the other. A word that it has not heard does no harm: the message comes again with the same
    /// ids for its events.
    async fn tell(&self, messages: &[Message], word: AckKind) {
        let Some((last, others)) = messages.split_last() else { return };
        let Some(reply) = last.reply.clone() else { return };
        let _ = timeout(SEND_TIMEOUT, self.say(others, word)).await;
        if let Err(error) = self.client.request(reply, word.into()).await {
            tracing::debug!(%error, "the NATS server did not hear what became of messages");
        }
    }

    /// Tells the server what becomes of the messages.
    async fn say(&self, messages: &[Message], word: AckKind) {
        let word = Bytes::from(word);
        for reply in messages.iter().filter_map(|message| message.reply.clone()) {
            // Where that is not possible, the message comes again.
            let _ = self.client.publish(reply, word.clone()).await;
        }
    }
}

/// Where dead letters are kept, once the consumer is as it must be; both are made where there are none.
async fn find(client: &Client, config: &NatsConfig) -> Result<Keeper, Missing> {
    let NatsConfig { stream, durable, subjects, .. } = config;
    let wanted = pull::Config {
        durable_name: Some(durable.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(config.ack_wait_ms),
        max_deliver: -1,
        max_ack_pending: consumer::MAX_ACK_PENDING.into(),
        filter_subject: subjects.first().cloned().unwrap_or_default(),
        ..pull::Config::default()
    };
    let way_out = "delete it, or name another one as `durable`";
    let context = jetstream::new(client.clone());
    consumer::find(&context, stream, durable, &wanted, way_out).await?;
    let yet = |error: GetStreamError| Missing::Yet(format!("stream `{stream}`: {error}"));
    let replicas = context.get_stream(stream).await.map_err(yet)?.cached_info().config.num_replicas;
    let dead_letters = Keeper::new(client.clone(), stream, replicas);
    dead_letters.find().await?;
    Ok(dead_letters)
}

fn place(message: &Message) -> Option<Place<'_>> {
    message.reply.as_ref().and_then(|reply| Place::of(reply))
}

/// From the message's own id, else from its place in the stream: the same whenever it is delivered.
fn new_ids(message: &Message) -> NewIds {
    let id = message_id(message.headers.as_ref()).or_else(|| place(message).map(id_in_stream));
    id.map_or(NewIds::Random, NewIds::From)
}

/// A UUIDv8 of the time when a message was published, in nanoseconds, and its number.
fn id_in_stream(place: Place<'_>) -> EventId {
    let id = Builder::from_u128(u128::from(place.published_ns) << 64 | u128::from(place.number));
    id.with_version(Version::Custom).with_variant(Variant::RFC4122).into_uuid()
}
