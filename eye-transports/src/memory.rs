//! A bounded queue in memory, one for each sink. A receipt settles when every sink has written the events, so what is
//! lost with the process was never acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::transport::BatchLimits;
use eye_core::transport::{Custody, Delivery, PublishError, Subscription, Transport, TransportConfig, TransportError};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};

/// What operators write below `[transport]` with `type = "memory"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct MemoryConfig {
    /// Bytes of events that may be queued or being written at once, counting 256 bytes more for each event.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_bytes: u32,
    /// How long a request waits for room before it is told that there is none.
    pub max_wait_ms: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_bytes: 32 * 1024 * 1024, max_wait_ms: 500 }
    }
}

impl TransportConfig for MemoryConfig {
    const TYPE: &'static str = "memory";

    async fn build(self, _context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        Ok(Box::new(MemoryTransport::new(self)))
    }
}

/// What an event takes beside its texts: itself in two queues, its allocation, its share of an ack. Rounded up.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// When a producer that found no room may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

struct MemoryTransport {
    config: MemoryConfig,
    // A permit a byte, given back when the ack is settled: the bound covers what is queued and what is being written.
    room: Arc<Semaphore>,
    // `None` once the transport is closed.
    queues: RwLock<Option<Vec<Queue>>>,
    // By consumer.
    counts: RwLock<BTreeMap<String, Arc<Counts>>>,
}

struct Queue {
    // Its length is bounded by `room`.
    sender: mpsc::UnboundedSender<Delivery>,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue whose writer is gone drops its delivery, and with it fails the ack.
    fn send(&self, events: Vec<Event>, ack: Ack) {
        let count = events.len() as u64;
        self.counts.taken.fetch_add(count, Relaxed);
        if self.sender.send(Delivery { events, ack, position: None }).is_err() {
            self.counts.settled.fetch_add(count, Relaxed);
        }
    }
}

/// One consumer's events so far.
#[derive(Default)]
struct Counts {
    taken: AtomicU64,
    settled: AtomicU64,
}

impl MemoryTransport {
    fn new(config: MemoryConfig) -> Self {
        let room = Arc::new(Semaphore::new(config.max_bytes as usize));
        Self { config, room, queues: RwLock::new(Some(Vec::new())), counts: RwLock::default() }
    }

    /// What the events take of the room; all of it for a request that is larger.
    fn cost(&self, events: &[Event]) -> u32 {
        let bytes: usize = events.iter().map(|event| event.size_bytes() + EVENT_OVERHEAD_BYTES).sum();
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.config.max_bytes)
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        let (settle, receipt) = Receipt::pair();
        if events.is_empty() {
            settle(Outcome::Delivered);
            return Ok(receipt);
        }
        let room = self.room.clone().acquire_many_owned(self.cost(&events));
        let permit = match tokio::time::timeout(Duration::from_millis(self.config.max_wait_ms), room).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(PublishError::Closed),
            Err(_elapsed) => {
                let reason = format!("the queue holds {} bytes (transport.max_bytes)", self.config.max_bytes);
                return Err(PublishError::Full { reason, retry_after: RETRY_AFTER });
            }
        };
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queues) = queues.as_deref() else { return Err(PublishError::Closed) };
        let ack = Ack::new(move |outcome| {
            drop(permit);
            settle(outcome);
        });
        // Having no queue at all drops the ack, which fails.
        if let Some((last, others)) = queues.split_last() {
            for queue in others {
                queue.send(events.clone(), ack.clone());
            }
            last.send(events, ack);
        }
        Ok(receipt)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        let (sender, queue) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        match self.queues.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(queues) => queues.push(Queue { sender, counts: counts.clone() }),
            None => return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed"))),
        }
        self.counts.write().unwrap_or_else(PoisonError::into_inner).insert(consumer.to_owned(), counts.clone());
        Ok(Box::new(MemorySubscription { queue, ahead: None, given: 0, counts }))
    }

    fn close(&self) {
        self.room.close();
        self.queues.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn custody(&self, consumer: &str) -> Custody {
        let counts = self.counts.read().unwrap_or_else(PoisonError::into_inner);
        let Some(counts) = counts.get(consumer) else { return Custody::default() };
        // In this order, so that what comes in between is pending.
        let settled = counts.settled.load(Relaxed);
        let taken = counts.taken.load(Relaxed);
        Custody { taken, pending: taken.saturating_sub(settled), ..Custody::default() }
    }
}

