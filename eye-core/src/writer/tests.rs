use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::availability::{IDLE_CHECK, MAX_PAUSE, PROBATION};
use super::bisection::MAX_SUSPECTS;
use super::*;
use crate::ack::{Ack, Outcome, Receipt};
use crate::dead_letter::{DeadLetter, DeadLetterError};
use crate::health::{ComponentState, HealthBoard};
use crate::refusals::tests::Logged;
use crate::testkit::event_with;
use crate::transport::{Delivery, Position};

/// Answers from a script, then stores; refuses events by their name.
#[derive(Default)]
struct FakeSink {
    prepares: Mutex<VecDeque<WriteError>>,
    writes: Mutex<VecDeque<WriteError>>,
    /// By the number of the try.
    errors_at: BTreeMap<usize, WriteError>,
    stored: Mutex<Vec<String>>,
    tries: Mutex<usize>,
}

#[async_trait]
impl Sink for FakeSink {
    async fn prepare(&self) -> Result<(), WriteError> {
        self.prepares.lock().unwrap().pop_front().map_or(Ok(()), Err)
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        let tries = {
            let mut tries = self.tries.lock().unwrap();
            *tries += 1;
            *tries
        };
        if let Some(error) = self.errors_at.get(&tries) {
            return Err(error.clone());
        }
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
        let mut stored = self.stored.lock().unwrap();
        for event in batch.iter().map(Event::name) {
            if !stored.iter().any(|known| known == event) {
                stored.push(event.to_owned());
            }
        }
        Ok(Written { duplicates: batch.iter().filter(|event| event.name() == "known").count() })
    }
}

/// Keeps dead letters in memory; fails a number of times first.
#[derive(Default)]
struct FakeStore {
    failures: Mutex<usize>,
    keys: Mutex<Vec<String>>,
}

