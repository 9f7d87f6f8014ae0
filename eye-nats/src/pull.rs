//! Requests for messages of a consumer.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::{Client, Message, StatusCode};
use tokio::time::Instant;

/// How long a request for messages stands.
const EXPIRES: Duration = Duration::from_secs(5);

/// How much longer the server may take to say that it does not.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of a message beside what `max_payload` counts: its subjects.
pub const SUBJECTS_BYTES: usize = 1024;

/// A consumer to ask, and where it is to send what it has.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// The stream's name.
    pub stream: &'a str,
    /// The consumer's name.
    pub consumer: &'a str,
    /// The subject that its messages come by.
    pub inbox: &'a str,
}

/// A request for messages.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// So many have not come yet.
    pub messages: usize,
    /// The server gives what is there, and says when there is no more.
    pub is_last: bool,
    /// When it is over, if the server does not say so before.
    pub until: Instant,
}

impl Request {
    /// Asks for so many messages, and bytes of them.
    ///
    /// # Errors
    /// What the client library says.
    pub async fn ask(
        client: &Client,
        address: Address<'_>,
        messages: usize,
        bytes: usize,
        is_last: bool,
    ) -> Result<Self, String> {
        let request = BatchConfig {
            batch: messages,
            max_bytes: bytes,
            no_wait: is_last,
            expires: (!is_last).then_some(EXPIRES),
            ..BatchConfig::default()
        };
        let request = serde_json::to_vec(&request).expect("numbers can be written as JSON");
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", address.stream, address.consumer);
        let asked = client.publish_with_reply(subject, address.inbox.to_owned(), request.into()).await;
        asked.map_err(|error| error.to_string())?;
        Ok(Self { messages, is_last, until: Instant::now() + EXPIRES + GRACE })
    }

    /// What is left of it when so many messages have come.
    pub fn less(self, messages: usize) -> Option<Self> {
        let messages = self.messages.saturating_sub(messages);
        (messages > 0).then_some(Self { messages, ..self })
    }
}

/// Whether it is the server that speaks, and not a publisher. A message of a stream may have a status line, too, if its
/// publisher gave it one; but it has a subject to be acknowledged at.
pub fn is_word(message: &Message) -> bool {
    message.status.is_some() && message.reply.is_none()
}

/// The server says that a request has ended: whether because there is nothing more to be given.
///
/// # Errors
/// What else it says.
pub fn is_over(message: &Message) -> Result<bool, String> {
    let description = message.description.as_deref().unwrap_or_default();
    match message.status {
        Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(true),
        // The next message is larger than what was left of the request.
        _ if description.starts_with("Message Size Exceeds MaxBytes") => Ok(false),
        status => Err(format!("the server says {} {description}", status.unwrap_or_default())),
    }
}
