//! One sink's view of the stream: messages are decoded ahead of the sink, so that it need not wait for them.
//!
//! [`Consumer`] bounds the messages in flight. [`DeliveryQueue`] holds those that the sink has not received yet; after a failure
//! it returns them all, for programs whose sink is available.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome};
use eye_core::dead_letter::{DeadLetterStore, NewDeadLetter};
use eye_core::event::Event;
use eye_core::transport::{BatchLimits, Delivery, Position, Subscription};
use eye_nats::connection::flush;
use eye_nats::consumer::{Consumer, ConsumerSettings, InFlightMessage};
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::record::{self, Parsed};

use super::monitor::{CustodyCounts, StreamMonitor};

/// Limits of the messages in flight.
const MAX_MESSAGES: usize = 1024;
const MAX_BYTES: usize = 16 << 20;

/// Pause after an error of the consumer.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Time for which an available sink gets further messages once the transport is closed. Other programs, or the next start, get
/// the rest.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// Longest wait for the last confirmations.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

const NOT_A_RECORD: &str = "not events of The Eye, or damaged";

pub(super) struct JetStreamSubscription {
    queue: Arc<DeliveryQueue>,
    pulling: AbortOnDropHandle<()>,
}

impl JetStreamSubscription {
    pub(super) fn new(monitor: Arc<StreamMonitor>, sink: String, counts: Arc<CustodyCounts>) -> Self {
        let queue = Arc::new(DeliveryQueue {
            monitor,
            sink,
            counts,
            messages: Mutex::default(),
            arrived: Notify::new(),
            ended: CancellationToken::new(),
        });
        let pulling = AbortOnDropHandle::new(tokio::spawn(queue.clone().pull()));
        Self { queue, pulling }
    }
}

#[async_trait]
impl Subscription for JetStreamSubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        let queue = &self.queue;
        let closing = &queue.monitor.closing;
        let mut due_at = None;
        while !queue.ended.is_cancelled() {
            let is_due = closing.is_cancelled() || due_at.is_some_and(|at| at <= Instant::now());
            let deliveries = queue.take(limits, is_due || limits.max_wait.is_zero());
            if !deliveries.is_empty() {
                return Some(deliveries);
            }
            if !queue.messages().is_empty() {
                due_at.get_or_insert_with(|| Instant::now() + limits.max_wait);
            }
            tokio::select! {
                () = queue.arrived.notified() => {}
                () = queue.ended.cancelled() => {}
                () = closing.cancelled(), if !closing.is_cancelled() => {}
                () = sleep_until(due_at.unwrap_or_else(Instant::now)), if due_at.is_some() => {}
            }
        }
        if !self.pulling.is_finished() {
            let _ = timeout(FINISH_TIMEOUT, &mut self.pulling).await;
        }
        flush(&queue.monitor.client()).await;
        None
    }
}

/// Decoded messages that the sink has not received, and what its acks need.
struct DeliveryQueue {
    monitor: Arc<StreamMonitor>,
    sink: String,
    counts: Arc<CustodyCounts>,
    messages: Mutex<VecDeque<DecodedMessage>>,
    arrived: Notify,
    /// Cancelled once the sink gets nothing more.
    ended: CancellationToken,
}

struct DecodedMessage {
    message: InFlightMessage,
    events: Vec<Event>,
}

