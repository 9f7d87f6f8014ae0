//! `mode = "core"`: at most once, with replies.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use axum::http::StatusCode;
use bytes::Bytes;
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{Change, Server, flush, watch};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::answer::Answer;
use crate::decode::NewIds;

use super::NatsConfig;
use super::message::{Intake, message_id};

/// What a message takes in memory beside itself, about.
const OVERHEAD_BYTES: usize = 1024;

/// How long the server may take to hand out what it had sent when we left.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may wait to be sent; it has to when the connection is lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// When a requester may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const NO_ROOM: &str = "No room: other messages fill `max_pending_bytes`. Try again.";

const CONNECTION_LOST: Refusal =
    Refusal { part: "connection", problem: "lost; what is published until it is back does not arrive" };
const DROPPED_UNREAD: Refusal = Refusal { part: "message", problem: "lost, it came faster than messages can be read" };
const NO_ROOM_LEFT: Refusal = Refusal { part: "message", problem: "lost, there was no room in `max_pending_bytes`" };
const NOT_STORED: Refusal = Refusal { part: "message", problem: "lost, the store was away or full" };

/// Takes messages until `shutdown`, then hands on those that have arrived and waits for their receipts.
///
/// # Errors
/// When the client library refuses the server's address or a subject.
pub(super) async fn run(
    server: Server,
    config: NatsConfig,
    intake: Intake,
    shutdown: CancellationToken,
) -> Result<(), SourceError> {
    let name = server.name();
    let (client, events) = server.connect().await.map_err(|error| SourceError(error.to_string()))?;
    let mut messages = subscribe(&client, &config).await?;
    let desk = Arc::new(Desk {
        client: client.clone(),
        intake,
        room: Arc::new(Semaphore::new(config.max_pending_bytes as usize)),
    });
    let watched = desk.clone();
    let watching = watch(client.clone(), events, name, move |change| watched.note(change));
    let _watching = AbortOnDropHandle::new(tokio::spawn(watching));

    let tasks = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(message) = messages.next() => desk.accept(message, &tasks).await,
        }
    }
    desk.drain(&mut messages, &tasks).await;
    tasks.close();
    tasks.wait().await;
    flush(&client).await;
    Ok(())
}

async fn subscribe(client: &Client, config: &NatsConfig) -> Result<SelectAll<Subscriber>, SourceError> {
    let mut subscribers = Vec::new();
    for subject in &config.subjects {
        // Only told to the client, which tells each server that it finds.
        let subscriber = match config.queue_group.as_str() {
            "" => client.subscribe(subject.clone()).await,
            group => client.queue_subscribe(subject.clone(), group.to_owned()).await,
        };
        subscribers.push(subscriber.map_err(|error| SourceError(format!("cannot subscribe to {subject}: {error}")))?);
    }
    Ok(select_all(subscribers))
}

/// What all messages share.
struct Desk {
    client: Client,
    intake: Intake,
    /// One permit for each byte of `max_pending_bytes`.
    room: Arc<Semaphore>,
}

impl Desk {
    /// Does not wait for room: the client library reads on whatever we do, and drops what it has no place for without a
    /// word to requesters.
    async fn accept(self: &Arc<Self>, message: Message, tasks: &TaskTracker) {
        let bytes = u32::try_from(message.length + OVERHEAD_BYTES).unwrap_or(u32::MAX);
        match self.room.clone().try_acquire_many_owned(bytes) {
            Ok(room) => {
                let desk = self.clone();
                tasks.spawn(async move { desk.take(message, room).await });
            }
            Err(_) => self.answer(message.reply, Answer::retry(RETRY_AFTER, NO_ROOM), NO_ROOM_LEFT).await,
        }
    }

    /// Leaves, and takes what the server has sent before it heard of that.
    async fn drain(self: &Arc<Self>, messages: &mut SelectAll<Subscriber>, tasks: &TaskTracker) {
        for subscriber in messages.iter_mut() {
            let _ = timeout(DRAIN_TIMEOUT, subscriber.drain()).await;
        }
        if self.client.connection_state() != State::Connected {
            // The client would wait for a server. What it has got already is there at once.
            while let Some(Some(message)) = messages.next().now_or_never() {
                self.accept(message, tasks).await;
            }
            return;
        }
        let all = async {
            while let Some(message) = messages.next().await {
                self.accept(message, tasks).await;
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, all).await;
    }

    async fn take(&self, message: Message, room: OwnedSemaphorePermit) {
        let new_ids = message_id(&message).map_or(NewIds::Minted, NewIds::From);
        let answer = self.intake.take(&message, new_ids, room).await.answer;
        self.answer(message.reply, answer, NOT_STORED).await;
    }

    /// Whoever asked is told. A message that nobody asked about is `lost` when it could be sent again.
    async fn answer(&self, reply: Option<Subject>, answer: Answer, lost: Refusal) {
        let status = answer.status();
        let Some(reply) = reply else {
            if status.is_server_error() {
                self.note_lost(lost);
            }
            return;
        };
        let sent = timeout(REPLY_TIMEOUT, self.reply(reply.clone(), status, answer.into_body())).await;
        if sent.is_ok_and(|sent| sent.is_err_and(|error| error.kind() == PublishErrorKind::MaxPayloadExceeded)) {
            let detail = "Some events were refused; a message cannot hold the list. Send fewer at once.";
            let answer = Answer::failure(status, detail);
            let _ = timeout(REPLY_TIMEOUT, self.reply(reply, status, answer.into_body())).await;
        }
    }

    async fn reply(&self, reply: Subject, status: StatusCode, body: Bytes) -> Result<(), PublishError> {
        if status.is_success() {
            return self.client.publish(reply, body).await;
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", status.as_str());
        self.client.publish_with_headers(reply, headers, body).await
    }

    fn note(&self, change: Change) {
        let health = self.intake.handover.outlet.health();
        match change {
            Change::Connected => health.ready(),
            Change::Failed(reason) => health.unavailable(reason),
            Change::Lost => {
                health.unavailable("the connection was lost");
                self.note_lost(CONNECTION_LOST);
            }
            Change::Dropped => self.note_lost(DROPPED_UNREAD),
        }
    }

    fn note_lost(&self, what: Refusal) {
        self.intake.handover.outlet.refusals().note([what]);
    }
}
