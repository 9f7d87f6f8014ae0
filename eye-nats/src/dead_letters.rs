//! Dead letters in a JetStream stream of their own beside the stream that they came from: one message for each.
//!
//! [`DeadLetterStream`] writes, lists, shows and deletes them. A letter is written durably before its event is acknowledged,
//! and written once: its key is the message id by which the server recognises a second copy. Its id is its sequence number.

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, Event, HeaderMap};
use async_trait::async_trait;
use eye_core::dead_letter::{DeadLetter, DeadLetterError, DeadLetterStore, NewDeadLetter};
use eye_core::timestamp::Timestamp;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::capacity::StreamCapacity;
use crate::connection::{ConnectionSettings, Connector};
use crate::settings::ProvisionError;
use crate::stream;

const REFUSED_BY: &str = "Eye-Refused-By";
const REASON: &str = "Eye-Reason";

/// Stored bytes of a reason at most. A database error may quote a lot.
const MAX_REASON_BYTES: usize = 2048;

/// Size limit of a stream that is created here.
const MAX_BYTES: i64 = 1 << 30;

/// Time for which the server recognises a letter that is written again because its ack was lost.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Settings that an operator may change in the stream.
const FREE_SETTINGS: [&str; 4] = ["num_replicas", "max_bytes", "max_msgs", "duplicate_window"];

/// Limits of one page.
const PAGE_LETTERS: usize = 64;
const PAGE_BYTES: usize = 4 << 20;

/// Longest wait for a connection that is made on first use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The dead letters of one stream.
#[derive(Debug)]
pub struct DeadLetterStream {
    settings: ConnectionSettings,
    /// Connected on first use, unless a running client was given.
    context: OnceCell<Context>,
    /// The stream that the letters come from.
    parent: String,
    subject: String,
    config: Config,
    capacity: StreamCapacity,
}

impl DeadLetterStream {
    /// Returns the dead letters of `stream`. Connects on first use.
    pub fn new(settings: ConnectionSettings, stream: &str) -> Self {
        let subject = format!("eye.{stream}.dead_letters");
        let name = format!("{stream}_dead_letters");
        let config = Config {
            max_bytes: MAX_BYTES,
            duplicate_window: DUPLICATE_WINDOW,
            ..stream::config(&name, subject.clone(), RetentionPolicy::Limits)
        };
        let parent = stream.to_owned();
        Self { settings, context: OnceCell::new(), parent, subject, config, capacity: StreamCapacity::default() }
    }

    /// Uses the connection of a running client.
    pub fn with_client(self, client: Client) -> Self {
        Self { context: OnceCell::new_with(Some(jetstream::new(client))), ..self }
    }

    /// Returns the name of the stream that stores the letters.
    pub fn stream_name(&self) -> &str {
        &self.config.name
    }

    /// Creates the stream if it is missing, with as many replicas as the stream that the letters come from, and checks its
    /// settings.
    ///
    /// # Errors
    /// See [`stream::ensure`].
    pub async fn ensure(&self) -> Result<(), ProvisionError> {
        let context = self.context().await.map_err(|error| ProvisionError::Temporary(error.to_string()))?;
        let parent = context.get_stream(&self.parent).await.map_err(stream::temporary(&self.parent))?;
        let num_replicas = parent.cached_info().config.num_replicas;
        let config = Config { num_replicas, ..self.config.clone() };
        let way_out = "change it with `nats stream edit`, or delete it";
        let info = stream::ensure(context, &config, &FREE_SETTINGS, way_out).await?;
        self.capacity.observe(&info);
        Ok(())
    }

    /// Stores one letter. Recreates the stream if it was deleted.
    async fn put_one(&self, letter: &NewDeadLetter) -> Result<(), DeadLetterError> {
        let refused = |error: String| {
            DeadLetterError(format!("the stream `{}` does not take a dead letter: {error}", self.stream_name()))
        };
        let context = self.context().await?;
        let message = message(letter, context.client().max_payload());
        match self.capacity.reserve(context, self.stream_name(), letter.payload.len()).await {
            Ok(true) => match self.publish(context, message.clone()).await {
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {}
                stored => return stored.map_err(|error| refused(error.to_string())),
            },
            Ok(false) => return Err(refused("it is full, but for the sixteenth that stays free".to_owned())),
            Err(error) if stream::is_not_found(&error) => {}
            Err(error) => return Err(refused(error.to_string())),
        }
        let ensured = self.ensure().await;
        ensured.map_err(|(ProvisionError::Temporary(error) | ProvisionError::Permanent(error))| refused(error))?;
        self.publish(context, message).await.map_err(|error| refused(error.to_string()))
    }

    async fn publish(
        &self,
        context: &Context,
        message: PublishMessage,
    ) -> Result<(), jetstream::context::PublishError> {
        context.send_publish(self.subject.clone(), message).await?.await.map(drop)
    }

    async fn context(&self) -> Result<&Context, DeadLetterError> {
        let connect = async || connect(&self.settings).await.map(jetstream::new).map_err(DeadLetterError);
        self.context.get_or_try_init(connect).await
    }

