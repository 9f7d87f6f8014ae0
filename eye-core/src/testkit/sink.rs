//! The conformance suite for sinks: what the writer relies on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{assert_same_events, event, event_with, events};
use crate::ack::{Ack, Outcome, Receipt};
use crate::event::Event;
use crate::filter::SinkFilter;
use crate::health::HealthBoard;
use crate::refusals::Refusals;
use crate::sink::{BuiltSink, Sink, WriteError};
use crate::transport::{BatchLimits, Delivery, Subscription};
use crate::writer::{Writer, WriterConfig};

/// One storage of the kind that the sink writes to, empty at first, that can be read without the sink.
#[async_trait]
pub trait SinkFixture: Send + Sync {
    /// Opens a sink over this storage. Opened again after `close`, it finds the events written before.
    async fn open(&self) -> BuiltSink;

    /// Returns every event in the storage.
    async fn stored(&self) -> Vec<Event>;

    /// Makes the storage refuse every event of this name for good, as a database's CHECK constraint does. `false` for
    /// a sink that never refuses: the case is skipped.
    async fn refuse(&self, _name: &str) -> bool {
        false
    }

    /// Makes the storage unavailable. `false` for a sink whose storage cannot be: the case is skipped.
    async fn become_unavailable(&self) -> bool {
        false
    }

    /// Makes the storage available again after [`become_unavailable`](SinkFixture::become_unavailable).
    async fn become_available(&self) {}
}

/// Runs every case, each on a fixture of its own.
///
/// # Panics
/// At the first case that does not hold.
pub async fn suite<F: SinkFixture + 'static>(new_fixture: impl AsyncFn() -> F) {
    macro_rules! run {
        ($($case:ident)*) => { $(
            println!("sink suite: {}", stringify!($case));
            $case(Arc::new(new_fixture().await)).await;
        )* };
    }
    run! {
        all_written
        an_empty_batch_is_fine
        the_same_batch_twice_is_stored_once
        one_event_twice_in_a_batch_is_stored_once
        the_same_batch_after_a_restart_is_stored_once
        the_same_id_at_another_time_is_another_event
        ten_thousand_events
        unicode_and_large_events
        odd_sizes_of_batches
        concurrent_writes
        refused_event_is_isolated
        an_outage_ends
        close_flushes
    }
}

async fn open(fixture: &impl SinkFixture) -> Arc<dyn Sink> {
    let sink = fixture.open().await.sink;
    sink.prepare().await.unwrap();
    sink
}

async fn all_written(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let batch = events(0, 100);
    sink.write(&batch).await.unwrap();
    assert_same_events(&fixture.stored().await, &batch);
}

async fn an_empty_batch_is_fine(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    sink.write(&[]).await.unwrap();
    assert_same_events(&fixture.stored().await, &[]);
}

async fn the_same_batch_twice_is_stored_once(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let batch = events(0, 50);
    for (batch, known) in [(&batch[..], 0), (&batch, 50), (&events(25, 75), 25)] {
        let duplicates = sink.write(batch).await.unwrap().duplicates;
        assert!([0, known].contains(&duplicates), "{duplicates} duplicates of {known}: a sink that cannot tell says 0");
    }
    assert_same_events(&fixture.stored().await, &events(0, 75));
}

async fn one_event_twice_in_a_batch_is_stored_once(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let first = event_with(0, "first", "1");
    let others = (1..60).flat_map(|number| [event(number), event_with(0, "later", "2")]);
    let batch: Vec<_> = [first.clone()].into_iter().chain(others).collect();
    sink.write(&batch).await.unwrap();
    assert_same_events(&fixture.stored().await, &[vec![first], events(1, 60)].concat());
}

async fn the_same_batch_after_a_restart_is_stored_once(fixture: Arc<impl SinkFixture>) {
    for _ in 0..2 {
        let sink = open(&*fixture).await;
        sink.write(&events(0, 50)).await.unwrap();
        sink.close().await.unwrap();
    }
    assert_same_events(&fixture.stored().await, &events(0, 50));
}

async fn the_same_id_at_another_time_is_another_event(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let first = event(1);
    let later = Event::from(crate::event::EventFields {
        id: first.id(),
        timestamp: super::timestamp(2),
        received_at: first.received_at(),
        session_id: first.session_id(),
        category: first.category(),
        name: first.name(),
        data: first.data(),
        origin: first.origin(),
    });
    let batch = [first, later];
    sink.write(&batch).await.unwrap();
    assert_same_events(&fixture.stored().await, &batch);
}

async fn ten_thousand_events(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let batch = events(0, 10_000);
    sink.write(&batch).await.unwrap();
    assert_same_events(&fixture.stored().await, &batch);
}

