//! A bounded queue in memory, one for each sink.
//!
//! A receipt settles once every sink has settled the events, so events that are lost with the process were never
//! acknowledged. The bound covers queued events and those that a sink is writing. Read [`MemoryConfig`] first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::budget::ByteBudget;
use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::transport::{
    BatchLimits, Custody, Delivery, PublishError, Subscription, Transport, TransportConfig, TransportError,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// The settings below `[transport]` with `type = "memory"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct MemoryConfig {
    /// The most bytes of events that are queued or being written, with 256 bytes more for each event.
    #[serde(deserialize_with = "eye_core::config::at_least_one")]
    pub max_bytes: u32,
    /// The longest wait of a request for capacity before it is refused.
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
        Ok(Box::new(MemoryTransport::new(&self)))
    }
}

/// The memory of an event beside its texts, rounded up: its entries in two queues, its allocation, its share of an ack.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// The time after which a refused producer may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

struct MemoryTransport {
    max_wait: Duration,
    /// Reserved bytes return when the ack is settled.
    budget: ByteBudget,
    /// `None` once the transport is closed.
    queues: RwLock<Option<Vec<ConsumerQueue>>>,
    /// By consumer.
    counts: RwLock<BTreeMap<String, Arc<QueueCounts>>>,
}

struct ConsumerQueue {
    /// Bounded by the budget.
    sender: mpsc::UnboundedSender<Delivery>,
    counts: Arc<QueueCounts>,
}

impl ConsumerQueue {
    /// Queues a delivery. If the consumer's writer is gone, the delivery is dropped, which fails its ack.
    fn send(&self, events: Vec<Event>, ack: Ack) {
        let count = events.len() as u64;
        self.counts.taken.fetch_add(count, Relaxed);
        if self.sender.send(Delivery { events, ack, position: None }).is_err() {
            self.counts.settled.fetch_add(count, Relaxed);
        }
    }
}

/// The number of one consumer's events since startup.
#[derive(Default)]
struct QueueCounts {
    taken: AtomicU64,
    settled: AtomicU64,
}

impl MemoryTransport {
    fn new(config: &MemoryConfig) -> Self {
        Self {
            max_wait: Duration::from_millis(config.max_wait_ms),
            budget: ByteBudget::new(config.max_bytes),
            queues: RwLock::new(Some(Vec::new())),
            counts: RwLock::default(),
        }
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
        let bytes = events.iter().map(|event| event.size_bytes() + EVENT_OVERHEAD_BYTES).sum();
        let reservation = self.budget.reserve_within(bytes, self.max_wait).await;
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queues) = queues.as_deref() else { return Err(PublishError::Closed) };
        let Some(reservation) = reservation else {
            let reason = format!("the queue holds {} bytes (transport.max_bytes)", self.budget.max_bytes());
            return Err(PublishError::Full { reason, retry_after: RETRY_AFTER });
        };
        let ack = Ack::new(move |outcome| {
            drop(reservation);
            settle(outcome);
        });
        // Without a queue the ack is dropped, which fails the events.
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
        let counts = Arc::new(QueueCounts::default());
        match self.queues.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(queues) => queues.push(ConsumerQueue { sender, counts: counts.clone() }),
            None => return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed"))),
        }
        self.counts.write().unwrap_or_else(PoisonError::into_inner).insert(consumer.to_owned(), counts.clone());
        Ok(Box::new(MemorySubscription { queue, ahead: None, in_flight: 0, counts }))
    }

    fn close(&self) {
        self.queues.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn custody(&self, consumer: &str) -> Custody {
        let counts = self.counts.read().unwrap_or_else(PoisonError::into_inner);
        let Some(counts) = counts.get(consumer) else { return Custody::default() };
        // In this order: events that arrive between the two reads count as pending.
        let settled = counts.settled.load(Relaxed);
        let taken = counts.taken.load(Relaxed);
        Custody { taken, pending: taken.saturating_sub(settled), ..Custody::default() }
    }
}

