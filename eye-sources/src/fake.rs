//! A transport with a scripted reaction, for the tests of sources.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::event::{DefaultTimestamp, Event, EventLimits, Origin, ParseContext};
use eye_core::timestamp::Timestamp;
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportError};

/// The transport's reaction to published events.
pub(crate) enum Told {
    Settle(Outcome),
    Refuse(PublishError),
    NeverSettle,
    NeverPublish,
}

pub(crate) struct FakeTransport {
    told: Mutex<Told>,
    pub(crate) published: Mutex<Vec<Event>>,
    pub(crate) held: Mutex<Vec<Ack>>,
    waiting: AtomicUsize,
}

impl FakeTransport {
    pub(crate) fn new(told: Told) -> Arc<Self> {
        Arc::new(Self {
            told: Mutex::new(told),
            published: Mutex::default(),
            held: Mutex::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    pub(crate) fn tell(&self, told: Told) {
        *self.told.lock().unwrap() = told;
    }

    /// Returns the number of publishes that wait for ever.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn published_names(&self) -> Vec<String> {
        self.published.lock().unwrap().iter().map(|event| event.name().to_owned()).collect()
    }
}

#[async_trait]
impl Transport for FakeTransport {
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        if matches!(*self.told.lock().unwrap(), Told::NeverPublish) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
        let told = self.told.lock().unwrap();
        if let Told::Refuse(error) = &*told {
            return Err(error.clone());
        }
        assert!(!events.is_empty(), "nothing to publish was published");
        self.published.lock().unwrap().extend(events);
        let (settle, receipt) = Receipt::pair();
        let ack = Ack::new(settle);
        match &*told {
            Told::Settle(outcome) => ack.settle(outcome.clone()),
            _ => self.held.lock().unwrap().push(ack),
        }
        Ok(receipt)
    }

    async fn subscribe(&self, _: &str) -> Result<Box<dyn Subscription>, TransportError> {
        unreachable!("a source does not subscribe")
    }

    fn close(&self) {}

    fn custody(&self, _: &str) -> Custody {
        unreachable!("a source does not ask")
    }
}

/// The context of events for tests of decoding.
pub(crate) fn parse_context() -> ParseContext {
    let origin = Arc::new(Origin::new("test", None));
    ParseContext {
        received_at: Timestamp::MIN,
        default_timestamp: DefaultTimestamp::ForEventsWithoutId(Timestamp::MIN),
        origin,
        limits: EventLimits::default(),
    }
}