#[async_trait]
impl DeadLetterStore for FakeStore {
    async fn put(&self, letters: &[NewDeadLetter]) -> Result<(), DeadLetterError> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(DeadLetterError("the disk is full".into()));
        }
        self.keys.lock().unwrap().extend(letters.iter().map(|letter| letter.key.clone()));
        Ok(())
    }

    async fn page(&self, _: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError> {
        unreachable!("the writer only puts letters")
    }

    async fn get(&self, _: &str) -> Result<Option<DeadLetter>, DeadLetterError> {
        unreachable!("the writer only puts letters")
    }

    async fn delete(&self, _: &str) -> Result<bool, DeadLetterError> {
        unreachable!("the writer only puts letters")
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
    counters: Arc<SinkCounters>,
    shutdown: CancellationToken,
    queue: mpsc::UnboundedSender<Delivery>,
    writer: tokio::task::JoinHandle<Result<(), WriterError>>,
}

impl Running {
    fn start(sink: FakeSink) -> Self {
        Self::start_with(sink, 2_000)
    }

    fn start_with(sink: FakeSink, retry_for_ms: u64) -> Self {
        Self::start_over(sink, retry_for_ms, None)
    }

    fn start_over(sink: FakeSink, retry_for_ms: u64, dead_letters: Option<Arc<FakeStore>>) -> Self {
        let sink = Arc::new(sink);
        let board = HealthBoard::default();
        let shutdown = CancellationToken::new();
        let counters = Arc::new(SinkCounters::default());
        let (queue, receiver) = mpsc::unbounded_channel();
        let config = WriterConfig { retry_for_ms, ..WriterConfig::default() };
        let writer = Writer {
            sink: sink.clone(),
            health: board.component("sinks.fake"),
            counters: counters.clone(),
            refusals: Refusals::new("sinks.fake"),
            filter: SinkFilter::default(),
            limits: config.batch_limits(Duration::ZERO),
            retry_for: config.retry_for(),
            dead_letters: dead_letters.map(|store| store as Arc<dyn DeadLetterStore>),
            shutdown: shutdown.clone(),
        };
        let writer = tokio::spawn(writer.run(Box::new(Queue(receiver))));
        Self { sink, board, counters, shutdown, queue, writer }
    }

    fn send(&self, names: &[&str]) -> Receipt {
        let (settle, receipt) = Receipt::pair();
        let events = names.iter().map(|name| named(name)).collect();
        let position = Some(Position { prefix: String::new(), number: 7 });
        self.queue.send(Delivery { events, ack: Ack::new(settle), position }).unwrap();
        receipt
    }

    async fn until_ready(&self) {
        while self.state() != ComponentState::Ready {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn state(&self) -> ComponentState {
        self.board.components().remove(0).state
    }
}

fn named(name: &str) -> Event {
    event_with(0, name, "1")
}

fn unavailable() -> WriteError {
    WriteError::retry("unavailable")
}

fn rejected(outcome: &Outcome) -> Vec<usize> {
    match outcome {
        Outcome::Rejected(rejected) => rejected.iter().map(|rejection| rejection.index).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_write_makes_the_sink_unavailable() {
    let running = Running::start(FakeSink::default());
    running.until_ready().await;
    let receipt = running.send(&["slow"]);
    tokio::time::sleep(SLOW_WRITE * 9 / 10).await;
    assert_eq!(running.state(), ComponentState::Ready);
    tokio::time::sleep(SLOW_WRITE * 2 / 10).await;
    assert_eq!(running.state(), ComponentState::Unavailable { reason: "no answer to a write for 5 s".into() });
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
    assert_eq!(running.state(), ComponentState::Ready);
}

#[tokio::test(start_paused = true)]
async fn short_outage_is_waited_for() {
    let running =
        Running::start(FakeSink { writes: Mutex::new([unavailable(), unavailable()].into()), ..FakeSink::default() });
    assert_eq!(running.send(&["a"]).outcome().await, Outcome::Delivered);
    assert_eq!(*running.sink.tries.lock().unwrap(), 3);
    assert_eq!(running.state(), ComponentState::Ready);
}

#[tokio::test(start_paused = true)]
async fn long_outage_fails_the_batch_and_later_ones_at_once() {
    let running =
        Running::start(FakeSink { writes: Mutex::new(vec![unavailable(); 1000].into()), ..FakeSink::default() });
    running.until_ready().await;
    let first = running.send(&["a"]);
    running.sink.prepares.lock().unwrap().extend(vec![unavailable(); 1000]);
    let started = Instant::now();
    assert_eq!(first.outcome().await, Outcome::failed("unavailable"));
    assert!(started.elapsed() <= Duration::from_millis(2_000), "no longer than retry_for_ms");
    assert!(started.elapsed() >= Duration::from_millis(500), "but it was tried for a while");
    let started = Instant::now();
    assert_eq!(running.send(&["b"]).outcome().await, Outcome::failed("unavailable"));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(running.state(), ComponentState::Unavailable { reason: "unavailable".into() });
    running.sink.prepares.lock().unwrap().clear();
    running.sink.writes.lock().unwrap().clear();
    running.until_ready().await;
    assert_eq!(running.send(&["c"]).outcome().await, Outcome::Delivered);
    assert_eq!(*running.sink.stored.lock().unwrap(), ["c"]);
}

#[tokio::test(start_paused = true)]
async fn probation_doubles_while_nothing_is_stored() {
    let running =
        Running::start(FakeSink { writes: Mutex::new(vec![unavailable(); 1000].into()), ..FakeSink::default() });
    for probation in [PROBATION, 2 * PROBATION] {
        running.until_ready().await;
        assert_eq!(running.send(&["a"]).outcome().await, Outcome::failed("unavailable"));
        let failed_at = Instant::now();
        running.until_ready().await;
        assert!((probation..probation + 2 * IDLE_CHECK).contains(&failed_at.elapsed()), "{:?}", failed_at.elapsed());
    }
    running.send(&["a"]).outcome().await;
    running.sink.writes.lock().unwrap().clear();
    tokio::time::sleep(IDLE_CHECK).await;
    assert_eq!(running.send(&["b"]).outcome().await, Outcome::Delivered, "it is tried meanwhile");
    assert_eq!(running.state(), ComponentState::Ready);
}

#[tokio::test(start_paused = true)]
async fn requested_pause_is_granted_up_to_a_minute() {
    for (after, expected) in [(Duration::from_secs(30), Duration::from_secs(30)), (Duration::MAX, MAX_PAUSE)] {
        let busy = WriteError::Retry { reason: "busy".into(), after: Some(after) };
        let running = Running::start(FakeSink { writes: Mutex::new([busy].into()), ..FakeSink::default() });
        running.until_ready().await;
        let started = Instant::now();
        assert_eq!(running.send(&["a"]).outcome().await, Outcome::failed("busy"));
        assert_eq!(running.send(&["b"]).outcome().await, Outcome::failed("busy"));
        assert_eq!(started.elapsed(), Duration::ZERO, "longer than retry_for_ms, so they are told at once");
        running.until_ready().await;
        let waited = started.elapsed();
        assert!((expected..expected + Duration::from_millis(20)).contains(&waited), "{waited:?}");
        assert_eq!(running.send(&["c"]).outcome().await, Outcome::Delivered);
        assert_eq!(*running.sink.tries.lock().unwrap(), 2);
    }
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
async fn refused_events_are_isolated_and_others_stored() {
    let running = Running::start(FakeSink::default());
    let receipts = [running.send(&["a", "refused", "b"]), running.send(&["c"]), running.send(&["refused"])];
    let [first, second, third] = receipts;
    assert_eq!(rejected(&first.outcome().await), [1]);
    assert_eq!(second.outcome().await, Outcome::Delivered);
    assert_eq!(rejected(&third.outcome().await), [0]);
    assert_eq!(*running.sink.stored.lock().unwrap(), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn unknown_error_rejects_event_if_others_are_stored() {
    let running = Running::start(FakeSink::default());
    assert_eq!(rejected(&running.send(&["puzzling", "a"]).outcome().await), [0]);
    assert_eq!(running.send(&["puzzling"]).outcome().await, Outcome::failed("hm"));
    assert_eq!(*running.sink.stored.lock().unwrap(), ["a"]);
}

/// A thousand events with these names at some places.
fn thousand<'a>(name: &'a str, good: &'a [String], is_bad: impl Fn(usize) -> bool) -> Vec<&'a str> {
    (0..1_000).map(|n| if is_bad(n) { name } else { &*good[n] }).collect()
}

#[tokio::test(start_paused = true)]
async fn bisection_is_bounded_in_writes_not_in_time() {
    let good: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    let is_bad: [fn(usize) -> bool; 3] = [|n| n % 100 == 0, |n| n == 0, |n| n < 500];
    for is_bad in is_bad {
        let running = Running::start_with(FakeSink::default(), 0);
        let outcome = running.send(&thousand("puzzling", &good, is_bad)).outcome().await;
        let bad: Vec<usize> = (0..1_000).filter(|n| is_bad(*n)).collect();
        assert_eq!(rejected(&outcome), bad);
        assert_eq!(running.sink.stored.lock().unwrap().len(), 1_000 - bad.len());
        let tries = *running.sink.tries.lock().unwrap();
        assert!(tries <= 2_000 + MAX_SUSPECTS, "{tries}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_error_everywhere_is_an_outage() {
    let running = Running::start_with(FakeSink::default(), 0);
    running.until_ready().await;
    running.sink.prepares.lock().unwrap().extend(vec![unavailable(); 1000]);
    let outcome = running.send(&["puzzling"; 1_000]).outcome().await;
    assert_eq!(outcome, Outcome::failed("hm"));
    let tries = *running.sink.tries.lock().unwrap();
    assert!((MAX_SUSPECTS..10 * MAX_SUSPECTS).contains(&tries), "{tries}");
    assert_eq!(running.send(&["a"]).outcome().await, Outcome::failed("hm"), "until it is asked whether it is back");
}

#[tokio::test(start_paused = true)]
async fn unclassified_error_during_outage_rejects_nothing() {
    let puzzling = |tries: std::ops::Range<usize>| {
        let errors = tries.map(|tries| (tries, WriteError::Unknown { reason: "hm".into() }));
        Running::start(FakeSink { errors_at: errors.collect(), ..FakeSink::default() })
    };
    let running = puzzling(1..6);
    assert_eq!(running.send(&["a", "b", "c", "d"]).outcome().await, Outcome::Delivered, "it passed");
    let running = puzzling(5..100);
    let outcome = running.send(&["a", "b", "puzzling", "c"]).outcome().await;
    assert_eq!(outcome, Outcome::failed("hm"), "the first half was stored, then nothing");
}

#[tokio::test(start_paused = true)]
async fn stored_part_gives_the_next_part_the_full_time() {
    let sink = FakeSink { errors_at: [(3, unavailable())].into(), ..FakeSink::default() };
    let running = Running::start_with(sink, SLOW_WRITE.as_millis() as u64);
    assert_eq!(rejected(&running.send(&["slow", "a", "refused"]).outcome().await), [2]);
}

#[tokio::test(start_paused = true)]
async fn unknown_error_is_unavailable_until_a_write_succeeds() {
    let running = Running::start(FakeSink::default());
    running.until_ready().await;
    running.send(&["puzzling"]).outcome().await;
    assert_eq!(running.state(), ComponentState::Unavailable { reason: "hm".into() });
    assert_eq!(running.send(&["a"]).outcome().await, Outcome::Delivered, "the next ones are tried all the same");
    assert_eq!(running.state(), ComponentState::Ready);
}

#[tokio::test(start_paused = true)]
async fn passing_unknown_error_is_waited_for() {
    let puzzling = WriteError::Unknown { reason: "hm".into() };
    let running =
        Running::start(FakeSink { writes: Mutex::new([puzzling.clone(), puzzling].into()), ..FakeSink::default() });
    assert_eq!(running.send(&["a"]).outcome().await, Outcome::Delivered);
}

#[tokio::test(start_paused = true)]
async fn shutdown_cuts_pauses_short() {
    let running =
        Running::start(FakeSink { writes: Mutex::new(vec![unavailable(); 1000].into()), ..FakeSink::default() });
    running.shutdown.cancel();
    let started = Instant::now();
    assert_eq!(running.send(&["a"]).outcome().await, Outcome::failed("unavailable"));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn permanently_unready_sink_ends_the_writer() {
    let running = Running::start(FakeSink {
        prepares: Mutex::new([WriteError::reject("the schema is newer")].into()),
        ..FakeSink::default()
    });
    assert_eq!(running.writer.await.unwrap().unwrap_err().to_string(), "the schema is newer");
}

#[tokio::test(start_paused = true)]
async fn idle_check_finds_an_outage() {
    let running = Running::start(FakeSink::default());
    running.until_ready().await;
    running.sink.prepares.lock().unwrap().extend(vec![unavailable(); 10]);
    while running.state() == ComponentState::Ready {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(running.queue);
    running.writer.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_outcome_is_counted() {
    let running =
        Running::start(FakeSink { writes: Mutex::new([unavailable(), unavailable()].into()), ..FakeSink::default() });
    running.send(&["a", "known", "refused"]).outcome().await;
    let numbers = || {
        let counts = running.counters.counts();
        ([counts.delivered, counts.duplicates, counts.rejected, counts.failed, counts.in_flight], counts.retried)
    };
    assert_eq!(numbers(), ([2, 1, 1, 0, 0], 2));
    running.sink.writes.lock().unwrap().extend(vec![unavailable(); 1000]);
    running.sink.prepares.lock().unwrap().extend(vec![unavailable(); 1000]);
    let receipts = [running.send(&["b"]), running.send(&["c", "d"])];
    for receipt in receipts {
        receipt.outcome().await;
    }
    assert_eq!(numbers().0, [2, 1, 1, 3, 0]);
    running.send(&["e"]).outcome().await;
    assert_eq!(numbers().0, [2, 1, 1, 4, 0], "what is not even tried counts, too");
}

#[tokio::test(start_paused = true)]
async fn dead_letter_is_stored_before_the_delivery_settles() {
    let store = Arc::new(FakeStore { failures: Mutex::new(3), ..FakeStore::default() });
    let running = Running::start_over(FakeSink::default(), 0, Some(store.clone()));
    let outcome = running.send(&["a", "refused", "b"]).outcome().await;
    assert_eq!(rejected(&outcome), [1]);
    assert_eq!(*store.keys.lock().unwrap(), ["8.fake"]);
    assert_eq!(running.sink.stored.lock().unwrap().len(), 2, "the sink is not asked again");
}

#[tokio::test(start_paused = true)]
async fn shutdown_fails_events_without_their_dead_letters() {
    let store = Arc::new(FakeStore { failures: Mutex::new(usize::MAX), ..FakeStore::default() });
    let running = Running::start_over(FakeSink::default(), 0, Some(store));
    running.shutdown.cancel();
    let outcome = running.send(&["refused"]).outcome().await;
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
}
