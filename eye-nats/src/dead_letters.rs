//! Dead letters in a stream beside the one that they came from: a message each, named by its number.

use std::sync::Arc;
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

use crate::connection::{Login, Server};
use crate::room::Room;
use crate::settings::Missing;
use crate::stream;

const REFUSED_BY: &str = "Eye-Refused-By";
const REASON: &str = "Eye-Reason";

/// Bytes of a reason that are kept. A database may quote a lot.
const MAX_REASON_BYTES: usize = 2048;

/// Bytes of the stream, where it is made here.
const MAX_BYTES: i64 = 1 << 30;

/// How long the server remembers what it has: a dead letter whose ack was lost is kept once.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// What an operator may change in the stream without harm.
const FREE: [&str; 4] = ["num_replicas", "max_bytes", "max_msgs", "duplicate_window"];

/// A page ends after so many, or so many bytes.
const PAGE_LETTERS: usize = 64;
const PAGE_BYTES: usize = 4 << 20;

/// How long the command line waits for a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream where the dead letters of `stream` are kept.
pub fn stream_name(stream: &str) -> String {
    format!("{stream}_dead_letters")
}

fn subject(stream: &str) -> String {
    format!("eye.{stream}.dead_letters")
}

/// Keeps dead letters, while the program runs.
#[derive(Clone, Debug)]
pub struct Keeper {
    context: Context,
    subject: String,
    config: Config,
    room: Arc<Room>,
}

/// What is to be kept.
#[derive(Debug)]
pub struct Refused<'a> {
    /// The key of the component that refused it, such as `sinks.store`.
    pub refused_by: &'a str,
    /// Why, in that component's words.
    pub reason: &'a str,
    /// What was refused, as `POST /api/event/` takes it.
    pub payload: Vec<u8>,
    /// The same whenever this is kept again, because nobody heard that it was kept; never that of something else.
    pub key: String,
}

impl Keeper {
    /// Keeps the dead letters of `stream`.
    pub fn new(client: Client, stream: &str, replicas: usize) -> Self {
        let config = Config {
            num_replicas: replicas,
            max_bytes: MAX_BYTES,
            duplicate_window: DUPLICATE_WINDOW,
            ..stream::config(&stream_name(stream), subject(stream), RetentionPolicy::Limits)
        };
        Self { context: jetstream::new(client), subject: subject(stream), config, room: Arc::default() }
    }

    /// The name of the stream where they are kept.
    pub fn stream(&self) -> &str {
        &self.config.name
    }

    /// Makes sure that the stream is there, and as it must be.
    ///
    /// # Errors
    /// See [`stream::find`].
    pub async fn find(&self) -> Result<(), Missing> {
        let way_out = "change it with `nats stream edit`, or delete it";
        let info = stream::find(&self.context, &self.config, &FREE, way_out).await?;
        self.room.see(&info);
        Ok(())
    }

    /// Keeps it durably. The stream is made again where somebody has deleted it.
    ///
    /// # Errors
    /// Why it is not kept, as far as is known.
    pub async fn keep(&self, refused: &Refused<'_>) -> Result<(), String> {
        let cannot = |error: String| format!("the stream `{}` does not take a dead letter: {error}", self.stream());
        let message = self.message(refused);
        match self.room.takes(&self.context, self.stream(), refused.payload.len()).await {
            Ok(true) => match self.publish(message.clone()).await {
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {}
                kept => return kept.map_err(|error| cannot(error.to_string())),
            },
            Ok(false) => return Err(cannot("it is full, but for the sixteenth that stays free".to_owned())),
            Err(error) if stream::is_missing(&error) => {}
            Err(error) => return Err(cannot(error.to_string())),
        }
        self.find().await.map_err(|(Missing::Yet(error) | Missing::ForGood(error))| cannot(error))?;
        self.publish(message).await.map_err(|error| cannot(error.to_string()))
    }

