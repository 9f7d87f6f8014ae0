//! The loop that takes messages from a durable pull consumer and settles them.
//!
//! [`Consumer`] asks for as many messages as its limits have space for, and hands them out as [`InFlightMessage`]s. A message
//! stays in flight until the server has confirmed its settlement; until it is settled, the server gets progress
//! acknowledgements, so that it delivers the message to nobody else. A failure pauses the consumer with growing delays, and the
//! next requests are small, so that a store that is unavailable does not see the whole stream pass by.
//!
//! A settlement that gets lost does no harm: the server delivers the message again.

use std::collections::HashMap;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::AckKind;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use eye_core::backoff::Backoff;
use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, ReadyChunks};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::position::MessagePosition;
use crate::pull::{PullRequest, has_no_more, is_status};

/// Messages that are handed out together at most.
const MAX_READY: usize = 512;

/// Bytes of a message that `max_payload` does not count: its subjects.
const SUBJECTS_BYTES: usize = 1024;

/// Divisor of the limits after a failure, until a message is acknowledged. Requests still ask for several messages: a sink that
/// cannot say which event it refuses compares neighbours.
const PROBE_DIVISOR: usize = 8;

/// First and longest delay before failed messages are delivered again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait for the confirmation of a settlement. The message counts as in flight meanwhile.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for space in the client library's queue; it is full while the connection is lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for messages that the server had sent before it processed the unsubscription.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(200);

/// Settings of a [`Consumer`].
#[derive(Clone, Debug)]
pub struct ConsumerSettings {
    /// The stream's name.
    pub stream: String,
    /// The durable consumer's name.
    pub durable: String,
    /// Time after which the server delivers a message again that it got no acknowledgement for.
    pub ack_wait: Duration,
    /// Messages in flight at most.
    pub max_messages: usize,
    /// Bytes of messages in flight at most; one largest message may exceed it.
    pub max_bytes: usize,
    /// Cancelled at the shutdown: the consumer drains and leaves.
    pub shutdown: CancellationToken,
    /// Cancelled when the stream has all messages that the drain should deliver.
    pub drain_after: CancellationToken,
    /// Longest time of the drain. Zero: the consumer leaves at once.
    pub drain_for: Duration,
}

/// A durable pull consumer of this program. Dropping it leaves its messages unacknowledged.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    settling: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    settings: ConsumerSettings,
    flow: Mutex<FlowControl>,
    /// Settlements were confirmed: capacity is free.
    flow_changed: Notify,
    /// A message was settled, or the consumer is finishing.
    settled: Notify,
}

/// The messages in flight, and the pause after a failure.
#[derive(Debug, Default)]
struct FlowControl {
    /// Reply subjects of the messages that are not settled, by their number.
    unsettled: HashMap<u64, Subject>,
    last_number: u64,
    /// Settlements that are not sent yet.
    outbox: Vec<SettledMessage>,
    /// Messages whose settlement is not confirmed, and their bytes.
    messages: usize,
    bytes: usize,
    /// `None` when no message has failed since the last acknowledgement.
    backoff: Option<Backoff>,
    paused_until: Option<Instant>,
    is_finishing: bool,
}

#[derive(Debug)]
struct SettledMessage {
    reply: Subject,
    kind: AckKind,
    bytes: usize,
}

impl Consumer {
    /// Starts the task that sends settlements and progress. Must be called within a Tokio runtime.
    pub fn new(client: Client, settings: ConsumerSettings) -> Self {
        let shared = Arc::new(Shared {
            client,
            settings,
            flow: Mutex::default(),
            flow_changed: Notify::new(),
            settled: Notify::new(),
        });
        let settling = AbortOnDropHandle::new(tokio::spawn(shared.clone().send_settlements()));
        Self { shared, settling }
    }

