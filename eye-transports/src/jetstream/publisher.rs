//! Puts events into the stream: all that arrives while a message is on its way is the next one.
//!
//! One at a time: with several on their way each has fewer events, and at 256 clients that was slower by 7 % with two of
//! them, and by 25 % with four.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use eye_core::ack::{Ack, Outcome};
use eye_core::event::Event;
use eye_nats::stream::is_full;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use uuid::Uuid;

use super::group::{self, Group, Rest};
use super::session::Session;

/// How long an event may be here until the stream has it. Less than sources wait for a receipt.
const PUBLISH_FOR: Duration = Duration::from_secs(8);

/// The pause before a message is tried again that the server does not take, although it is there.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The events of one publish.
pub(super) struct Request {
    pub(super) events: Vec<Event>,
    pub(super) ack: Ack,
    pub(super) taken_at: Instant,
}

pub(super) struct Publisher {
    session: Arc<Session>,
    queue: mpsc::UnboundedReceiver<Request>,
    waiting: VecDeque<Rest>,
}

impl Publisher {
    pub(super) fn new(session: Arc<Session>, queue: mpsc::UnboundedReceiver<Request>) -> Self {
        Self { session, queue, waiting: VecDeque::new() }
    }

    /// Until the transport is closed, and all is published or has failed.
    pub(super) async fn run(mut self) {
        while self.wait().await {
            while let Ok(request) = self.queue.try_recv() {
                self.waiting.push_back(Rest::new(request));
            }
            let max_payload = self.session.client().max_payload();
            let Some(mut group) = group::next(&mut self.waiting, max_payload) else { continue };
            let give_up_at = group.taken_at + PUBLISH_FOR;
            let session = &self.session;
            let messages = self.messages(&mut group);
            let outcomes = join_all(messages.iter().map(|message| message.publish(session, give_up_at))).await;
            let nobody = || Outcome::failed("no sink has subscribed");
            let worst = outcomes.into_iter().max_by_key(|outcome| *outcome != Outcome::Delivered);
            group.settle(&worst.unwrap_or_else(nobody));
        }
        self.session.published.cancel();
    }

    /// The same for every sink.
    fn messages(&self, group: &mut Group) -> Vec<Message> {
        let (id, payload) = (Uuid::new_v4(), Bytes::from(std::mem::take(&mut group.record)));
        let message = |sink: &String| Message {
            id: format!("{id}:{sink}"),
            subject: self.session.subject(sink),
            payload: payload.clone(),
        };
        self.session.sinks().iter().map(message).collect()
    }

    /// Waits until something waits; false when nothing will any more.
    async fn wait(&mut self) -> bool {
        if self.waiting.is_empty() {
            let Some(request) = self.queue.recv().await else { return false };
            self.waiting.push_back(Rest::new(request));
        }
        true
    }
}

struct Message {
    /// The server takes it once, however often it is sent.
    id: String,
    subject: String,
    payload: Bytes,
}

/// Why the stream does not have a message, as far as is known.
enum Unsent {
    Full(String),
    Error(String),
}

impl From<PublishError> for Unsent {
    fn from(error: PublishError) -> Self {
        if is_full(&error) { Self::Full(error.to_string()) } else { Self::Error(error.to_string()) }
    }
}

impl Message {
    async fn send(&self, session: &Session) -> Result<PublishAck, Unsent> {
        if !session.has_room_for(self.payload.len()).await.map_err(Unsent::Error)? {
            return Err(Unsent::Full("a sixteenth of it stays free".to_owned()));
        }
        let message = PublishMessage::build().payload(self.payload.clone()).message_id(&self.id);
        let message = message.expected_stream(session.stream_name());
        let answer = session.context().send_publish(self.subject.clone(), message).await?;
        Ok(answer.await?)
    }

    /// Waits for the server's answer, and tries again until `give_up_at` where there is none.
    async fn publish(&self, session: &Session, give_up_at: Instant) -> Outcome {
        let mut reason = "what came before took too long".to_owned();
        while timeout_at(give_up_at, session.here()).await.is_ok() && Instant::now() < give_up_at {
            reason = tokio::select! {
                answered = self.send(session) => match answered {
                    Ok(_) => return Outcome::Delivered,
                    Err(Unsent::Full(error)) => {
                        let reason = session.full_reason(&error);
                        session.note_full(reason.clone());
                        return Outcome::failed(reason);
                    }
                    Err(Unsent::Error(error)) => error,
                },
                () = session.away() => "the connection was lost".to_owned(),
                () = sleep_until(give_up_at) => "no answer".to_owned(),
            };
            sleep(RETRY_DELAY).await;
        }
        tracing::debug!(reason, "a message was not published");
        Outcome::failed(format!("the stream `{}`: {reason}", session.stream_name()))
    }
}