    async fn publish(&self, message: PublishMessage) -> Result<(), jetstream::context::PublishError> {
        self.context.send_publish(self.subject.clone(), message).await?.await.map(drop)
    }

    /// With all that is known of it, unless there is no room for that: what came as a message of its own may be as large
    /// as the server lets through.
    fn message(&self, refused: &Refused<'_>) -> PublishMessage {
        let reason = one_line(refused.reason);
        let known = [("Nats-Msg-Id", refused.key.as_str()), (REFUSED_BY, refused.refused_by), (REASON, &reason)];
        let mut headers = HeaderMap::new();
        // The first line, and what stands between and behind the lines' names and values.
        let mut headers_bytes = 16;
        for (name, value) in known {
            headers.insert(name, value);
            headers_bytes += name.len() + value.len() + 4;
        }
        let message = PublishMessage::build().payload(refused.payload.clone().into());
        if refused.payload.len() + headers_bytes <= self.context.client().max_payload() {
            return message.headers(headers);
        }
        tracing::warn!(
            refused_by = refused.refused_by,
            bytes = refused.payload.len(),
            "a dead letter is as large as the server lets through: kept without the reason"
        );
        message
    }
}

/// Without what a header cannot hold, and not too long.
fn one_line(reason: &str) -> String {
    let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(MAX_REASON_BYTES));
    line.trim().to_owned()
}

/// The dead letters of a stream, for the command line.
#[derive(Debug)]
pub struct StreamDeadLetters {
    login: Login,
    name: String,
    stream: OnceCell<Stream<()>>,
}

impl StreamDeadLetters {
    /// Those of `stream`. Connects when they are asked for.
    pub fn new(login: Login, stream: &str) -> Self {
        Self { login, name: stream_name(stream), stream: OnceCell::new() }
    }

    async fn stream(&self) -> Result<&Stream<()>, DeadLetterError> {
        self.stream
            .get_or_try_init(async || {
                let client = connect(&self.login).await.map_err(DeadLetterError)?;
                let stream = jetstream::new(client).get_stream_no_info(&self.name).await;
                stream.map_err(|error| self.error(&error))
            })
            .await
    }

    /// The message of this number, or the first one behind it where `or_next`.
    async fn message(&self, number: u64, or_next: bool) -> Result<Option<StreamMessage>, DeadLetterError> {
        let request = self.stream().await?.raw_message_builder().sequence(number);
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
        DeadLetterError(format!("stream `{}`: {error}", self.name))
    }
}

/// A connection, or why there is none.
async fn connect(login: &Login) -> Result<Client, String> {
    let server = Server::new(login).await.map_err(|error| error.to_string())?;
    let name = server.name();
    let (client, mut events) = server.connect().await.map_err(|error| error.to_string())?;
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
impl DeadLetterStore for StreamDeadLetters {
    async fn put(&self, _letters: &[NewDeadLetter]) -> Result<(), DeadLetterError> {
        Err(DeadLetterError("the stream's subscription writes its dead letters itself".to_owned()))
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
        // There is none with an id that is no number. 0 would be any.
        let Some(number) = id.parse().ok().filter(|number| *number > 0) else { return Ok(None) };
        Ok(self.message(number, false).await?.map(letter))
    }

    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError> {
        let Some(letter) = self.get(id).await? else { return Ok(false) };
        let number = letter.id.parse().expect("we wrote it");
        self.stream().await?.delete_message(number).await.map_err(|error| self.error(&error))
    }
}

fn letter(message: StreamMessage) -> DeadLetter {
    let header = |name, missing: &str| message.headers.get(name).map_or(missing, |value| value.as_str()).to_owned();
    let micros = i64::try_from(message.time.unix_timestamp_nanos() / 1000).ok();
    DeadLetter {
        id: message.sequence.to_string(),
        refused_by: header(REFUSED_BY, "unknown"),
        reason: header(REASON, "not kept: the message is as large as the server lets through"),
        time: micros.and_then(Timestamp::from_micros).unwrap_or(Timestamp::MIN),
        payload: message.payload.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