struct MemorySubscription {
    queue: mpsc::UnboundedReceiver<Delivery>,
    /// Received, but too large for the last batch.
    ahead: Option<Delivery>,
    /// Events of the last batch. They are settled once the next batch is asked for.
    in_flight: u64,
    counts: Arc<QueueCounts>,
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        self.counts.settled.fetch_add(std::mem::take(&mut self.in_flight), Relaxed);
        let first = match self.ahead.take() {
            Some(delivery) => delivery,
            None => self.queue.recv().await?,
        };
        let deadline = Instant::now() + limits.max_wait;
        let mut events = first.events.len();
        let mut bytes = size_bytes(&first);
        let mut deliveries = vec![first];
        while events < limits.max_events && bytes < limits.max_bytes {
            let Some(delivery) = self.next_by(deadline).await else { break };
            events += delivery.events.len();
            bytes += size_bytes(&delivery);
            if events > limits.max_events || bytes > limits.max_bytes {
                self.ahead = Some(delivery);
                break;
            }
            deliveries.push(delivery);
        }
        self.in_flight = deliveries.iter().map(|delivery| delivery.events.len() as u64).sum();
        Some(deliveries)
    }
}

impl MemorySubscription {
    /// Returns the next delivery; `None` if none arrives by the deadline, or the queue is closed.
    async fn next_by(&mut self, deadline: Instant) -> Option<Delivery> {
        if let Ok(delivery) = self.queue.try_recv() {
            return Some(delivery);
        }
        timeout_at(deadline, self.queue.recv()).await.ok().flatten()
    }
}

fn size_bytes(delivery: &Delivery) -> usize {
    delivery.events.iter().map(Event::size_bytes).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::testkit::{self, events};

    use super::*;

    const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024, max_wait: Duration::ZERO };

    fn transport(max_bytes: u32, max_wait_ms: u64) -> MemoryTransport {
        MemoryTransport::new(&MemoryConfig { max_bytes, max_wait_ms })
    }

    #[tokio::test]
    async fn memory_transport_conforms() {
        testkit::transport::suite(async || {
            MemoryConfig::default().build(&BuildContext::standalone("transport")).await.unwrap()
        })
        .await;
    }

    #[tokio::test]
    async fn receipt_has_worst_outcome_of_all_sinks() {
        let transport = transport(100_000, 10);
        let mut first = transport.subscribe("first").await.unwrap();
        let mut second = transport.subscribe("second").await.unwrap();
        let receipt = transport.publish(events(0, 1)).await.unwrap();
        first.receive(WIDE).await.unwrap().pop().unwrap().ack.settle(Outcome::Delivered);
        let mut waiting = std::pin::pin!(receipt.outcome());
        assert!(is_pending(waiting.as_mut()));
        second.receive(WIDE).await.unwrap().pop().unwrap().ack.settle(Outcome::failed("unavailable"));
        assert_eq!(waiting.await, Outcome::failed("unavailable"));
    }

    fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
    }

    #[tokio::test]
    async fn unsettled_events_use_up_the_budget() {
        let request = events(0, 10);
        let transport = transport(10 * 400, 20);
        let mut subscription = transport.subscribe("only").await.unwrap();
        transport.publish(request.clone()).await.unwrap();
        let taken = subscription.receive(WIDE).await.unwrap();
        let started = Instant::now();
        let refused = transport.publish(request.clone()).await.unwrap_err();
        assert!(matches!(refused, PublishError::Full { .. }), "{refused:?}");
        assert!(started.elapsed() >= Duration::from_millis(20), "it waits for capacity first");
        drop(taken);
        transport.publish(request).await.unwrap();
    }

    #[tokio::test]
    async fn request_above_the_budget_is_taken_alone() {
        let transport = transport(1000, 20);
        let mut subscription = transport.subscribe("only").await.unwrap();
        transport.publish(events(0, 100)).await.unwrap();
        assert!(matches!(transport.publish(events(0, 1)).await, Err(PublishError::Full { .. })));
        assert_eq!(subscription.receive(WIDE).await.unwrap()[0].events.len(), 100);
    }

    #[tokio::test]
    async fn dropped_subscription_fails_its_events() {
        let transport = transport(100_000, 10);
        drop(transport.subscribe("only").await.unwrap());
        let receipt = transport.publish(events(0, 1)).await.unwrap();
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }

    #[tokio::test]
    async fn events_without_subscriber_fail() {
        let receipt = transport(100_000, 10).publish(events(0, 1)).await.unwrap();
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn batch_gathers_deliveries_for_max_wait() {
        let transport = transport(100_000, 10);
        let mut subscription = transport.subscribe("only").await.unwrap();
        let publishing = async {
            for n in 0..5 {
                transport.publish(events(n, n + 1)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        };
        let limits = BatchLimits { max_wait: Duration::from_millis(100), ..WIDE };
        let ((), received) = tokio::join!(publishing, subscription.receive(limits));
        assert_eq!(received.unwrap().len(), 3);
    }
}
