//! Takes batches from a subscription and writes them to one sink: the only retry loop in the project.

use std::iter::repeat_n;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, BatchLimits};
use crate::event::Event;
use crate::health::Health;
use crate::refusals::{Refusal, Refusals};
use crate::sink::{Sink, WriteError};
use crate::transport::Subscription;

/// What operators write below `[writer]`: how events are batched, and how long a batch is retried.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct WriterConfig {
    /// Events in one batch, at most; a single request's events stay together even when they are more.
    #[serde(deserialize_with = "crate::config::at_least_one")]
    pub max_events: usize,
    /// Bytes of events in one batch, at most, with the same exception.
    #[serde(deserialize_with = "crate::config::at_least_one")]
    pub max_bytes: usize,
    /// How long a batch that a sink cannot take now is tried again before its producers are told.
    pub retry_for_ms: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { max_events: 5_000, max_bytes: 4 * 1024 * 1024, retry_for_ms: 5_000 }
    }
}

/// While nothing is written, the sink is asked this often whether it is still there.
const IDLE_CHECK: Duration = Duration::from_secs(2);

/// A write that takes longer is a reason not to be ready: producers are about to lose patience.
const SLOW_WRITE: Duration = Duration::from_secs(5);

/// Why the sink refused an event may quote it, so that is for its producer alone.
const REFUSED: Refusal = Refusal { part: "event", problem: "refused by the sink" };

/// How often a batch is tried when the sink cannot say what is wrong, before it is halved.
const UNKNOWN_TRIES: u32 = 3;

/// One sink's writer.
///
/// While the sink is away a batch is tried again, with growing pauses, for `retry_for_ms`; then its producers are told,
/// and what arrives from then on fails at once instead of waiting in a queue for nothing, until the sink is back.
pub(crate) struct Writer {
    sink: Arc<dyn Sink>,
    health: Health,
    refusals: Refusals,
    config: WriterConfig,
    shutdown: CancellationToken,
}

/// The sink said that it will never be ready.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct WriterError {
    reason: String,
}

/// What became of a part of a batch.
enum Written {
    Stored,
    Refused { reason: String, certain: bool },
    Away { reason: String },
}

impl Writer {
    /// A writer whose pauses are cut short by `shutdown`: from then on each write is tried once.
    pub(crate) fn new(sink: Arc<dyn Sink>, health: Health, config: WriterConfig, shutdown: CancellationToken) -> Self {
        let refusals = Refusals::new(health.name());
        Self { sink, health, refusals, config, shutdown }
    }

    /// Writes until the subscription ends, then closes the sink. Not cancel-safe.
    pub(crate) async fn run(self, mut subscription: Box<dyn Subscription>) -> Result<(), WriterError> {
        let limits = BatchLimits { max_events: self.config.max_events, max_bytes: self.config.max_bytes };
        let mut watch = Watch::new(self.prepare().await?);
        loop {
            let mut receiving = pin!(subscription.receive(limits));
            let deliveries = loop {
                tokio::select! {
                    biased;
                    () = sleep_until(watch.check_at) => watch.update(self.prepare().await?),
                    deliveries = &mut receiving => break deliveries,
                }
            };
            let Some(deliveries) = deliveries else { break };
            let mut batch = Batch::collect(deliveries);
            match &watch.away {
                None => watch.update(self.write(&mut batch).await),
                Some(reason) => batch.fail(0..batch.events().len(), reason.as_str()),
            }
            batch.settle();
        }
        if let Err(error) = self.sink.close().await {
            tracing::error!(component = self.health.name(), %error, "not closed cleanly");
        }
        Ok(())
    }

    /// Asks the sink whether it is ready; the reason when it is not.
    async fn prepare(&self) -> Result<Option<String>, WriterError> {
        match self.sink.prepare().await {
            Ok(()) => {
                self.health.ready();
                Ok(None)
            }
            Err(WriteError::Retry { reason, .. } | WriteError::Unknown { reason }) => {
                self.health.unavailable(&reason);
                Ok(Some(reason))
            }
            Err(WriteError::Reject { reason }) => Err(WriterError { reason }),
        }
    }

