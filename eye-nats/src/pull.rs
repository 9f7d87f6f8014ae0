//! Pull requests to a consumer, and the server's status messages about them.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::{Client, Message, StatusCode};
use tokio::time::Instant;

/// Lifetime of a request at the server.
const EXPIRES: Duration = Duration::from_secs(5);

/// Time after which a request counts as expired although the server did not say so.
const GRACE: Duration = Duration::from_secs(2);

/// A request for messages, or what is left of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PullRequest {
    /// Messages that have not arrived yet.
    pub(crate) messages: usize,
    /// The server delivers what it has, and then ends the request instead of waiting for more.
    pub(crate) is_last: bool,
    /// End of the request, unless the server ends it before.
    pub(crate) expires_at: Instant,
}

impl PullRequest {
    pub(crate) fn new(messages: usize, is_last: bool) -> Self {
        Self { messages, is_last, expires_at: Instant::now() + EXPIRES + GRACE }
    }

    /// Asks the consumer to send up to `messages` messages with `max_bytes` bytes to `inbox`.
    ///
    /// # Errors
    /// The reason of the client library.
    pub(crate) async fn send(
        self,
        client: &Client,
        stream: &str,
        consumer: &str,
        inbox: &str,
        max_bytes: usize,
    ) -> Result<Self, String> {
        let request = BatchConfig {
            batch: self.messages,
            max_bytes,
            no_wait: self.is_last,
            expires: (!self.is_last).then_some(EXPIRES),
            ..BatchConfig::default()
        };
        let request = serde_json::to_vec(&request).expect("numbers can be written as JSON");
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let sent = client.publish_with_reply(subject, inbox.to_owned(), request.into()).await;
        sent.map(|()| self).map_err(|error| error.to_string())
    }

    /// Returns what is left of the request after the arrival of so many messages.
    pub(crate) fn less(self, messages: usize) -> Option<Self> {
        let messages = self.messages.saturating_sub(messages);
        (messages > 0).then_some(Self { messages, ..self })
    }
}

/// Returns true for a status message of the server. A publisher may give its message a status line, too, but a message of a
/// stream has a reply subject for its acknowledgement.
pub(crate) fn is_status(message: &Message) -> bool {
    message.status.is_some() && message.reply.is_none()
}

/// Reads the status message that ends a request: true when the consumer has no further messages for now.
///
/// # Errors
/// Any other status, such as that of a deleted consumer.
pub(crate) fn has_no_more(status: &Message) -> Result<bool, String> {
    let description = status.description.as_deref().unwrap_or_default();
    match status.status {
        Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(true),
        // The next message is larger than the rest of the request.
        _ if description.starts_with("Message Size Exceeds MaxBytes") => Ok(false),
        code => Err(format!("the server answers {} {description}", code.unwrap_or_default())),
    }
}
