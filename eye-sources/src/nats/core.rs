//! `mode = "core"`: at most once, with replies.

use std::collections::VecDeque;
use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::{Bytes, BytesMut};
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{Change, Server, flush, watch};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::decode::{Framing, NewIds};
use crate::ingestor::Ingested;
use crate::verdict::{Answer, Verdict};

use super::NatsConfig;
use super::message::{Body, Intake, MAX_GROUP_BYTES, MAX_GROUP_MESSAGES, framing, message_id, readable};
use super::unread::Unread;

/// What a message takes in memory beside itself, about.
const OVERHEAD_BYTES: usize = 1024;

/// Groups that are on their way at once. Beyond, messages wait, and the groups grow.
const MAX_GROUPS: usize = 256;

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
    let unread = Unread::new(&client, config.subjects.len());
    let office = Arc::new(Office { client: client.clone(), intake, unread });
    let watched = office.clone();
    let watching = watch(client.clone(), events, name, move |change| watched.note(change));
    let _watching = AbortOnDropHandle::new(tokio::spawn(watching));

    let mut desk = Desk {
        office,
        room: Arc::new(Semaphore::new(config.max_pending_bytes as usize)),
        waiting: VecDeque::new(),
        ways: Arc::new(Semaphore::new(MAX_GROUPS)),
        tasks: TaskTracker::new(),
    };
    let mut shutdown = pin!(shutdown.cancelled());
    loop {
        // What is there at once goes on together.
        let may_read = desk.waiting.len() < 2 || desk.ways.available_permits() == 0;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(message) = messages.next(), if may_read => desk.accept(message).await,
            way = desk.way(), if !desk.waiting.is_empty() => desk.hand_on(way),
        }
    }
    desk.drain(&mut messages).await;
    desk.office.note_lost(DROPPED_UNREAD, desk.office.unread.at_end());
    desk.finish().await;
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

/// Where messages come in.
struct Desk {
    office: Arc<Office>,
    /// One permit for each byte of `max_pending_bytes`.
    room: Arc<Semaphore>,
    /// All but the last are full.
    waiting: VecDeque<Group>,
    /// One permit for each group that may be on its way.
    ways: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// Messages that go on together.
struct Group {
    /// Their payloads, one behind the other: a copy, since the client library's buffer holds many messages more, and
    /// would live as long as the last of them. One for all: the allocator takes its time.
    text: BytesMut,
    parts: Vec<Part>,
    room: OwnedSemaphorePermit,
}

/// One message.
struct Part {
    bytes: usize,
    framing: Framing,
    new_ids: NewIds,
    /// Where the answer is expected, if anywhere.
    reply: Option<Subject>,
}

impl Desk {
    /// Does not wait for room: the client library reads on whatever we do, and drops what it has no place for without a
    /// word to requesters.
    async fn accept(&mut self, message: Message) {
        self.office.unread.note_read();
        let (bytes, framing) = (message.payload.len(), framing(message.headers.as_ref()));
        // Refused before there is room for it: there might never be.
        let framing = match readable(framing, bytes, self.office.intake.max_body_bytes) {
            Ok(framing) => framing,
            Err(answer) => return self.office.refuse(message.reply, answer).await,
        };
        let needed = u32::try_from(bytes + OVERHEAD_BYTES).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(needed);
        match (room, message.reply) {
            (Ok(room), reply) => {
                let new_ids = message_id(message.headers.as_ref()).map_or(NewIds::Random, NewIds::From);
                self.add(&message.payload, Part { bytes, framing, new_ids, reply }, room);
            }
            (Err(_), Some(reply)) => self.office.answer(reply, Answer::retry(RETRY_AFTER, NO_ROOM)).await,
            (Err(_), None) => self.office.note_lost(NO_ROOM_LEFT, 1),
        }
    }

    fn add(&mut self, payload: &[u8], part: Part, room: OwnedSemaphorePermit) {
        let last = self
            .waiting
            .back_mut()
            .filter(|last| last.parts.len() < MAX_GROUP_MESSAGES && last.text.len() + payload.len() <= MAX_GROUP_BYTES);
        match last {
            Some(last) => {
                last.text.extend_from_slice(payload);
                last.parts.push(part);
                last.room.merge(room);
            }
            None => self.waiting.push_back(Group { text: payload.into(), parts: vec![part], room }),
        }
    }