    /// Writes a batch, halving it around events that are refused; the reason when the sink is away at the end of it.
    async fn write(&self, batch: &mut Batch) -> Option<String> {
        let give_up_at = Instant::now() + Duration::from_millis(self.config.retry_for_ms);
        let whole = 0..batch.events().len();
        let mut parts = vec![whole];
        let mut tries = UNKNOWN_TRIES;
        let mut any_stored = false;
        let mut suspects = Vec::new();
        let mut away = None;
        while let Some(part) = parts.pop() {
            let written = self.write_part(batch, part.clone(), tries, give_up_at).await;
            // What an unknown error is worth was found out with the whole batch.
            tries = 1;
            match written {
                Written::Stored => any_stored = true,
                Written::Refused { .. } if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Written::Refused { reason, certain: true } => batch.reject(part.start, reason),
                Written::Refused { reason, certain: false } => suspects.push((part.start, reason)),
                Written::Away { reason } => {
                    self.health.unavailable(&reason);
                    batch.fail(part.start..batch.events().len(), reason.as_str());
                    away = Some(reason);
                    break;
                }
            }
        }
        // An error of unknown kind speaks against an event only where its neighbours could be stored.
        for (index, reason) in suspects {
            if any_stored {
                batch.reject(index, reason);
            } else {
                batch.fail(index..index + 1, reason);
            }
        }
        if batch.rejected() > 0 {
            self.refusals.note(repeat_n(REFUSED, batch.rejected()));
        }
        away
    }

    /// Tries one part of a batch until it is stored, refused, or the time is up.
    async fn write_part(&self, batch: &Batch, part: Range<usize>, tries: u32, give_up_at: Instant) -> Written {
        let mut backoff = Backoff::default();
        let mut unknown = 0;
        loop {
            let (reason, pause) = match self.write_once(&batch.events()[part.clone()]).await {
                Ok(()) => {
                    self.health.ready();
                    return Written::Stored;
                }
                Err(WriteError::Reject { reason }) => return Written::Refused { reason, certain: true },
                Err(WriteError::Unknown { reason }) => {
                    unknown += 1;
                    if unknown >= tries {
                        return match Instant::now() < give_up_at {
                            true => Written::Refused { reason, certain: false },
                            false => Written::Away { reason },
                        };
                    }
                    (reason, backoff.next_pause())
                }
                Err(WriteError::Retry { reason, after }) => {
                    self.health.unavailable(&reason);
                    let pause = backoff.next_pause().max(after.unwrap_or_default());
                    if Instant::now() + pause > give_up_at {
                        return Written::Away { reason };
                    }
                    (reason, pause)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Written::Away { reason },
            }
        }
    }

    /// Waits as long as the sink does, but does not keep it to itself that it hangs.
    async fn write_once(&self, events: &[Event]) -> Result<(), WriteError> {
        let mut writing = self.sink.write(events);
        tokio::select! {
            written = &mut writing => return written,
            () = tokio::time::sleep(SLOW_WRITE) => {}
        }
        self.health.unavailable(format!("no answer to a write for {} s", SLOW_WRITE.as_secs()));
        writing.await
    }
}

/// Whether the sink is there, as far as is known, and when to ask again.
struct Watch {
    away: Option<String>,
    backoff: Backoff,
    check_at: Instant,
}

impl Watch {
    fn new(away: Option<String>) -> Self {
        let mut watch = Self { away: None, backoff: Backoff::default(), check_at: Instant::now() };
        watch.update(away);
        watch
    }

    fn update(&mut self, away: Option<String>) {
        if away.is_none() {
            self.backoff = Backoff::default();
        }
        let pause = if away.is_none() { IDLE_CHECK } else { self.backoff.next_pause() };
        self.check_at = Instant::now() + pause;
        self.away = away;
    }
}

/// Pauses that double from 50 ms to 1 s, less up to half of each by chance, so that several writers do not march in step.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Duration::from_millis(50) }
    }
}

impl Backoff {
    fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(Duration::from_secs(1));
        pause
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tokio::sync::mpsc;