async fn unicode_and_large_events(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let widest = "🦀".repeat(150);
    let large = format!(r#""{}""#, "x".repeat(1024 * 1024 - 2));
    let batch = [
        event_with(0, "naïve ☃ 日本語 🦀 \u{1} ' \" \\ % _ ; -- \u{10ffff}", r#"{"☃":"🦀\ud83e\udd80\n"}"#),
        event_with(1, &widest, "12345678901234567890"),
        event_with(2, " leading and trailing ", "1.10"),
        event_with(3, "large", &large),
        event_with(4, "e\u{301}", r#"{"b":1,"a":[1e3,-0.0,null,true],"b":2}"#),
    ];
    sink.write(&batch).await.unwrap();
    assert_same_events(&fixture.stored().await, &batch);
}

async fn odd_sizes_of_batches(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    let mut next = 0;
    for size in [1, 2, 3, 7, 8, 9, 63, 64, 65, 127, 129, 500, 513, 1001] {
        sink.write(&events(next, next + size)).await.unwrap();
        next += size;
    }
    assert_same_events(&fixture.stored().await, &events(0, next));
}

async fn concurrent_writes(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    for part in 0..20 {
        let batch = events(part * 20, part * 20 + 40);
        let neighbours = events(part * 20 + 10, part * 20 + 50);
        // The same events in another order, which is how databases come to a deadlock.
        let reversed = batch.iter().rev().cloned().collect();
        let writes = [batch.clone(), batch, neighbours, reversed].map(|batch| {
            let sink = sink.clone();
            tokio::spawn(async move {
                // A store may ask to try again, as databases do at a deadlock.
                loop {
                    match sink.write(&batch).await {
                        Ok(_) => break,
                        Err(WriteError::Retry { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        });
        for write in writes {
            write.await.unwrap();
        }
    }
    assert_same_events(&fixture.stored().await, &events(0, 430));
}

async fn refused_event_is_isolated(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    if !fixture.refuse("refuse me").await {
        println!("sink suite: skipped, this sink refuses nothing");
        return;
    }
    let mut requests = vec![events(0, 400), events(400, 700), events(700, 1000)];
    requests[1][123] = event_with(523, "refuse me", "1");
    let outcomes = write(sink, requests.clone(), WriterConfig::default()).await;
    let Outcome::Rejected(rejected) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(rejected.iter().map(|rejection| rejection.index).collect::<Vec<_>>(), [123]);
    assert_eq!((&outcomes[0], &outcomes[2]), (&Outcome::Delivered, &Outcome::Delivered));
    requests[1].remove(123);
    assert_same_events(&fixture.stored().await, &requests.concat());
}

async fn an_outage_ends(fixture: Arc<impl SinkFixture>) {
    let sink = open(&*fixture).await;
    sink.write(&events(0, 10)).await.unwrap();
    if !fixture.become_unavailable().await {
        println!("sink suite: skipped, this sink's storage cannot be unavailable");
        return;
    }
    let error = sink.write(&events(10, 20)).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry { .. }), "an outage is worth a retry: {error:?}");
    let error = sink.prepare().await.unwrap_err();
    assert!(matches!(error, WriteError::Retry { .. }), "an outage is worth a retry: {error:?}");
    fixture.become_available().await;
    // The same sink: a plug-in is not built a second time.
    let outcomes = write(sink, vec![events(10, 20)], WriterConfig::default()).await;
    assert_eq!(outcomes, [Outcome::Delivered]);
    assert_same_events(&fixture.stored().await, &events(0, 20));
}

async fn close_flushes(fixture: Arc<impl SinkFixture>) {
    for part in 0..2 {
        let sink = open(&*fixture).await;
        sink.write(&events(part * 10, part * 10 + 10)).await.unwrap();
        sink.close().await.unwrap();
    }
    assert_same_events(&fixture.stored().await, &events(0, 20));
}

/// Sends requests through the writer into a sink, as one batch if its limits allow. Returns each request's outcome.
pub async fn write(sink: Arc<dyn Sink>, requests: Vec<Vec<Event>>, config: WriterConfig) -> Vec<Outcome> {
    let mut receipts = Vec::new();
    let mut deliveries = Vec::new();
    for events in requests {
        let (settle, receipt) = Receipt::pair();
        deliveries.push(Delivery { events, ack: Ack::new(settle), position: None });
        receipts.push(receipt);
    }
    let health = HealthBoard::default().component("sinks.test");
    let writer = Writer {
        sink,
        refusals: Refusals::new(health.name()),
        health,
        counters: Arc::default(),
        filter: SinkFilter::default(),
        limits: config.batch_limits(Duration::ZERO),
        retry_for: config.retry_for(),
        dead_letters: None,
        shutdown: CancellationToken::new(),
    };
    writer.run(Box::new(Prepared(Some(deliveries)))).await.unwrap();
    let mut outcomes = Vec::new();
    for receipt in receipts {
        outcomes.push(receipt.outcome().await);
    }
    outcomes
}

/// A subscription that delivers one batch.
struct Prepared(Option<Vec<Delivery>>);

#[async_trait]
impl Subscription for Prepared {
    async fn receive(&mut self, _limits: BatchLimits) -> Option<Vec<Delivery>> {
        self.0.take()
    }
}

#[cfg(test)]
mod tests;
