//! One sink's view of the stream: messages that this program has at hand, until the sink has their events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::AckKind;
use async_trait::async_trait;
use bytes::Bytes;
use eye_core::ack::{Ack, Outcome, Rejection};
use eye_core::event::Event;
use eye_core::transport::BatchLimits;
use eye_core::transport::{Delivery, Subscription};
use eye_nats::connection::flush;
use eye_nats::dead_letters::Refused;
use eye_nats::place::Place;
use eye_nats::pull::SUBJECTS_BYTES;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::record::{self, Parsed};

use super::puller;
use super::session::{Counts, Session};

/// Messages at hand at once, and bytes of them.
const MAX_MESSAGES: usize = 1024;
const MAX_BYTES: usize = 16 << 20;

/// After a failure so much less is asked for, so that a sink that is away does not see the whole stream pass by. Still
/// several messages: a sink that cannot say what is wrong with one event gets neighbours to compare it with.
const PROBE_SHARE: usize = 8;

/// The pauses before messages come again that the sink did not take: they double.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// How long the end waits until the server has heard what became of the last messages.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

const NOT_A_RECORD: &str = "not events of The Eye, or damaged";

pub(super) struct JetStreamSubscription {
    desk: Arc<Desk>,
    _puller: AbortOnDropHandle<()>,
}

impl JetStreamSubscription {
    pub(super) fn new(session: Arc<Session>, sink: String, counts: Arc<Counts>) -> Self {
        let desk = Arc::new(Desk {
            session,
            sink,
            counts,
            hand: Mutex::default(),
            arrived: Notify::new(),
            freed: Notify::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        });
        let puller = AbortOnDropHandle::new(tokio::spawn(puller::run(desk.clone())));
        Self { desk, _puller: puller }
    }
}

#[async_trait]
impl Subscription for JetStreamSubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        let desk = &self.desk;
        loop {
            let arrived = desk.arrived.notified();
            let deliveries = desk.take(limits);
            if !deliveries.is_empty() {
                return Some(deliveries);
            }
            if desk.hand().ended {
                break;
            }
            arrived.await;
        }
        desk.tasks.close();
        let _ = timeout(LAST_WORDS_TIMEOUT, desk.tasks.wait()).await;
        flush(&desk.session.client()).await;
        None
    }
}

/// What the puller, the writer and the acks share.
pub(super) struct Desk {
    pub(super) session: Arc<Session>,
    pub(super) sink: String,
    counts: Arc<Counts>,
    hand: Mutex<Hand>,
    /// Something is ahead, or it has ended.
    arrived: Notify,
    /// There is room, or a pause has begun.
    pub(super) freed: Notify,
    /// What is said to the server.
    tasks: TaskTracker,
    /// Acks may be settled anywhere.
    runtime: Handle,
}

/// The messages at hand.
#[derive(Default)]
struct Hand {
    /// Not given to the sink yet.
    ahead: VecDeque<Message>,
    /// All of them: where to say what becomes of each, and its bytes.
    held: BTreeMap<u64, (Subject, usize)>,
    bytes: usize,
    next: u64,
    /// The sink did not take something: until when nothing is asked for, and how long that is.
    paused_until: Option<Instant>,
    pause: Duration,
    ended: bool,
}

struct Message {
    held: Held,
    events: Vec<Event>,
}

/// A message at hand, without its events.
struct Held {
    number: u64,
    reply: Subject,
    payload: Bytes,
    events: u64,
}

impl Desk {
    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages may be asked for, and bytes of them, where that is worth it.
    pub(super) fn room(&self) -> Option<(usize, usize)> {
        let largest = self.session.client().max_payload() + SUBJECTS_BYTES;
        let hand = self.hand();
        if hand.paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let share = if hand.pause > Duration::ZERO { PROBE_SHARE } else { 1 };
        let (max_messages, max_bytes) = (MAX_MESSAGES / share, (MAX_BYTES / share).max(2 * largest));
        let messages = max_messages.saturating_sub(hand.held.len());
        let bytes = max_bytes.saturating_sub(hand.bytes);
        (messages >= max_messages / 2 && bytes >= max_bytes / 2).then_some((messages, bytes))
    }