    async fn stream(&self) -> Result<Stream<()>, DeadLetterError> {
        let stream = self.context().await?.get_stream_no_info(self.stream_name()).await;
        stream.map_err(|error| self.error(&error))
    }

    /// Returns the message with this sequence number, or the first one after it where `or_next`.
    async fn message(&self, sequence: u64, or_next: bool) -> Result<Option<StreamMessage>, DeadLetterError> {
        let stream = self.stream().await?;
        let request = stream.raw_message_builder().sequence(sequence);
        let request = if or_next { request.next_by_subject(">") } else { request };
        match request.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                // Nothing was ever refused.
                LastRawMessageErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Ok(None)
                }
                _ => Err(self.error(&error)),
            },
        }
    }

    fn error(&self, error: &dyn std::error::Error) -> DeadLetterError {
        DeadLetterError(format!("stream `{}`: {error}", self.stream_name()))
    }
}

/// Makes the message of a letter. A payload as large as `max_payload` leaves no space for headers: the reason is left out.
fn message(letter: &NewDeadLetter, max_payload: usize) -> PublishMessage {
    let reason = one_line(&letter.reason);
    let known = [("Nats-Msg-Id", letter.key.as_str()), (REFUSED_BY, &letter.refused_by), (REASON, &reason)];
    let mut headers = HeaderMap::new();
    // The version line, and the separators around names and values.
    let mut headers_bytes = 16;
    for (name, value) in known {
        headers.insert(name, value);
        headers_bytes += name.len() + value.len() + 4;
    }
    let message = PublishMessage::build().payload(letter.payload.clone().into());
    if letter.payload.len() + headers_bytes <= max_payload {
        return message.headers(headers);
    }
    tracing::warn!(
        refused_by = letter.refused_by,
        bytes = letter.payload.len(),
        "a dead letter reaches the server's `max_payload`: stored without its reason"
    );
    message
}

/// Replaces characters that a header cannot hold, and cuts the text to [`MAX_REASON_BYTES`].
fn one_line(reason: &str) -> String {
    let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(MAX_REASON_BYTES));
    line.trim().to_owned()
}

/// Connects within [`CONNECT_TIMEOUT`].
async fn connect(settings: &ConnectionSettings) -> Result<Client, String> {
    let connector = Connector::new(settings).await.map_err(|error| error.to_string())?;
    let name = connector.name();
    let (client, mut events) = connector.connect().await.map_err(|error| error.to_string())?;
    let mut reason = "no answer".to_owned();
    let connected = async {
        while let Some(event) = events.recv().await {
            match event {
                Event::Connected => return true,
                Event::ClientError(error) => reason = error.to_string(),
                _ => {}
            }
        }
        false
    };
    match timeout(CONNECT_TIMEOUT, connected).await {
        Ok(true) => Ok(client),
        _ => Err(format!("no connection to {name}: {reason}")),
    }
}

#[async_trait]
impl DeadLetterStore for DeadLetterStream {
    async fn put(&self, letters: &[NewDeadLetter]) -> Result<(), DeadLetterError> {
        for letter in letters {
            self.put_one(letter).await?;
        }
        Ok(())
    }

    async fn page(&self, after: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let after = after.map_or(Ok(0), |id| {
            id.parse::<u64>().map_err(|_| DeadLetterError(format!("{id:?} is no dead letter's id: they are numbers")))
        })?;
        let mut letters = Vec::new();
        let (mut next, mut bytes) = (after.saturating_add(1), 0);
        while letters.len() < PAGE_LETTERS && bytes < PAGE_BYTES {
            let Some(message) = self.message(next, true).await? else { break };
            next = message.sequence + 1;
            bytes += message.payload.len();
            letters.push(letter(message));
        }
        Ok(letters)
    }

    async fn get(&self, id: &str) -> Result<Option<DeadLetter>, DeadLetterError> {
        // No other text is an id. The server takes sequence 0 as "any message".
        let Some(sequence) = id.parse().ok().filter(|sequence| *sequence > 0) else { return Ok(None) };
        Ok(self.message(sequence, false).await?.map(letter))
    }

    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError> {
        let Some(letter) = self.get(id).await? else { return Ok(false) };
        let sequence = letter.id.parse().expect("`letter` wrote a number");
        self.stream().await?.delete_message(sequence).await.map_err(|error| self.error(&error))
    }
}

fn letter(message: StreamMessage) -> DeadLetter {
    let header = |name, missing: &str| message.headers.get(name).map_or(missing, |value| value.as_str()).to_owned();
    let micros = i64::try_from(message.time.unix_timestamp_nanos() / 1000).ok();
    DeadLetter {
        id: message.sequence.to_string(),
        refused_by: header(REFUSED_BY, "unknown"),
        reason: header(REASON, "not stored: the payload reaches the server's `max_payload`"),
        time: micros.and_then(Timestamp::from_micros).unwrap_or(Timestamp::MIN),
        payload: message.payload.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