    /// Takes messages and hands those that arrive together to `handle`, in the order of the stream. Ends when the consumer has
    /// left after the shutdown, or `connection_lost` resolves; messages in flight outlive it.
    ///
    /// # Errors
    /// The reason for which the server or the client library delivers nothing more.
    pub async fn pull(
        &self,
        connection_lost: impl Future<Output = ()>,
        mut handle: impl FnMut(Vec<InFlightMessage>),
    ) -> Result<(), String> {
        let Shared { client, settings, flow_changed, .. } = &*self.shared;
        let ConsumerSettings { shutdown, drain_after, .. } = settings;
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let mut messages = messages.ready_chunks(MAX_READY);
        let mut connection_lost = pin!(connection_lost);
        let mut request: Option<PullRequest> = None;
        let (mut drain_until, mut is_drained) = (None, false);
        loop {
            if shutdown.is_cancelled() {
                let until = *drain_until.get_or_insert_with(|| Instant::now() + settings.drain_for);
                if self.shared.may_leave(until, is_drained) {
                    self.leave(messages).await;
                    return Ok(());
                }
            }
            let is_last = drain_after.is_cancelled();
            if request.is_none_or(|request| is_last && !request.is_last)
                && !is_drained
                && let Some((count, max_bytes)) = self.shared.capacity()
            {
                let new = PullRequest::new(count, is_last);
                request = Some(new.send(client, &settings.stream, &settings.durable, &inbox, max_bytes).await?);
            }
            let expires_at = request.as_ref().map(|request| request.expires_at);
            let wake_at = [expires_at, self.shared.flow().pause_end(), drain_until].into_iter().flatten().min();
            tokio::select! {
                ready = messages.next() => {
                    let ready = ready.ok_or("the NATS client has stopped")?;
                    let (statuses, ready): (Vec<_>, Vec<_>) = ready.into_iter().partition(is_status);
                    let rest = request.and_then(|request| request.less(ready.len()));
                    self.hand_out(ready, &mut handle);
                    for status in &statuses {
                        is_drained |= has_no_more(status)? && rest.is_some_and(|rest| rest.is_last);
                    }
                    request = rest.filter(|_| statuses.is_empty());
                }
                () = flow_changed.notified() => {}
                () = &mut connection_lost => return Ok(()),
                () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
                () = drain_after.cancelled(), if !is_last => {}
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    request = request.filter(|request| Instant::now() < request.expires_at);
                }
            }
        }
    }

    /// Messages that arrive during a pause are returned, for other programs or for later.
    fn hand_out(&self, messages: Vec<Message>, handle: &mut impl FnMut(Vec<InFlightMessage>)) {
        let messages = messages.into_iter().filter_map(|message| self.shared.track(message));
        if self.shared.flow().pause_end().is_some() {
            messages.for_each(InFlightMessage::fail);
            return;
        }
        let messages: Vec<_> = messages.collect();
        if !messages.is_empty() {
            handle(messages);
        }
    }

    /// Unsubscribes, and returns at once what the server had sent before.
    async fn leave(&self, mut messages: ReadyChunks<Subscriber>) {
        let released = async {
            let _ = messages.get_mut().drain().await;
            while let Some(ready) = messages.next().await {
                let ready = ready.into_iter().filter_map(|message| self.shared.track(message));
                ready.for_each(InFlightMessage::release);
            }
        };
        let _ = timeout(LEAVE_TIMEOUT, released).await;
    }

    /// Polls `pulling`, the caller's loop around [`pull`](Self::pull), to its end. `None` when it has not ended in time after the
    /// shutdown, for example because the server is unavailable.
    pub async fn drive<T>(&self, pulling: impl Future<Output = T>) -> Option<T> {
        let settings = &self.shared.settings;
        let out_of_time = async {
            settings.shutdown.cancelled().await;
            sleep(settings.drain_for + 2 * LEAVE_TIMEOUT).await;
        };
        tokio::select! {
            ended = pulling => Some(ended),
            () = out_of_time => None,
        }
    }

    /// Waits until every message in flight is settled, and the server has confirmed it or did not answer in time.
    pub async fn finish(self) {
        self.shared.flow().is_finishing = true;
        self.shared.settled.notify_one();
        let _ = self.settling.await;
    }
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, FlowControl> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the messages to ask for, and their bytes, once half of a limit is free: messages are not asked for one by one.
    fn capacity(&self) -> Option<(usize, usize)> {
        let largest = self.client.max_payload() + SUBJECTS_BYTES;
        let flow = self.flow();
        let divisor = if flow.backoff.is_some() { PROBE_DIVISOR } else { 1 };
        let (max_messages, max_bytes) =
            (self.settings.max_messages.div_ceil(divisor), self.settings.max_bytes / divisor);
        let messages = max_messages.saturating_sub(flow.messages);
        let bytes = max_bytes.saturating_sub(flow.bytes);
        let is_half_free = messages >= max_messages.div_ceil(2) && bytes >= max_bytes / 2;
        (is_half_free && flow.pause_end().is_none()).then_some((messages, bytes.max(largest)))
    }

    fn may_leave(&self, drain_until: Instant, is_drained: bool) -> bool {
        let flow = self.flow();
        Instant::now() >= drain_until || flow.pause_end().is_some() || (is_drained && flow.messages == 0)
    }

    fn track(self: &Arc<Self>, message: Message) -> Option<InFlightMessage> {
        let Message { reply, payload, headers, length, .. } = message;
        let reply = reply?;
        let mut flow = self.flow();
        flow.last_number += 1;
        let number = flow.last_number;
        flow.unsettled.insert(number, reply.clone());
        flow.messages += 1;
        flow.bytes += length;
        drop(flow);
        Some(InFlightMessage { payload, headers, reply, number, bytes: length, consumer: self.clone() })
    }

    /// Sends what becomes of the messages, and progress for those that are not settled, until the consumer is finished.
    ///
    /// Settlements that come together are sent together. Confirmations are awaited side by side: one that the server does not
    /// answer delays no other.
    async fn send_settlements(self: Arc<Self>) {
        let mut confirming = FuturesUnordered::new();
        let mut progress = interval(self.settings.ack_wait / 3);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (outbox, is_finished) = {
                let mut flow = self.flow();
                (mem::take(&mut flow.outbox), flow.is_finishing && flow.unsettled.is_empty())
            };
            if !outbox.is_empty() {
                confirming.push(self.confirm(outbox));
            } else if is_finished && confirming.is_empty() {
                return;
            }
            tokio::select! {
                () = self.settled.notified() => {}
                Some(()) = confirming.next() => {}
                _ = progress.tick() => self.send_progress().await,
            }
        }
    }

    /// Waits for the confirmation of the last one only: the server processes acknowledgements in their order.
    async fn confirm(&self, settlements: Vec<SettledMessage>) {
        let confirmed = async {
            let (last, others) = settlements.split_last()?;
            for SettledMessage { reply, kind, .. } in others {
                let _ = self.client.publish(reply.clone(), (*kind).into()).await;
            }
            self.client.request(last.reply.clone(), last.kind.into()).await.ok()
        };
        if !matches!(timeout(CONFIRM_TIMEOUT, confirmed).await, Ok(Some(_))) {
            tracing::debug!(consumer = self.settings.durable, "the NATS server did not confirm a settlement");
        }
        let mut flow = self.flow();
        flow.messages -= settlements.len();
        flow.bytes -= settlements.iter().map(|settlement| settlement.bytes).sum::<usize>();
        drop(flow);
        self.flow_changed.notify_one();
    }

    async fn send_progress(&self) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let unsettled: Vec<Subject> = self.flow().unsettled.values().cloned().collect();
        let sent = async {
            for reply in unsettled {
                let _ = self.client.publish(reply, AckKind::Progress.into()).await;
            }
        };
        let _ = timeout(SEND_TIMEOUT, sent).await;
    }
}