    /// When a pause ends, if there is one.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.hand().paused_until.filter(|until| Instant::now() < *until)
    }

    /// Whether nothing waits to be given to the sink.
    pub(super) fn is_empty(&self) -> bool {
        self.hand().ahead.is_empty()
    }

    /// A message has come.
    pub(super) fn accept(self: &Arc<Self>, message: async_nats::Message) {
        let Some(reply) = message.reply else { return };
        let mut hand = self.hand();
        hand.next += 1;
        let number = hand.next;
        hand.held.insert(number, (reply.clone(), message.length));
        hand.bytes += message.length;
        drop(hand);
        let payload = message.payload;
        let Some(events) = decode(&payload) else {
            let held = Held { number, reply, payload, events: 0 };
            let desk = self.clone();
            self.spawn(async move { desk.set_aside(held).await });
            return;
        };
        let held = Held { number, reply, payload, events: events.len() as u64 };
        self.counts.taken.fetch_add(held.events, Relaxed);
        self.counts.pending.fetch_add(held.events, Relaxed);
        let mut hand = self.hand();
        if let Some(until) = hand.paused_until.filter(|until| Instant::now() < *until) {
            drop(hand);
            return self.hand_back(held, Some(until));
        }
        if hand.ended {
            drop(hand);
            return self.hand_back(held, None);
        }
        hand.ahead.push_back(Message { held, events });
        drop(hand);
        self.arrived.notify_one();
    }

    /// A message has come that was not wanted any more.
    pub(super) async fn refuse(&self, message: async_nats::Message) {
        if let Some(reply) = message.reply {
            let _ = self.session.client().publish(reply, AckKind::Nak(None).into()).await;
        }
    }

    /// What is ahead, as much as a batch may hold, and one message at least, where there is one.
    fn take(self: &Arc<Self>, limits: BatchLimits) -> Vec<Delivery> {
        let mut hand = self.hand();
        let (mut events, mut bytes) = (0, 0);
        let mut deliveries = Vec::new();
        while let Some(message) = hand.ahead.front() {
            events += message.events.len();
            bytes += message.events.iter().map(Event::size_bytes).sum::<usize>();
            if !deliveries.is_empty() && (events > limits.max_events || bytes > limits.max_bytes) {
                break;
            }
            let Message { held, events } = hand.ahead.pop_front().expect("it is the front");
            let desk = self.clone();
            deliveries.push(Delivery {
                events,
                ack: Ack::new(move |outcome| desk.settle(held, outcome)),
                position: None,
            });
        }
        deliveries
    }

    /// The sink's answer. Does not block.
    fn settle(self: &Arc<Self>, held: Held, outcome: Outcome) {
        if let Outcome::Failed { .. } = outcome {
            return self.fail(held);
        }
        self.counts.pending.fetch_sub(held.events, Relaxed);
        let mut hand = self.hand();
        hand.pause = Duration::ZERO;
        hand.paused_until = None;
        drop(hand);
        let desk = self.clone();
        self.spawn(async move {
            let kept = match &outcome {
                Outcome::Rejected(rejections) => desk.keep(&held, rejections).await,
                _ => true,
            };
            match kept {
                true => desk.tell(&held, AckKind::Ack).await,
                // It comes again, and is refused again.
                false => desk.tell(&held, AckKind::Nak(Some(MAX_PAUSE))).await,
            }
            desk.release(&held);
        });
    }

    /// The sink does not take events now: what is at hand goes back, for other programs or for later.
    fn fail(self: &Arc<Self>, held: Held) {
        let mut hand = self.hand();
        let now = Instant::now();
        let until = hand.paused_until.filter(|until| now < *until).unwrap_or_else(|| {
            hand.pause = (hand.pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
            // A little longer than the messages stay away: they come again before new ones do.
            now + hand.pause + hand.pause / 4
        });
        hand.paused_until = Some(until);
        let ahead = std::mem::take(&mut hand.ahead);
        drop(hand);
        self.hand_back(held, Some(until));
        for message in ahead {
            self.hand_back(message.held, Some(until));
        }
        self.freed.notify_one();
    }

    /// The message comes again: at once, or just before a pause ends.
    fn hand_back(self: &Arc<Self>, held: Held, pause: Option<Instant>) {
        self.counts.pending.fetch_sub(held.events, Relaxed);
        self.counts.taken.fetch_sub(held.events, Relaxed);
        let delay = pause.map(|until| until.saturating_duration_since(Instant::now()).mul_f64(0.8));
        let desk = self.clone();
        self.spawn(async move {
            desk.tell(&held, AckKind::Nak(delay)).await;
            desk.release(&held);
        });
    }

    /// No more is given to the sink. What was ahead goes to the other programs at once.
    pub(super) fn end(self: &Arc<Self>) {
        let mut hand = self.hand();
        hand.ended = true;
        let ahead = std::mem::take(&mut hand.ahead);
        drop(hand);
        for message in ahead {
            self.hand_back(message.held, None);
        }
        self.arrived.notify_one();
    }

    /// Keeps the events that the sink refused. False when they are not kept.
    async fn keep(&self, held: &Held, rejections: &[Rejection]) -> bool {
        let events = decode(&held.payload).expect("it was decoded before");
        let refused_by = format!("sinks.{}", self.sink);
        for Rejection { index, reason } in rejections {
            let payload = serde_json::to_vec(&events[*index]).expect("an event can be written as JSON");
            let key = self.key(held, *index);
            let refused = Refused { refused_by: &refused_by, reason, payload, key };
            if let Err(error) = self.session.dead_letters().keep(&refused).await {
                tracing::error!(component = refused_by, error, "cannot keep refused events, trying again");
                return false;
            }
        }
        // Why may quote an event, so it is in the stream alone.
        tracing::warn!(
            component = refused_by,
            count = rejections.len(),
            stream = self.session.dead_letters().stream(),
            "refused events are kept as dead letters"
        );
        true
    }

    /// Keeps a message in which there is nothing to be read, and ends it.
    async fn set_aside(&self, held: Held) {
        let stream = self.session.dead_letters().stream();
        let payload = held.payload.to_vec();
        let refused = Refused { refused_by: "transport", reason: NOT_A_RECORD, payload, key: self.key(&held, 0) };
        let word = match self.session.dead_letters().keep(&refused).await {
            Ok(()) => {
                let number = Place::of(&held.reply).map(|place| place.number);
                tracing::error!(
                    component = "transport",
                    sink = self.sink,
                    number,
                    kept = stream,
                    "a message of the stream is {NOT_A_RECORD}"
                );
                AckKind::Term
            }
            Err(error) => {
                tracing::error!(component = "transport", error, "cannot keep a message that cannot be read");
                AckKind::Nak(Some(MAX_PAUSE))
            }
        };
        self.tell(&held, word).await;
        self.release(&held);
    }

    /// Names one event of a message, whenever it is delivered, and no other, though somebody makes the stream anew.
    fn key(&self, held: &Held, index: usize) -> String {
        let place = Place::of(&held.reply);
        let (published, number) = place.map(|place| (place.published_ns, place.number)).unwrap_or_default();
        format!("{}:{published}:{number}:{index}", self.sink)
    }

    /// Waits until the server says that it has heard. A word that it has not heard does no harm: the message comes again.
    async fn tell(&self, held: &Held, word: AckKind) {
        if let Err(error) = self.session.client().request(held.reply.clone(), word.into()).await {
            tracing::debug!(%error, "the NATS server did not hear what became of a message");
        }
    }

    /// Tells the server that the messages at hand are being worked on.
    pub(super) async fn progress(&self) {
        let held: Vec<Subject> = self.hand().held.values().map(|(reply, _)| reply.clone()).collect();
        for reply in held {
            let _ = self.session.client().publish(reply, AckKind::Progress.into()).await;
        }
    }

    fn release(&self, held: &Held) {
        let mut hand = self.hand();
        if let Some((_, bytes)) = hand.held.remove(&held.number) {
            hand.bytes -= bytes;
        }
        drop(hand);
        self.freed.notify_one();
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }
}

/// The events of a message; `None` when it is not one of ours, or damaged. A right checksum does not say who wrote it: an
/// event whose data is no JSON could never be written as a dead letter.
fn decode(payload: &[u8]) -> Option<Vec<Event>> {
    let events = match record::parse(payload) {
        Parsed::Whole(record) if record.size_bytes() == payload.len() => record.events()?,
        _ => return None,
    };
    let is_json = |event: &Event| serde_json::from_str::<&RawValue>(event.data()).is_ok();
    events.iter().all(is_json).then_some(events)
}
