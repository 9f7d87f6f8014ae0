//! `mode = "jetstream"`: a durable pull consumer. A message is acknowledged once its events are stored.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::{self, AckKind, Message};
use axum::http::StatusCode;
use eye_core::ack::Rejection;
use eye_core::event::EventId;
use eye_core::health::Health;
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{self, Change, Server, flush};
use eye_nats::consumer;
use eye_nats::dead_letters::{Keeper, Refused};
use eye_nats::settings::Missing;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::{Builder, Variant, Version};

use crate::decode::NewIds;
use crate::handover::Handled;

use super::NatsConfig;
use super::dead_letters::{By, Sifted};
use super::message::{Intake, framing, message_id};

/// How many messages all programs on one consumer may have at hand. The same for all of them, whatever `max_in_flight`
/// each has: it is a setting of the consumer.
pub(super) const MAX_ACK_PENDING: u32 = 10_000;

/// How long a request for messages stands.
const PULL_EXPIRES: Duration = Duration::from_secs(5);

/// After how long a message is delivered again that could not be stored.
const NAK_DELAY: Duration = Duration::from_secs(5);

/// How long to wait before the consumer is looked for again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long a word to the server may wait to be sent; it has to when the connection is lost.
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
    let health = intake.handover.outlet.health().clone();
    let (is_connected, connection) = watch::channel(false);
    let watching = connection::watch(client.clone(), events, name, note(is_connected, health.clone()));
    let _watching = AbortOnDropHandle::new(tokio::spawn(watching));

    let room = Arc::new(Semaphore::new(config.max_in_flight as usize));
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
    /// One permit for each message that may be at hand.
    room: Arc<Semaphore>,
    tasks: TaskTracker,
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
                Ok((consumer, dead_letters)) => {
                    health.ready();
                    self.take_from(&consumer, &dead_letters, &mut connection).await
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
    async fn take_from(
        self: &Arc<Self>,
        consumer: &PullConsumer,
        dead_letters: &Keeper,
        connection: &mut watch::Receiver<bool>,
    ) -> Result<(), String> {
        let cannot = |error| format!("cannot take messages from the consumer: {error}");
        loop {
            let mut room = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                room = self.some_room() => room,
            };
            // Whatever comes has a place: nothing waits here while its time runs at the server.
            let pull = consumer.batch().max_messages(room.num_permits()).expires(PULL_EXPIRES);
            let mut messages = pull.messages().await.map_err(|error| cannot(error.to_string()))?;
            loop {
                let message = tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => {
                        while let Some(Some(Ok(message))) = messages.next().now_or_never() {
                            let _ = timeout(SEND_TIMEOUT, message.ack_with(AckKind::Nak(None))).await;
                        }
                        return Ok(());
                    }
                    _ = connection.changed() => return Ok(()),
                    message = messages.next() => message,
                };
                let Some(message) = message else { break };
                let message = message.map_err(|error| cannot(error.to_string()))?;
                let place = room.split(1).expect("no more come than were asked for");
                let (desk, dead_letters) = (self.clone(), dead_letters.clone());
                self.tasks.spawn(async move { desk.take(message, &dead_letters, place).await });
            }
        }
    }

    /// Waits until half of the room is free, so that messages are not asked for one by one, and takes what is there.
    async fn some_room(&self) -> OwnedSemaphorePermit {
        let half = self.config.max_in_flight.div_ceil(2);
        let mut room = self.room.clone().acquire_many_owned(half).await.expect("the semaphore is never closed");
        if let Ok(rest) = self.room.clone().try_acquire_many_owned(self.room.available_permits() as u32) {
            room.merge(rest);
        }
        room
    }

    async fn take(&self, message: Message, dead_letters: &Keeper, place: OwnedSemaphorePermit) {
        let id = message_id(&message).or_else(|| id_in_stream(&message));
        let new_ids = id.map_or(NewIds::Minted, NewIds::From);
        let Handled { answer, refused } = self.at_work(&message, self.intake.take(&message, new_ids, ())).await;
        match answer.status() {
            StatusCode::CREATED => self.tell(&message, AckKind::Ack).await,
            status if status.is_server_error() => self.hand_back(&message).await,
            _ => match self.at_work(&message, self.keep(&message, new_ids, refused, dead_letters)).await {
                Ok(()) => {
                    self.intake.handover.outlet.refusals().note([KEPT]);
                    self.tell(&message, AckKind::Term).await;
                }
                Err(error) => {
                    tracing::debug!(error, "a dead letter is not kept");
                    self.intake.handover.outlet.refusals().note([NOT_KEPT]);
                    self.hand_back(&message).await;
                }
            },
        }
        drop(place);
    }

    /// Tells the server again and again, until it is done, that the message is being worked on.
    async fn at_work<T>(&self, message: &Message, work: impl Future<Output = T>) -> T {
        let progress_interval = Duration::from_millis(self.config.ack_wait_ms.div_ceil(3));
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(progress_interval) => {
                    let _ = timeout(SEND_TIMEOUT, message.ack_with(AckKind::Progress)).await;
                }
            }
        }
    }

    /// The message comes again. It keeps its place until then: while the store is away, not the whole stream is tried.
    async fn hand_back(&self, message: &Message) {
        self.tell(message, AckKind::Nak(Some(NAK_DELAY))).await;
        let _ = timeout(NAK_DELAY, self.shutdown.cancelled()).await;
    }

    /// Keeps what of the message was refused for good.
    async fn keep(
        &self,
        message: &Message,
        new_ids: NewIds,
        refused: Vec<Rejection>,
        dead_letters: &Keeper,
    ) -> Result<(), String> {
        let info = message.info().map_err(|error| error.to_string())?;
        let place = format!("{}:{}:{}", info.consumer, info.published.unix_timestamp_nanos(), info.stream_sequence);
        let from = Sifted {
            payload: message.payload.clone(),
            framing: framing(message.headers.as_ref()),
            max_body_bytes: self.intake.max_body_bytes,
            limits: self.intake.handover.limits(),
            new_ids,
            refused,
            max_payload: self.client.max_payload(),
        };
        let letters = spawn_blocking(move || from.letters()).await.expect("it does not panic, and is not cancelled");
        for (index, letter) in letters.into_iter().enumerate() {
            let refused_by = match letter.by {
                By::Gate => self.intake.handover.outlet.health().name(),
                By::Store => "transport",
            };
            let (reason, key) = (&letter.reason, format!("{place}:{index}"));
            dead_letters.keep(&Refused { refused_by, reason, payload: letter.payload, key }).await?;
        }
        Ok(())
    }

    /// Waits until the server says that it has heard. A word that it has not heard does no harm: the message comes again
    /// with the same ids for its events.
    async fn tell(&self, message: &Message, word: AckKind) {
        let Some(reply) = message.reply.clone() else { return };
        if let Err(error) = self.client.request(reply, word.into()).await {
            tracing::debug!(%error, "the NATS server did not hear what became of a message");
        }
    }
}