impl FlowControl {
    /// Returns the end of the pause, during a pause.
    fn pause_end(&self) -> Option<Instant> {
        self.paused_until.filter(|until| Instant::now() < *until)
    }

    /// Begins a pause unless there is one. Returns the delay for a message: it ends a little before the pause, so that failed
    /// messages are delivered again before new ones.
    fn fail(&mut self) -> Duration {
        let backoff = self.backoff.get_or_insert_with(|| Backoff::new(FIRST_PAUSE, MAX_PAUSE));
        let until = match self.paused_until {
            Some(until) if Instant::now() < until => until,
            _ => Instant::now() + backoff.next_pause().mul_f64(1.25),
        };
        self.paused_until = Some(until);
        until.saturating_duration_since(Instant::now()).mul_f64(0.8)
    }
}

/// A delivered message that is not settled. Dropping it counts as a failure.
#[derive(Debug)]
pub struct InFlightMessage {
    /// The content.
    pub payload: Bytes,
    /// The headers, if it has any.
    pub headers: Option<HeaderMap>,
    reply: Subject,
    number: u64,
    bytes: usize,
    consumer: Arc<Shared>,
}

impl InFlightMessage {
    /// Returns the position in the stream; `None` when the reply subject has an unknown form.
    pub fn position(&self) -> Option<MessagePosition<'_>> {
        MessagePosition::from_reply(&self.reply)
    }

    /// Acknowledges the message: its events have their terminal outcome. Ends a pause.
    pub fn ack(self) {
        let mut flow = self.consumer.flow();
        (flow.backoff, flow.paused_until) = (None, None);
        drop(flow);
        self.settle(AckKind::Ack);
    }

    /// Terminates the message: it is never delivered again, and counted as refused by the server.
    pub fn term(self) {
        self.settle(AckKind::Term);
    }

    /// Returns the message for a later delivery, and pauses the consumer: the store takes nothing now.
    pub fn fail(self) {
        let delay = self.consumer.flow().fail();
        self.settle(AckKind::Nak(Some(delay)));
    }

    /// Returns the message for a later delivery without a pause: the reason concerns this message alone.
    pub fn defer(self) {
        self.settle(AckKind::Nak(Some(MAX_PAUSE)));
    }

    /// Returns the message for an immediate delivery to another program, at the shutdown.
    pub fn release(self) {
        self.settle(AckKind::Nak(None));
    }

    fn settle(&self, kind: AckKind) {
        let mut flow = self.consumer.flow();
        if flow.unsettled.remove(&self.number).is_none() {
            return;
        }
        flow.outbox.push(SettledMessage { reply: self.reply.clone(), kind, bytes: self.bytes });
        drop(flow);
        self.consumer.settled.notify_one();
    }
}

impl Drop for InFlightMessage {
    fn drop(&mut self) {
        if self.consumer.flow().unsettled.contains_key(&self.number) {
            let delay = self.consumer.flow().fail();
            self.settle(AckKind::Nak(Some(delay)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
