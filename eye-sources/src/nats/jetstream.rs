//! `mode = "jetstream"`: a durable pull consumer. A message is acknowledged only when its events' receipt is settled.
//!
//! Messages that arrive together share a publish and a task. A message of which anything is refused is written as dead letters
//! first, and then terminated. [`Consumer`] bounds what is in flight, and returns failed messages with growing delays.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use eye_core::ack::Rejection;
use eye_core::dead_letter::{DeadLetterError, DeadLetterStore, NewDeadLetter};
use eye_core::event::EventId;
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{self, Connector, flush};
use eye_nats::consumer::{Consumer, ConsumerSettings, InFlightMessage};
use eye_nats::dead_letters::DeadLetterStream;
use eye_nats::durable;
use eye_nats::position::MessagePosition;
use eye_nats::settings::ProvisionError;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::{Builder, Variant, Version};

use crate::decode::NewIds;
use crate::ingestor::Ingested;
use crate::verdict::Verdict;

use super::NatsConfig;
use super::message::{MAX_GROUP_BYTES, MAX_GROUP_MESSAGES, MessageBody, MessageIngestor, framing, message_id};
use super::refused::{RefusedBy, RefusedMessage, RefusedPart};

/// Pause after an error of the consumer.
const RETRY_DELAY: Duration = Duration::from_secs(1);

const STORED: Refusal = Refusal { part: "message", problem: "refused, stored in the stream's `_dead_letters`" };
const NOT_STORED: Refusal =
    Refusal { part: "message", problem: "refused, but cannot be stored as a dead letter; delivered again" };

/// Takes messages until `shutdown`, then waits for the receipts of those in flight and acknowledges them.
///
/// # Errors
/// [`SourceError`] when the consumer or the stream of dead letters has other settings.
pub(super) async fn run(
    connector: Connector,
    config: NatsConfig,
    ingestor: MessageIngestor,
    shutdown: CancellationToken,
) -> Result<(), SourceError> {
    let name = connector.name();
    let (client, events) = connector.connect().await.map_err(|error| SourceError(error.to_string()))?;
    let health = ingestor.outlet().health().clone();
    let on_unavailable = move |reason| health.unavailable(reason);
    let (connection, _watching) = connection::watch_state(client.clone(), events, name, on_unavailable);
    let settings = ConsumerSettings {
        stream: config.stream.clone(),
        durable: config.durable.clone(),
        ack_wait: config.ack_wait(),
        max_messages: config.max_in_flight as usize,
        max_bytes: config.max_pending_bytes as usize,
        shutdown: shutdown.clone(),
        drain_after: shutdown.clone(),
        drain_for: Duration::ZERO,
    };
    let consumer = Consumer::new(client.clone(), settings);
    let dead_letters = config.dead_letter_stream().with_client(client.clone());
    let source = Arc::new(JetStreamIngestor { client, config, ingestor, dead_letters });
    let ended = consumer.drive(source.consume(&consumer, connection, &shutdown)).await;
    consumer.finish().await;
    flush(&source.client).await;
    ended.unwrap_or(Ok(()))
}

/// Shared by the tasks of all groups of messages.
struct JetStreamIngestor {
    client: Client,
    config: NatsConfig,
    ingestor: MessageIngestor,
    dead_letters: DeadLetterStream,
}