    /// Waits until one more group may be on its way.
    fn way(&self) -> impl Future<Output = OwnedSemaphorePermit> + use<> {
        self.ways.clone().acquire_owned().map(|way| way.expect("the semaphore is never closed"))
    }

    /// The group that has waited longest goes on.
    fn hand_on(&mut self, way: OwnedSemaphorePermit) {
        let Some(group) = self.waiting.pop_front() else { return };
        let office = self.office.clone();
        self.tasks.spawn(async move {
            office.take(group).await;
            drop(way);
        });
    }

    /// Leaves, and takes what the server has sent before it heard of that.
    async fn drain(&mut self, messages: &mut SelectAll<Subscriber>) {
        for subscriber in messages.iter_mut() {
            let _ = timeout(DRAIN_TIMEOUT, subscriber.drain()).await;
        }
        if self.office.client.connection_state() != State::Connected {
            // The client would wait for a server. What it has got already is there at once.
            while let Some(Some(message)) = messages.next().now_or_never() {
                self.accept(message).await;
            }
            return;
        }
        let all = async {
            while let Some(message) = messages.next().await {
                self.accept(message).await;
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, all).await;
    }

    /// Hands on what waits, and waits for its receipts.
    async fn finish(&mut self) {
        while !self.waiting.is_empty() {
            let way = self.way().await;
            self.hand_on(way);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Returns the code in the header `Nats-Service-Error-Code` of a reply: the one that a POST is answered with.
fn error_code(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Accepted | Verdict::Partial => None,
        Verdict::Invalid => Some("400"),
        Verdict::TooSlow => Some("408"),
        Verdict::TooLarge => Some("413"),
        Verdict::Unsupported => Some("415"),
        Verdict::Refused => Some("422"),
        Verdict::RetryLater => Some("503"),
    }
}

/// Where messages are worked on.
struct Office {
    client: Client,
    intake: Intake,
    unread: Unread,
}

impl Office {
    /// Whoever asked is told. A message that nobody asked about is lost when it could be sent again.
    async fn take(&self, group: Group) {
        let Group { text, parts, room } = group;
        let mut text = text.freeze();
        let body = |part: &Part| Body {
            payload: text.split_to(part.bytes),
            framing: Some(part.framing),
            new_ids: part.new_ids,
        };
        let bodies = parts.iter().map(body).collect();
        let handled = self.intake.take(bodies, room).await;
        let mut lost = 0;
        for (Part { reply, .. }, Ingested { answer, .. }) in parts.into_iter().zip(handled) {
            match reply {
                Some(reply) => self.answer(reply, answer).await,
                None if answer.verdict() == Verdict::RetryLater => lost += 1,
                None => {}
            }
        }
        self.note_lost(NOT_STORED, lost);
    }

    /// Nothing is taken of the message.
    async fn refuse(&self, reply: Option<Subject>, answer: Answer) {
        self.intake.note_refused(&answer);
        if let Some(reply) = reply {
            self.answer(reply, answer).await;
        }
    }

    async fn answer(&self, reply: Subject, answer: Answer) {
        let verdict = answer.verdict();
        let sent = timeout(REPLY_TIMEOUT, self.reply(reply.clone(), verdict, answer.into_body())).await;
        if sent.is_ok_and(|sent| sent.is_err_and(|error| error.kind() == PublishErrorKind::MaxPayloadExceeded)) {
            let detail = "Some events were refused; a message cannot hold the list. Send fewer at once.";
            let answer = Answer::failure(verdict, detail);
            let _ = timeout(REPLY_TIMEOUT, self.reply(reply, verdict, answer.into_body())).await;
        }
    }

    async fn reply(&self, reply: Subject, verdict: Verdict, body: Bytes) -> Result<(), PublishError> {
        let Some(code) = error_code(verdict) else { return self.client.publish(reply, body).await };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", code);
        self.client.publish_with_headers(reply, headers, body).await
    }

    fn note(&self, change: Change) {
        let health = self.intake.ingestor.outlet.health();
        match change {
            Change::Connected => {
                self.unread.note_read();
                health.ready();
            }
            Change::Failed(reason) => health.unavailable(reason),
            Change::Lost => {
                health.unavailable("the connection was lost");
                self.note_lost(CONNECTION_LOST, 1);
            }
            Change::Dropped => self.note_lost(DROPPED_UNREAD, self.unread.dropped()),
        }
    }

    fn note_lost(&self, what: Refusal, count: usize) {
        self.intake.ingestor.outlet.refusals().note(iter::repeat_n(what, count));
    }
}
