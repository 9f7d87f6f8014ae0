//! `mode = "core"`: at most once, with replies.
//!
//! The client library reads the socket whatever the source does, and drops messages that do not fit its queue. The source
//! therefore never stops reading: [`GroupQueue`] drops what exceeds the byte limit, counts it, and tells requesters. Messages that
//! arrive together are one [`MessageGroup`].

use std::collections::VecDeque;
use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::{Bytes, BytesMut};
use eye_core::budget::{ByteBudget, Reservation};
use eye_core::refusals::Refusal;
use eye_core::source::SourceError;
use eye_nats::connection::{ConnectionEvent, Connector, flush, watch};
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
use super::drops::DropCounter;
use super::message::{
    MAX_GROUP_BYTES, MAX_GROUP_MESSAGES, MessageBody, MessageIngestor, check_readable, framing, message_id,
};

/// Estimated memory of a message beside its payload.
const OVERHEAD_BYTES: usize = 1024;

/// Groups in flight at most. Beyond, messages wait, and the groups grow.
const MAX_GROUPS: usize = 256;

/// Longest wait for messages that the server had sent before it processed the unsubscription.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for space in the client library's queue; it is full while the connection is lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Delay after which a requester may retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const OVER_BUDGET: &str = "No capacity: other messages fill `max_pending_bytes`. Try again.";

const CONNECTION_LOST: Refusal =
    Refusal { part: "connection", problem: "lost; messages published meanwhile do not arrive" };
const DROPPED_UNREAD: Refusal =
    Refusal { part: "message", problem: "lost, messages arrived faster than they were read" };
const DROPPED_OVER_BUDGET: Refusal = Refusal { part: "message", problem: "lost, `max_pending_bytes` was reached" };
const NOT_STORED: Refusal = Refusal { part: "message", problem: "lost, the store was unavailable or full" };

/// Takes messages until `shutdown`, then publishes those that have arrived and waits for their receipts.
///
/// # Errors
/// [`SourceError`] when the client library refuses the server's address or a subject.
pub(super) async fn run(
    connector: Connector,
    config: NatsConfig,
    ingestor: MessageIngestor,
    shutdown: CancellationToken,
) -> Result<(), SourceError> {
    let name = connector.name();
    let (client, events) = connector.connect().await.map_err(|error| SourceError(error.to_string()))?;
    let mut messages = subscribe(&client, &config).await?;
    let drops = DropCounter::new(&client, config.subjects.len());
    let responder = Arc::new(Responder { client: client.clone(), ingestor, drops });
    let watched = responder.clone();
    let watching = watch(client.clone(), events, name, move |event| watched.on_connection_event(event));
    let _watching = AbortOnDropHandle::new(tokio::spawn(watching));

    let mut queue = GroupQueue {
        responder,
        budget: ByteBudget::new(config.max_pending_bytes),
        waiting: VecDeque::new(),
        slots: Arc::new(Semaphore::new(MAX_GROUPS)),
        tasks: TaskTracker::new(),
    };
    let mut shutdown = pin!(shutdown.cancelled());
    loop {
        // Messages that arrive together form a group.
        let may_read = queue.waiting.len() < 2 || queue.slots.available_permits() == 0;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(message) = messages.next(), if may_read => queue.accept(message).await,
            slot = queue.slot(), if !queue.waiting.is_empty() => queue.spawn_next(slot),
        }
    }
    queue.drain(&mut messages).await;
    queue.responder.note_lost(DROPPED_UNREAD, queue.responder.drops.at_end());
    queue.finish().await;
    flush(&client).await;
    Ok(())
}

async fn subscribe(client: &Client, config: &NatsConfig) -> Result<SelectAll<Subscriber>, SourceError> {
    let mut subscribers = Vec::new();
    for subject in &config.subjects {
        // The client repeats the subscription on each connection.
        let subscriber = match config.queue_group.as_str() {
            "" => client.subscribe(subject.clone()).await,
            group => client.queue_subscribe(subject.clone(), group.to_owned()).await,
        };
        subscribers.push(subscriber.map_err(|error| SourceError(format!("cannot subscribe to {subject}: {error}")))?);
    }
    Ok(select_all(subscribers))
}