impl JetStreamIngestor {
    /// Provides the consumer on each connection, and takes messages until the shutdown.
    async fn consume(
        self: &Arc<Self>,
        consumer: &Consumer,
        mut connection: watch::Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> Result<(), SourceError> {
        let health = self.ingestor.outlet().health();
        while !shutdown.is_cancelled() {
            let connected = connection.wait_for(|is_connected| *is_connected).await.map(drop);
            connected.map_err(|_| SourceError("the NATS client has stopped".to_owned()))?;
            let pulled = match self.provide().await {
                Ok(()) => {
                    health.ready();
                    let lost = async { drop(connection.changed().await) };
                    let pulled = consumer.pull(lost, |messages| self.spawn_groups(messages)).await;
                    pulled.map_err(|error| format!("cannot take messages from the consumer: {error}"))
                }
                Err(ProvisionError::Permanent(reason)) => return Err(SourceError(reason)),
                Err(ProvisionError::Temporary(reason)) => Err(reason),
            };
            if let Err(reason) = pulled {
                health.unavailable(reason);
                let _ = timeout(RETRY_DELAY, shutdown.cancelled()).await;
            }
        }
        Ok(())
    }

    /// Creates the consumer and the stream of dead letters if they are missing, and checks their settings.
    async fn provide(&self) -> Result<(), ProvisionError> {
        let NatsConfig { stream, durable, subjects, .. } = &self.config;
        let required = pull::Config {
            durable_name: Some(durable.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.config.ack_wait(),
            max_deliver: -1,
            max_ack_pending: durable::MAX_ACK_PENDING.into(),
            filter_subject: subjects.first().cloned().unwrap_or_default(),
            ..pull::Config::default()
        };
        let way_out = "delete it, or name another one as `durable`";
        let context = jetstream::new(self.client.clone());
        durable::ensure(&context, stream, durable, &required, way_out).await?;
        self.dead_letters.ensure().await
    }

    /// Splits messages into groups of bounded size, each with its own task.
    fn spawn_groups(self: &Arc<Self>, messages: Vec<InFlightMessage>) {
        let mut messages = messages.into_iter().peekable();
        while let Some(first) = messages.next() {
            let mut bytes = first.payload.len();
            let mut group = vec![first];
            while let Some(next) = messages
                .next_if(|next| group.len() < MAX_GROUP_MESSAGES && bytes + next.payload.len() <= MAX_GROUP_BYTES)
            {
                bytes += next.payload.len();
                group.push(next);
            }
            tokio::spawn(self.clone().ingest(group));
        }
    }

    /// Publishes the events of the messages, and settles each message by its own answer.
    async fn ingest(self: Arc<Self>, messages: Vec<InFlightMessage>) {
        let body = |message: &InFlightMessage| MessageBody {
            payload: message.payload.clone(),
            framing: framing(message.headers.as_ref()),
            new_ids: new_ids(message),
        };
        let bodies = messages.iter().map(body).collect();
        let ingested = self.ingestor.ingest(bodies, ()).await;
        for (message, Ingested { answer, refused }) in messages.into_iter().zip(ingested) {
            match answer.verdict() {
                Verdict::Accepted => message.ack(),
                Verdict::RetryLater => message.fail(),
                _ => drop(tokio::spawn(self.clone().refuse(message, refused))),
            }
        }
    }

    /// Terminates a message once its dead letters are stored.
    async fn refuse(self: Arc<Self>, message: InFlightMessage, refused: Vec<Rejection>) {
        let refusals = self.ingestor.outlet().refusals();
        match self.write_dead_letters(&message, refused).await {
            Ok(()) => {
                refusals.note([STORED]);
                message.term();
            }
            Err(error) => {
                tracing::debug!(%error, "a dead letter is not stored");
                refusals.note([NOT_STORED]);
                message.defer();
            }
        }
    }

    async fn write_dead_letters(
        &self,
        message: &InFlightMessage,
        refused: Vec<Rejection>,
    ) -> Result<(), DeadLetterError> {
        let unknown = || DeadLetterError("the message has no position in the stream".to_owned());
        let MessagePosition { consumer, sequence, published_ns } = message.position().ok_or_else(unknown)?;
        let refused = RefusedMessage {
            payload: message.payload.clone(),
            framing: framing(message.headers.as_ref()),
            max_body_bytes: self.config.max_body_bytes,
            context: self.ingestor.parse_context(),
            new_ids: new_ids(message),
            refused_by_store: refused,
            max_payload: self.client.max_payload(),
        };
        let parts =
            spawn_blocking(move || refused.into_parts()).await.expect("it does not panic, and is not cancelled");
        let letter = |(index, part): (usize, RefusedPart)| {
            let refused_by = match part.refused_by {
                RefusedBy::Validation => self.ingestor.outlet().health().name(),
                RefusedBy::Store => "transport",
            };
            let key = format!("{consumer}:{published_ns}:{sequence}:{index}");
            NewDeadLetter { key, refused_by: refused_by.to_owned(), reason: part.reason, payload: part.payload }
        };
        let letters: Vec<_> = parts.into_iter().enumerate().map(letter).collect();
        self.dead_letters.put(&letters).await
    }
}

/// Takes ids from the message's own id, else from its position in the stream: the same at each delivery.
fn new_ids(message: &InFlightMessage) -> NewIds {
    let id = message_id(message.headers.as_ref()).or_else(|| message.position().map(id_in_stream));
    id.map_or(NewIds::Random, NewIds::From)
}

/// Makes a UUIDv8 of the time of publication in nanoseconds and the sequence number.
fn id_in_stream(position: MessagePosition<'_>) -> EventId {
    let id = Builder::from_u128(u128::from(position.published_ns) << 64 | u128::from(position.sequence));
    id.with_version(Version::Custom).with_variant(Variant::RFC4122).into_uuid()
}