impl DeliveryQueue {
    /// Fills the queue until the transport is closed and drained.
    async fn pull(self: Arc<Self>) {
        let monitor = &self.monitor;
        let settings = ConsumerSettings {
            stream: monitor.stream_name().to_owned(),
            durable: self.sink.clone(),
            ack_wait: monitor.ack_wait,
            max_messages: MAX_MESSAGES,
            max_bytes: MAX_BYTES,
            shutdown: monitor.closing.clone(),
            drain_after: monitor.published.clone(),
            drain_for: DRAIN_FOR,
        };
        let consumer = Consumer::new(monitor.client(), settings);
        let pulling = async {
            while !monitor.closing.is_cancelled() {
                monitor.available().await;
                let accept = |messages: Vec<InFlightMessage>| messages.into_iter().for_each(|it| self.accept(it));
                if let Err(reason) = consumer.pull(monitor.unavailable(), accept).await {
                    tracing::debug!(sink = self.sink, reason, "no messages");
                    sleep(RETRY_DELAY).await;
                }
            }
        };
        consumer.drive(pulling).await;
        self.ended.cancel();
        for decoded in self.take_all() {
            self.count_returned(decoded.events.len());
            decoded.message.release();
        }
        consumer.finish().await;
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<DecodedMessage>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_all(&self) -> VecDeque<DecodedMessage> {
        mem::take(&mut *self.messages())
    }

    fn accept(self: &Arc<Self>, message: InFlightMessage) {
        let Some(events) = decode(&message.payload) else {
            tokio::spawn(self.clone().refuse_unreadable(message));
            return;
        };
        self.counts.taken.fetch_add(events.len() as u64, Relaxed);
        self.counts.pending.fetch_add(events.len() as u64, Relaxed);
        self.messages().push_back(DecodedMessage { message, events });
        self.arrived.notify_one();
    }

    /// Takes as many messages as a batch may hold, and at least one, if there is one. Takes none while they do not fill the batch,
    /// unless the batch `is_due`.
    fn take(self: &Arc<Self>, limits: BatchLimits, is_due: bool) -> Vec<Delivery> {
        let mut messages = self.messages();
        let (mut count, mut events, mut bytes) = (0, 0, 0);
        for next in messages.iter() {
            events += next.events.len();
            bytes += next.events.iter().map(Event::size_bytes).sum::<usize>();
            if count > 0 && (events > limits.max_events || bytes > limits.max_bytes) {
                break;
            }
            count += 1;
        }
        if !is_due && events < limits.max_events && bytes < limits.max_bytes {
            return Vec::new();
        }
        messages.drain(..count).map(|decoded| self.delivery(decoded)).collect()
    }

    fn delivery(self: &Arc<Self>, DecodedMessage { message, events }: DecodedMessage) -> Delivery {
        let (queue, count, position) = (self.clone(), events.len(), position(&message));
        let ack = Ack::new(move |outcome| queue.settle(message, count, &outcome));
        Delivery { events, ack, position: Some(position) }
    }

    /// Called by the ack of a delivery. Does not block. Refused events are dead letters by then: the writer stores them.
    fn settle(&self, message: InFlightMessage, events: usize, outcome: &Outcome) {
        if let Outcome::Delivered | Outcome::Rejected(_) = outcome {
            self.counts.pending.fetch_sub(events as u64, Relaxed);
            message.ack();
            return;
        }
        self.count_returned(events);
        message.fail();
        for decoded in self.take_all() {
            self.count_returned(decoded.events.len());
            decoded.message.fail();
        }
    }

    fn count_returned(&self, events: usize) {
        self.counts.pending.fetch_sub(events as u64, Relaxed);
        self.counts.taken.fetch_sub(events as u64, Relaxed);
    }

    /// Stores a message that holds no events as a dead letter, and terminates it.
    async fn refuse_unreadable(self: Arc<Self>, message: InFlightMessage) {
        let letter = NewDeadLetter {
            key: format!("{}.{}", position(&message).key(0), self.sink),
            refused_by: "transport".to_owned(),
            reason: NOT_A_RECORD.to_owned(),
            payload: message.payload.to_vec(),
        };
        match self.monitor.dead_letters.put(&[letter]).await {
            Ok(()) => {
                tracing::error!(
                    component = "transport",
                    sink = self.sink,
                    sequence = message.position().map(|position| position.sequence),
                    stored = self.monitor.dead_letters.stream_name(),
                    "a message of the stream is {NOT_A_RECORD}"
                );
                message.term();
            }
            Err(error) => {
                tracing::error!(component = "transport", %error, "cannot store a message that cannot be read");
                message.defer();
            }
        }
    }
}

/// Returns the position of a message's first event. The time of publication tells a recreated stream's messages apart.
fn position(message: &InFlightMessage) -> Position {
    let position = message.position().map(|position| (position.published_ns, position.sequence));
    let (published_ns, sequence) = position.unwrap_or_default();
    Position { prefix: format!("{published_ns}:{sequence}:"), number: 0 }
}

/// Decodes the events of a message; `None` for a damaged or foreign one. A valid checksum does not tell the author: an event
/// whose data is not JSON could never be written as a dead letter.
fn decode(payload: &[u8]) -> Option<Vec<Event>> {
    let events = match record::parse(payload) {
        Parsed::Whole(record) if record.size_bytes() == payload.len() => record.events()?,
        _ => return None,
    };
    let is_json = |event: &Event| serde_json::from_str::<&RawValue>(event.data()).is_ok();
    events.iter().all(is_json).then_some(events)
}