/// Collects messages into groups within the byte limit.
struct GroupQueue {
    responder: Arc<Responder>,
    /// Of `max_pending_bytes`.
    budget: ByteBudget,
    /// All but the last are full.
    waiting: VecDeque<MessageGroup>,
    /// One permit for each group that may be in flight.
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// Messages that share a publish, a receipt and a task.
struct MessageGroup {
    /// Their payloads in one buffer. A copy: the client library's buffer holds many more messages, and lives as long as the last of
    /// them. One buffer for all saves allocations.
    text: BytesMut,
    members: Vec<GroupMember>,
    reservation: Reservation,
}

/// One message of a group, without its payload.
struct GroupMember {
    bytes: usize,
    framing: Framing,
    new_ids: NewIds,
    /// Subject of the answer, if the publisher expects one.
    reply: Option<Subject>,
}

impl GroupQueue {
    /// Does not wait for the budget: the client library would drop messages meanwhile, and tell no requester.
    async fn accept(&mut self, message: Message) {
        self.responder.drops.note_read();
        let (bytes, framing) = (message.payload.len(), framing(message.headers.as_ref()));
        // Before the budget: a message may be larger than all of it.
        let framing = match check_readable(framing, bytes, self.responder.ingestor.max_body_bytes) {
            Ok(framing) => framing,
            Err(answer) => return self.responder.refuse(message.reply, answer).await,
        };
        match (self.budget.try_reserve(bytes + OVERHEAD_BYTES), message.reply) {
            (Some(reservation), reply) => {
                let new_ids = message_id(message.headers.as_ref()).map_or(NewIds::Random, NewIds::From);
                self.add(&message.payload, GroupMember { bytes, framing, new_ids, reply }, reservation);
            }
            (None, Some(reply)) => self.responder.answer(reply, Answer::retry(RETRY_AFTER, OVER_BUDGET)).await,
            (None, None) => self.responder.note_lost(DROPPED_OVER_BUDGET, 1),
        }
    }

    fn add(&mut self, payload: &[u8], member: GroupMember, reservation: Reservation) {
        let last = self.waiting.back_mut().filter(|last| {
            last.members.len() < MAX_GROUP_MESSAGES && last.text.len() + payload.len() <= MAX_GROUP_BYTES
        });
        match last {
            Some(last) => {
                last.text.extend_from_slice(payload);
                last.members.push(member);
                last.reservation.merge(reservation);
            }
            None => self.waiting.push_back(MessageGroup { text: payload.into(), members: vec![member], reservation }),
        }
    }

    /// Waits until one more group may be in flight.
    fn slot(&self) -> impl Future<Output = OwnedSemaphorePermit> + use<> {
        self.slots.clone().acquire_owned().map(|slot| slot.expect("the semaphore is never closed"))
    }

    /// Starts the task of the group that has waited longest.
    fn spawn_next(&mut self, slot: OwnedSemaphorePermit) {
        let Some(group) = self.waiting.pop_front() else { return };
        let responder = self.responder.clone();
        self.tasks.spawn(async move {
            responder.ingest(group).await;
            drop(slot);
        });
    }

    /// Unsubscribes, and takes what the server had sent before.
    async fn drain(&mut self, messages: &mut SelectAll<Subscriber>) {
        for subscriber in messages.iter_mut() {
            let _ = timeout(DRAIN_TIMEOUT, subscriber.drain()).await;
        }
        if self.responder.client.connection_state() != State::Connected {
            // The client would wait for a connection. Messages that it has received are ready at once.
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

    /// Publishes what waits, and waits for the receipts.
    async fn finish(&mut self) {
        while !self.waiting.is_empty() {
            let slot = self.slot().await;
            self.spawn_next(slot);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Returns the header `Nats-Service-Error-Code` of a reply: the status of the answer to a POST.
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

/// Publishes groups and answers their requesters.
struct Responder {
    client: Client,
    ingestor: MessageIngestor,
    drops: DropCounter,
}

impl Responder {
    /// Publishes a group and answers each requester. A failed message without a reply subject is lost.
    async fn ingest(&self, group: MessageGroup) {
        let MessageGroup { text, members, reservation } = group;
        let mut text = text.freeze();
        let body = |member: &GroupMember| MessageBody {
            payload: text.split_to(member.bytes),
            framing: Some(member.framing),
            new_ids: member.new_ids,
        };
        let bodies = members.iter().map(body).collect();
        let ingested = self.ingestor.ingest(bodies, reservation).await;
        let mut lost = 0;
        for (GroupMember { reply, .. }, Ingested { answer, .. }) in members.into_iter().zip(ingested) {
            match reply {
                Some(reply) => self.answer(reply, answer).await,
                None if answer.verdict() == Verdict::RetryLater => lost += 1,
                None => {}
            }
        }
        self.note_lost(NOT_STORED, lost);
    }

    /// Answers a message of which nothing is taken.
    async fn refuse(&self, reply: Option<Subject>, answer: Answer) {
        self.ingestor.note_refused(&answer);
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

    fn on_connection_event(&self, event: ConnectionEvent) {
        let health = self.ingestor.outlet().health();
        match event {
            ConnectionEvent::Connected => {
                self.drops.note_read();
                health.ready();
            }
            ConnectionEvent::Failed(reason) => health.unavailable(reason),
            ConnectionEvent::Lost => {
                health.unavailable("the connection was lost");
                self.note_lost(CONNECTION_LOST, 1);
            }
            ConnectionEvent::MessageDropped => self.note_lost(DROPPED_UNREAD, self.drops.dropped()),
        }
    }

    fn note_lost(&self, reason: Refusal, count: usize) {
        self.ingestor.outlet().refusals().note(iter::repeat_n(reason, count));
    }
}