/// The consumer as it must be, and where dead letters are kept; they are made where there are none.
async fn find(client: &Client, config: &NatsConfig) -> Result<(PullConsumer, Keeper), Missing> {
    let NatsConfig { stream, durable, subjects, .. } = config;
    let wanted = pull::Config {
        durable_name: Some(durable.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(config.ack_wait_ms),
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING.into(),
        filter_subject: subjects.first().cloned().unwrap_or_default(),
        ..pull::Config::default()
    };
    let way_out = "delete it, or name another one as `durable`";
    let context = jetstream::new(client.clone());
    let consumer = consumer::find(&context, stream, durable, &wanted, way_out).await?;
    let yet = |error: GetStreamError| Missing::Yet(format!("stream `{stream}`: {error}"));
    let replicas = context.get_stream(stream).await.map_err(yet)?.cached_info().config.num_replicas;
    let dead_letters = Keeper::new(client.clone(), stream, replicas);
    dead_letters.find().await?;
    Ok((consumer, dead_letters))
}

/// An id from the message's place in its stream, the same whenever it is delivered: a UUIDv8 of the time when it was
/// published, in nanoseconds, and its number.
fn id_in_stream(message: &Message) -> Option<EventId> {
    let info = message.info().ok()?;
    let published = info.published.unix_timestamp_nanos() as u64;
    let id = Builder::from_u128(u128::from(published) << 64 | u128::from(info.stream_sequence));
    Some(id.with_version(Version::Custom).with_variant(Variant::RFC4122).into_uuid())
}
