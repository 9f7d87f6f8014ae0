//! `mode = "jetstream"`: a durable pull consumer. A message is acknowledged once its events are stored.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::{self, AckPolicy, IntoConsumerConfig, PullConsumer, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{self, AckKind, Message};
use axum::http::StatusCode;
use eye_core::event::EventId;
use eye_core::health::Health;
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use uuid::{Builder, Variant, Version};

use crate::decode::NewIds;

use super::NatsConfig;
use super::connection::{self, Change, Server, flush};
use super::message::{Intake, message_id};

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

const TERMINATED: Refusal = Refusal { part: "message", problem: "refused for good, not to be delivered again" };

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
                Ok(consumer) => {
                    health.ready();
                    self.take_from(&consumer, &mut connection).await
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
                let desk = self.clone();
                self.tasks.spawn(async move { desk.take(message, place).await });
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

    async fn take(&self, message: Message, place: OwnedSemaphorePermit) {
        let id = message_id(&message).or_else(|| id_in_stream(&message));
        let progress_interval = Duration::from_millis(self.config.ack_wait_ms.div_ceil(3));
        let mut answer = pin!(self.intake.take(&message, id.map_or(NewIds::Minted, NewIds::From), ()));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                () = sleep(progress_interval) => {
                    let _ = timeout(SEND_TIMEOUT, message.ack_with(AckKind::Progress)).await;
                }
            }
        };
        match answer.status() {
            StatusCode::CREATED => self.tell(&message, AckKind::Ack).await,
            status if status.is_server_error() => {
                self.tell(&message, AckKind::Nak(Some(NAK_DELAY))).await;
                // It keeps its place: while the store is away, not the whole stream is tried.
                let _ = timeout(NAK_DELAY, self.shutdown.cancelled()).await;
            }
            _ => {
                self.intake.handover.outlet.refusals().note([TERMINATED]);
                self.tell(&message, AckKind::Term).await;
            }
        }
        drop(place);
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

/// Why there is no consumer to take from.
enum Missing {
    Yet(String),
    ForGood(String),
}

/// The consumer as it must be; it is made where there is none.
async fn find(client: &Client, config: &NatsConfig) -> Result<PullConsumer, Missing> {
    let NatsConfig { stream: stream_name, durable, subjects, .. } = config;
    let yet = |error: String| Missing::Yet(format!("stream `{stream_name}`, consumer `{durable}`: {error}"));
    let wanted = pull::Config {
        durable_name: Some(durable.clone()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(config.ack_wait_ms),
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING.into(),
        filter_subject: subjects.first().cloned().unwrap_or_default(),
        ..pull::Config::default()
    };
    let context = jetstream::new(client.clone());
    let stream = context.get_stream_no_info(stream_name).await.map_err(|error| yet(error.to_string()))?;
    let info = match stream.consumer_info(durable).await {
        Ok(info) => info,
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
            let created = stream.create_consumer(wanted.clone()).await.map_err(|error| yet(error.to_string()))?;
            created.cached_info().clone()
        }
        Err(error) if error.kind() == ConsumerInfoErrorKind::StreamNotFound => {
            return Err(yet("there is no such stream; create it".to_owned()));
        }
        Err(error) => return Err(yet(error.to_string())),
    };
    let differences = differences(&info.config, &wanted.clone().into_consumer_config());
    if differences.is_empty() {
        return Ok(PullConsumer::new(wanted, info, context));
    }
    Err(Missing::ForGood(format!(
        "the consumer `{durable}` of the stream `{stream_name}` has other settings: {}; delete it, or name another one as \
         `durable`",
        differences.join(", ")
    )))
}

/// The settings that say which messages come, and when, as `found` has them where they are not as `wanted`.
fn differences(found: &consumer::Config, wanted: &consumer::Config) -> Vec<String> {
    let settings = |config: &consumer::Config| {
        [
            ("deliver_subject", format!("{:?}", config.deliver_subject)),
            ("deliver_policy", format!("{:?}", config.deliver_policy)),
            ("ack_policy", format!("{:?}", config.ack_policy)),
            ("ack_wait", format!("{:?}", config.ack_wait)),
            ("max_deliver", config.max_deliver.to_string()),
            ("max_ack_pending", config.max_ack_pending.to_string()),
            ("filter_subject", format!("{:?}", config.filter_subject)),
            ("filter_subjects", format!("{:?}", config.filter_subjects)),
            ("headers_only", config.headers_only.to_string()),
            ("backoff", format!("{:?}", config.backoff)),
            ("max_batch", config.max_batch.to_string()),
            ("max_bytes", config.max_bytes.to_string()),
            ("max_expires", format!("{:?}", config.max_expires)),
        ]
    };
    let pairs = settings(found).into_iter().zip(settings(wanted));
    let different = pairs.filter(|(found, wanted)| found != wanted);
    different.map(|((name, found), (_, wanted))| format!("{name} is {found}, not {wanted}")).collect()
}

/// An id from the message's place in its stream, the same whenever it is delivered: a UUIDv8 of the time when it was
/// published, in nanoseconds, and its number.
fn id_in_stream(message: &Message) -> Option<EventId> {
    let info = message.info().ok()?;
    let published = info.published.unix_timestamp_nanos() as u64;
    let id = Builder::from_u128(u128::from(published) << 64 | u128::from(info.stream_sequence));
    Some(id.with_version(Version::Custom).with_variant(Variant::RFC4122).into_uuid())
}
