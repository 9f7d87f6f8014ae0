//! Puts events into the stream: all that arrives while messages are on their way is the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use eye_core::ack::{Ack, Outcome};
use eye_core::event::Event;
use eye_nats::stream::is_full;
use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::group::{self, Group, Rest};
use super::session::Session;

/// Messages on their way at once.
const IN_FLIGHT: usize = 4;

/// How long a message is tried. Less than sources wait for a receipt.
const PUBLISH_FOR: Duration = Duration::from_secs(8);

/// The pause before a message is tried again that the server does not take, although it is there.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The events of one publish.
pub(super) struct Request {
    pub(super) events: Vec<Event>,
    pub(super) ack: Ack,
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
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        let tasks = TaskTracker::new();
        while self.wait().await {
            let place = in_flight.clone().acquire_owned().await.expect("the semaphore is never closed");
            while let Ok(request) = self.queue.try_recv() {
                self.waiting.push_back(Rest::new(request));
            }
            let max_payload = self.session.client().max_payload();
            let Some(mut group) = group::next(&mut self.waiting, max_payload) else { continue };
            // Sent here, so that what came first is first in the stream.
            let mut sent = Vec::new();
            for message in self.messages(&mut group) {
                let first = message.send(&self.session).await;
                sent.push((message, first));
            }
            let session = self.session.clone();
            tasks.spawn(async move {
                let outcomes =
                    join_all(sent.into_iter().map(|(message, first)| message.publish(&session, first))).await;
                let failed = outcomes.into_iter().find(|outcome| *outcome != Outcome::Delivered);
                group.settle(&failed.unwrap_or(Outcome::Delivered));
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
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

type Sent = Result<PublishAckFuture, PublishError>;

struct Message {
    /// The server takes it once, however often it is sent.
    id: String,
    subject: String,
    payload: Bytes,
}

impl Message {
    async fn send(&self, session: &Session) -> Sent {
        let message = PublishMessage::build().payload(self.payload.clone()).message_id(&self.id);
        session.context().send_publish(self.subject.clone(), message.expected_stream(session.stream_name())).await
    }

    /// Waits for the server's answer, and tries again for some time where there is none.
    async fn publish(self, session: &Session, mut sent: Sent) -> Outcome {
        let give_up_at = Instant::now() + PUBLISH_FOR;
        loop {
            let answered = async { sent?.await };
            let reason = tokio::select! {
                answered = answered => match answered {
                    Ok(_) => return Outcome::Delivered,
                    Err(error) if is_full(&error) => {
                        let reason = session.full_reason(&error.to_string());
                        session.note_full(reason.clone());
                        return Outcome::failed(reason);
                    }
                    Err(error) => error.to_string(),
                },
                () = session.away() => "the connection was lost".to_owned(),
            };
            sleep(RETRY_DELAY).await;
            if timeout_at(give_up_at, session.here()).await.is_err() || Instant::now() >= give_up_at {
                tracing::debug!(reason, "a message was not published");
                return Outcome::failed(format!("the stream `{}`: {reason}", session.stream_name()));
            }
            sent = self.send(session).await;
        }
    }
}