    use super::*;
    use crate::ack::{Ack, Outcome, Receipt};
    use crate::event::EventFields;
    use crate::health::{HealthBoard, State};
    use crate::refusals::tests::Logged;
    use crate::timestamp::Timestamp;
    use crate::transport::Delivery;

    /// Answers from a script, then stores; refuses events by their name.
    #[derive(Default)]
    struct FakeSink {
        prepares: Mutex<VecDeque<WriteError>>,
        writes: Mutex<VecDeque<WriteError>>,
        stored: Mutex<Vec<String>>,
        tries: Mutex<usize>,
    }

    #[async_trait]
    impl Sink for FakeSink {
        async fn prepare(&self) -> Result<(), WriteError> {
            self.prepares.lock().unwrap().pop_front().map_or(Ok(()), Err)
        }

        async fn write(&self, batch: &[Event]) -> Result<(), WriteError> {
            *self.tries.lock().unwrap() += 1;
            if let Some(error) = self.writes.lock().unwrap().pop_front() {
                return Err(error);
            }
            for event in batch {
                match event.name() {
                    "slow" => tokio::time::sleep(2 * SLOW_WRITE).await,
                    "refused" => return Err(WriteError::reject("no such name")),
                    "puzzling" => return Err(WriteError::Unknown { reason: "hm".into() }),
                    _ => {}
                }
            }
            self.stored.lock().unwrap().extend(batch.iter().map(|event| event.name().to_owned()));
            Ok(())
        }
    }

    struct Queue(mpsc::UnboundedReceiver<Delivery>);

