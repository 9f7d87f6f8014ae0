//! Asks the server for messages, as many as there is room for, so that the sink need not wait for them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::{Message, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::subscription::Desk;

/// How long a request for messages stands.
const EXPIRES: Duration = Duration::from_secs(5);

/// How much longer the server may take to say that it does not.
const GRACE: Duration = Duration::from_secs(2);

/// How long to wait before the consumer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// How long a sink that takes events is given more once the transport is closed. What is left, others get, or the next
/// start.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// How long the server may take to hand out what it had sent when we left.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(200);

/// A request for messages.
struct Asked {
    /// So many have not come yet.
    messages: usize,
    /// The server gives what is there, and says when there is no more.
    is_last: bool,
    until: Instant,
}

impl Asked {
    /// One has come.
    fn less_one(self) -> Option<Self> {
        let messages = self.messages - 1;
        (messages > 0).then_some(Self { messages, ..self })
    }
}

/// Until the transport is closed and drained.
pub(super) async fn run(desk: Arc<Desk>) {
    let pulling = async {
        loop {
            desk.session.here().await;
            match pull(&desk).await {
                Ok(Ended::Drained) => break,
                Ok(Ended::ConnectionLost) => {}
                Err(reason) => {
                    tracing::debug!(sink = desk.sink, reason, "no messages");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    };
    let closed = async {
        desk.session.closing().cancelled().await;
        sleep(DRAIN_FOR + 3 * LEAVE_TIMEOUT).await;
    };
    tokio::select! {
        () = pulling => {}
        () = closed => {}
    }
    desk.end();
}

enum Ended {
    Drained,
    ConnectionLost,
}

/// Takes messages until the connection is lost or the transport is drained.
///
/// # Errors
/// Why the consumer gives nothing.
async fn pull(desk: &Arc<Desk>) -> Result<Ended, String> {
    let client = desk.session.client();
    let (closing, published) = (desk.session.closing(), &desk.session.published);
    let inbox = client.new_inbox();
    let mut messages = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
    let mut asked: Option<Asked> = None;
    let (mut drain_until, mut is_drained) = (None, false);
    let mut progress = interval(desk.session.ack_wait() / 3);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if closing.is_cancelled() {
            let until = *drain_until.get_or_insert_with(|| Instant::now() + DRAIN_FOR);
            let is_sink_away = desk.paused_until().is_some();
            if Instant::now() >= until || is_sink_away || (is_drained && desk.is_empty()) {
                break;
            }
        }
        let is_last = published.is_cancelled();
        if asked.as_ref().is_none_or(|asked| is_last && !asked.is_last)
            && !is_drained
            && let Some((count, bytes)) = desk.room()
        {
            ask(desk, inbox.clone(), count, bytes, is_last).await?;
            asked = Some(Asked { messages: count, is_last, until: Instant::now() + EXPIRES + GRACE });
        }
        let wake_at = [asked.as_ref().map(|asked| asked.until), desk.paused_until(), drain_until];
        let wake_at = wake_at.into_iter().flatten().min();
        tokio::select! {
            message = messages.next() => {
                let message = message.ok_or("the NATS client has given up")?;
                if message.status.is_none() {
                    desk.accept(message);
                    asked = asked.and_then(Asked::less_one);
                } else if is_over(&message)? {
                    is_drained = asked.is_some_and(|asked| asked.is_last);
                    asked = None;
                } else {
                    asked = None;
                }
            }
            () = desk.freed.notified() => {}
            () = desk.session.away() => return Ok(Ended::ConnectionLost),
            () = closing.cancelled(), if !closing.is_cancelled() => {}
            () = published.cancelled(), if !is_last => {}
            _ = progress.tick() => desk.progress().await,
            () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                asked = asked.filter(|asked| Instant::now() < asked.until);
            }
        }
    }
    leave(desk, messages).await;
    Ok(Ended::Drained)
}

async fn ask(desk: &Desk, inbox: String, count: usize, bytes: usize, is_last: bool) -> Result<(), String> {
    let request = BatchConfig {
        batch: count,
        max_bytes: bytes,
        no_wait: is_last,
        expires: (!is_last).then_some(EXPIRES),
        ..BatchConfig::default()
    };
    let request = serde_json::to_vec(&request).expect("numbers can be written as JSON");
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", desk.session.stream_name(), desk.sink);
    let asked = desk.session.client().publish_with_reply(subject, inbox, request.into()).await;
    asked.map_err(|error| error.to_string())
}

/// The server says that a request has ended: whether because there is nothing more to be given.
///
/// # Errors
/// What else it says.
fn is_over(message: &Message) -> Result<bool, String> {
    let description = message.description.as_deref().unwrap_or_default();
    match message.status {
        Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(true),
        // The next message is larger than what was left of the request.
        _ if description.starts_with("Message Size Exceeds MaxBytes") => Ok(false),
        status => Err(format!("the server says {status:?} {description}")),
    }
}

/// What was on its way when we left goes back at once.
async fn leave(desk: &Arc<Desk>, mut messages: Subscriber) {
    desk.end();
    if timeout(LEAVE_TIMEOUT, messages.drain()).await.is_err() {
        return;
    }
    let rest = async {
        while let Some(message) = messages.next().await {
            desk.refuse(message).await;
        }
    };
    let _ = timeout(LEAVE_TIMEOUT, rest).await;
    while let Some(Some(message)) = messages.next().now_or_never() {
        desk.refuse(message).await;
    }
}
