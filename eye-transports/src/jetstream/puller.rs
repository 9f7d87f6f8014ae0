//! Asks the server for messages, as many as there is room for, so that the sink need not wait for them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use eye_nats::pull::{Address, Request, is_over, is_word};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::subscription::Desk;

/// How long to wait before the consumer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// How long a sink that takes events is given more once the transport is closed. What is left, others get, or the next
/// start.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// How long the server may take to hand out what it had sent when we left.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(200);

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
    let address = Address { stream: desk.session.stream_name(), consumer: &desk.sink, inbox: &inbox };
    let mut asked: Option<Request> = None;
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
            asked = Some(Request::ask(&client, address, count, bytes, is_last).await?);
        }
        let wake_at = [asked.as_ref().map(|asked| asked.until), desk.paused_until(), drain_until];
        let wake_at = wake_at.into_iter().flatten().min();
        tokio::select! {
            message = messages.next() => {
                let message = message.ok_or("the NATS client has given up")?;
                if !is_word(&message) {
                    desk.accept(message);
                    asked = asked.and_then(|asked| asked.less(1));
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