    #[async_trait]
    impl Subscription for Queue {
        async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
            let mut deliveries = Vec::new();
            (self.0.recv_many(&mut deliveries, limits.max_events).await > 0).then_some(deliveries)
        }
    }

    struct Running {
        sink: Arc<FakeSink>,
        board: HealthBoard,
        shutdown: CancellationToken,
        queue: mpsc::UnboundedSender<Delivery>,
        writer: tokio::task::JoinHandle<Result<(), WriterError>>,
    }

    impl Running {
        fn start(sink: FakeSink) -> Self {
            let sink = Arc::new(sink);
            let board = HealthBoard::default();
            let shutdown = CancellationToken::new();
            let (queue, receiver) = mpsc::unbounded_channel();
            let config = WriterConfig { retry_for_ms: 2_000, ..WriterConfig::default() };
            let writer = Writer::new(sink.clone(), board.component("sinks.fake"), config, shutdown.clone());
            let writer = tokio::spawn(writer.run(Box::new(Queue(receiver))));
            Self { sink, board, shutdown, queue, writer }
        }

        fn send(&self, names: &[&str]) -> Receipt {
            let (settle, receipt) = Receipt::pair();
            let events = names.iter().map(|name| named(name)).collect();
            self.queue.send(Delivery { events, ack: Ack::new(settle) }).unwrap();
            receipt
        }

        async fn until_ready(&self) {
            while self.state() != State::Ready {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }

        fn state(&self) -> State {
            self.board.components().remove(0).state
        }
    }

    fn named(name: &str) -> Event {
        Event::from(EventFields {
            id: uuid::Uuid::nil(),
            timestamp: Timestamp::MIN,
            received_at: Timestamp::MIN,
            session_id: "s",
            category: "c",
            name,
            data: "1",
        })
    }

    fn away() -> WriteError {
        WriteError::retry("away")
    }

    fn rejected(outcome: &Outcome) -> Vec<usize> {
        match outcome {
            Outcome::Rejected(rejected) => rejected.iter().map(|rejection| rejection.index).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_without_an_answer_makes_the_sink_unavailable_until_there_is_one() {
        let running = Running::start(FakeSink::default());
        running.until_ready().await;
        let receipt = running.send(&["slow"]);
        tokio::time::sleep(SLOW_WRITE * 9 / 10).await;
        assert_eq!(running.state(), State::Ready);
        tokio::time::sleep(SLOW_WRITE * 2 / 10).await;
        assert_eq!(running.state(), State::Unavailable { reason: "no answer to a write for 5 s".into() });
        assert_eq!(receipt.outcome().await, Outcome::Delivered);
        assert_eq!(running.state(), State::Ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_is_waited_for() {
        let running = Running::start(FakeSink { writes: Mutex::new([away(), away()].into()), ..FakeSink::default() });
        assert_eq!(running.send(&["a"]).outcome().await, Outcome::Delivered);
        assert_eq!(*running.sink.tries.lock().unwrap(), 3);
        assert_eq!(running.state(), State::Ready);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_long_outage_the_producer_is_told_and_the_next_ones_at_once() {
        let running = Running::start(FakeSink { writes: Mutex::new(vec![away(); 1000].into()), ..FakeSink::default() });
        running.until_ready().await;
        let first = running.send(&["a"]);
        running.sink.prepares.lock().unwrap().extend(vec![away(); 1000]);
        let started = Instant::now();
        assert_eq!(first.outcome().await, Outcome::failed("away"));
        assert!(started.elapsed() <= Duration::from_millis(2_000), "no longer than retry_for_ms");
        assert!(started.elapsed() >= Duration::from_millis(500), "but it was tried for a while");
        let started = Instant::now();
        assert_eq!(running.send(&["b"]).outcome().await, Outcome::failed("away"));
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(running.state(), State::Unavailable { reason: "away".into() });
        running.sink.prepares.lock().unwrap().clear();
        running.sink.writes.lock().unwrap().clear();
        running.until_ready().await;
        assert_eq!(running.send(&["c"]).outcome().await, Outcome::Delivered);
        assert_eq!(*running.sink.stored.lock().unwrap(), ["c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_events_are_reported_without_the_reason() {
        let (logged, _guard) = Logged::start();
        let running = Running::start(FakeSink::default());
        running.send(&["a", "refused", "refused"]).outcome().await;
        assert_eq!(logged.take(), [r#"message=refused: event: refused by the sink component="sinks.fake" count=2"#]);
        running.send(&["a"]).outcome().await;
        assert_eq!(logged.take(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_events_stand_alone_and_all_others_are_stored() {
        let running = Running::start(FakeSink::default());
        let receipts = [running.send(&["a", "refused", "b"]), running.send(&["c"]), running.send(&["refused"])];
        let [first, second, third] = receipts;
        assert_eq!(rejected(&first.outcome().await), [1]);
        assert_eq!(second.outcome().await, Outcome::Delivered);
        assert_eq!(rejected(&third.outcome().await), [0]);
        assert_eq!(*running.sink.stored.lock().unwrap(), ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_error_speaks_against_an_event_when_its_neighbours_are_stored() {
        let running = Running::start(FakeSink::default());
        assert_eq!(rejected(&running.send(&["puzzling", "a"]).outcome().await), [0]);
        assert_eq!(running.send(&["puzzling"]).outcome().await, Outcome::failed("hm"));
        assert_eq!(*running.sink.stored.lock().unwrap(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_error_that_passes_is_waited_for() {
        let puzzling = WriteError::Unknown { reason: "hm".into() };
        let running =
            Running::start(FakeSink { writes: Mutex::new([puzzling.clone(), puzzling].into()), ..FakeSink::default() });
        assert_eq!(running.send(&["a"]).outcome().await, Outcome::Delivered);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_cuts_the_pauses_short() {
        let running = Running::start(FakeSink { writes: Mutex::new(vec![away(); 1000].into()), ..FakeSink::default() });
        running.shutdown.cancel();
        let started = Instant::now();
        assert_eq!(running.send(&["a"]).outcome().await, Outcome::failed("away"));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_will_never_be_ready_ends_the_writer() {
        let running = Running::start(FakeSink {
            prepares: Mutex::new([WriteError::reject("the schema is newer")].into()),
            ..FakeSink::default()
        });
        assert_eq!(running.writer.await.unwrap().unwrap_err().to_string(), "the schema is newer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_went_away_while_idle_is_found_out() {
        let running = Running::start(FakeSink::default());
        running.until_ready().await;
        running.sink.prepares.lock().unwrap().extend(vec![away(); 10]);
        while running.state() == State::Ready {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(running.queue);
        running.writer.await.unwrap().unwrap();
    }
}