struct MemorySubscription {
    queue: mpsc::UnboundedReceiver<Delivery>,
    // Taken from the queue, but too much for the batch before.
    ahead: Option<Delivery>,
    // Events of the last batch: settled, once the next is asked for.
    given: u64,
    counts: Arc<Counts>,
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        self.counts.settled.fetch_add(std::mem::take(&mut self.given), Relaxed);
        let first = match self.ahead.take() {
            Some(delivery) => delivery,
            None => self.queue.recv().await?,
        };
        let mut events = first.events.len();
        let mut bytes = size_bytes(&first);
        let mut deliveries = vec![first];
        while let Ok(delivery) = self.queue.try_recv() {
            events += delivery.events.len();
            bytes += size_bytes(&delivery);
            if events > limits.max_events || bytes > limits.max_bytes {
                self.ahead = Some(delivery);
                break;
            }
            deliveries.push(delivery);
        }
        self.given = deliveries.iter().map(|delivery| delivery.events.len() as u64).sum();
        Some(deliveries)
    }
}

fn size_bytes(delivery: &Delivery) -> usize {
    delivery.events.iter().map(Event::size_bytes).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Instant;

    use eye_core::testkit::{self, events};

    use super::*;

    const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024 };

    fn transport(max_bytes: u32, max_wait_ms: u64) -> MemoryTransport {
        MemoryTransport::new(MemoryConfig { max_bytes, max_wait_ms })
    }

    #[tokio::test]
    async fn conforms() {
        testkit::transport::suite(async || MemoryConfig::default().build().await.unwrap()).await;
    }

    #[tokio::test]
    async fn a_receipt_waits_for_every_sink_and_the_worst_outcome_wins() {
        let transport = transport(100_000, 10);
        let mut first = transport.subscribe("first").await.unwrap();
        let mut second = transport.subscribe("second").await.unwrap();
        let receipt = transport.publish(events(0, 1)).await.unwrap();
        first.receive(WIDE).await.unwrap().pop().unwrap().ack.settle(Outcome::Delivered);
        let mut waiting = std::pin::pin!(receipt.outcome());
        assert!(futures_are_pending(waiting.as_mut()));
        second.receive(WIDE).await.unwrap().pop().unwrap().ack.settle(Outcome::failed("away"));
        assert_eq!(waiting.await, Outcome::failed("away"));
    }

    fn futures_are_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn what_is_being_written_takes_room_until_it_is_settled() {
        let request = events(0, 10);
        let transport = transport(10 * 400, 20);
        let mut subscription = transport.subscribe("only").await.unwrap();
        transport.publish(request.clone()).await.unwrap();
        let taken = subscription.receive(WIDE).await.unwrap();
        let started = Instant::now();
        let refused = transport.publish(request.clone()).await.unwrap_err();
        assert!(matches!(refused, PublishError::Full { .. }), "{refused:?}");
        assert!(started.elapsed() >= Duration::from_millis(20), "it waits for room first");
        drop(taken);
        transport.publish(request).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_larger_than_the_room_is_taken_alone() {
        let transport = transport(1000, 20);
        let mut subscription = transport.subscribe("only").await.unwrap();
        transport.publish(events(0, 100)).await.unwrap();
        assert!(matches!(transport.publish(events(0, 1)).await, Err(PublishError::Full { .. })));
        assert_eq!(subscription.receive(WIDE).await.unwrap()[0].events.len(), 100);
    }

    #[tokio::test]
    async fn a_writer_that_is_gone_fails_the_events() {
        let transport = transport(100_000, 10);
        drop(transport.subscribe("only").await.unwrap());
        let receipt = transport.publish(events(0, 1)).await.unwrap();
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }

    #[tokio::test]
    async fn with_no_subscriber_nothing_is_delivered() {
        let receipt = transport(100_000, 10).publish(events(0, 1)).await.unwrap();
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }
}
