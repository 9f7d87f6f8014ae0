use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::ack::{Ack, Outcome, Receipt, Rejection};
use crate::event::Event;
use crate::health::HealthBoard;
use crate::refusals::Refusal;
use crate::source::Outlet;
use crate::testkit::events;
use crate::transport::{PublishError, Subscription, TransportError};

/// Hands out the acks of what is published, or takes nothing, or never answers.
#[derive(Default)]
struct FakeTransport {
    acks: Mutex<Vec<Ack>>,
    refuses: bool,
    hangs: bool,
}

#[async_trait]
impl Transport for FakeTransport {
    async fn publish(&self, _: Vec<Event>) -> Result<Receipt, PublishError> {
        if self.refuses {
            return Err(PublishError::Closed);
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let (settle, receipt) = Receipt::pair();
        self.acks.lock().unwrap().push(Ack::new(settle));
        Ok(receipt)
    }

    async fn subscribe(&self, _: &str) -> Result<Box<dyn Subscription>, TransportError> {
        unreachable!("nobody subscribes")
    }

    fn close(&self) {}

    fn custody(&self, _: &str) -> Custody {
        Custody { taken: 7, ..Custody::default() }
    }
}

fn outlet(transport: FakeTransport) -> (Outlet, Arc<FakeTransport>) {
    let transport = Arc::new(transport);
    (Outlet::new(transport.clone(), HealthBoard::default().component("sources.web")), transport)
}

/// Received, accepted, rejected, failed, waiting.
fn numbers(outlet: &Outlet) -> [u64; 5] {
    let counts = outlet.counters().counts();
    [counts.received, counts.accepted, counts.rejected, counts.failed, counts.waiting]
}

fn rejection(index: usize) -> Rejection {
    Rejection { index, reason: "bad".into() }
}

#[tokio::test]
async fn source_counts_each_event_once_for_every_outcome() {
    let (outlet, transport) = outlet(FakeTransport::default());
    for (outcome, expected) in [
        (Outcome::Delivered, [4, 4, 0, 0, 0]),
        (Outcome::Rejected(vec![rejection(0), rejection(2)]), [8, 6, 2, 0, 0]),
        (Outcome::failed("unavailable"), [12, 6, 2, 4, 0]),
    ] {
        let receipt = outlet.publish(events(0, 4)).await.unwrap();
        assert_eq!(numbers(&outlet)[4], 4, "it waits");
        transport.acks.lock().unwrap().pop().unwrap().settle(outcome);
        receipt.outcome().await;
        assert_eq!(numbers(&outlet), expected);
    }
    assert_eq!(outlet.counters().counts().refusals, [("event: refused by the sink".to_owned(), 2)].into());
}

#[tokio::test]
async fn abandoned_receipt_counts_as_failed() {
    let (outlet, transport) = outlet(FakeTransport::default());
    drop(outlet.publish(events(0, 4)).await.unwrap());
    assert_eq!(numbers(&outlet), [4, 0, 0, 4, 0]);
    let waiting = outlet.publish(events(0, 1)).await.unwrap().outcome();
    tokio::time::timeout(std::time::Duration::from_millis(1), waiting).await.unwrap_err();
    assert_eq!(numbers(&outlet), [5, 0, 0, 5, 0]);
    for ack in transport.acks.lock().unwrap().drain(..) {
        ack.settle(Outcome::Delivered);
    }
    assert_eq!(numbers(&outlet), [5, 0, 0, 5, 0]);
}

#[tokio::test]
async fn unpublished_events_count_as_failed() {
    let (full, _) = outlet(FakeTransport { refuses: true, ..FakeTransport::default() });
    full.publish(events(0, 4)).await.unwrap_err();
    assert_eq!(numbers(&full), [4, 0, 0, 4, 0]);
    let (hanging, _) = outlet(FakeTransport { hangs: true, ..FakeTransport::default() });
    let publishing = hanging.publish(events(0, 4));
    tokio::time::timeout(std::time::Duration::from_millis(1), publishing).await.unwrap_err();
    assert_eq!(numbers(&hanging), [4, 0, 0, 4, 0]);
}

#[tokio::test]
async fn invalid_events_and_their_faults_are_counted() {
    let (outlet, _) = outlet(FakeTransport::default());
    let fault = |part| Refusal { part, problem: "missing" };
    outlet.reject_invalid(2, [fault("name"), fault("data"), fault("name")]);
    outlet.refusals().note([Refusal { part: "body", problem: "not JSON" }]);
    assert_eq!(numbers(&outlet), [2, 0, 2, 0, 0]);
    let expected = [("body: not JSON", 1), ("data: missing", 1), ("name: missing", 2)];
    let expected = expected.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(outlet.counters().counts().refusals, expected.into());
}

#[test]
fn sink_counts_each_event_once() {
    let counters = SinkCounters::default();
    counters.begin(12);
    counters.settle(4, 0, &Outcome::Delivered);
    counters.settle(4, 0, &Outcome::Rejected(vec![rejection(1)]));
    let counts = counters.counts();
    assert_eq!((counts.delivered, counts.rejected, counts.failed, counts.in_flight), (7, 1, 0, 4));
    counters.settle(4, 0, &Outcome::failed("unavailable"));
    let counts = counters.counts();
    assert_eq!((counts.delivered, counts.rejected, counts.failed, counts.in_flight), (7, 1, 4, 0));
}

/// A balanced ledger: of 20 events read, 12 were accepted and 3 rejected by the sink.
fn ledger(durable: bool) -> Ledger {
    let source =
        SourceCounts { received: 20, accepted: 12, rejected: 5, failed: 2, waiting: 1, ..SourceCounts::default() };
    let custody = Custody { taken: 17, pending: 1, ..Custody::default() };
    let counts = SinkCounts { delivered: 10, rejected: 3, filtered: 2, failed: 1, ..SinkCounts::default() };
    let mut ledger = Ledger {
        sources: [("web".to_owned(), source)].into(),
        durable,
        shared: false,
        sinks: [("store".to_owned(), SinkLedger { custody, counts })].into(),
    };
    if durable {
        // One more try that failed changes nothing there.
        sink_of(&mut ledger).counts.failed = 99;
        sink_of(&mut ledger).custody = Custody { taken: 18, at_start: 3, pending: 1, missing: 2, shared_backlog: None };
    }
    ledger
}

fn source_of(ledger: &mut Ledger) -> &mut SourceCounts {
    ledger.sources.get_mut("web").unwrap()
}

fn sink_of(ledger: &mut Ledger) -> &mut SinkLedger {
    ledger.sinks.get_mut("store").unwrap()
}

#[test]
fn balanced_ledger_has_no_imbalance() {
    for durable in [false, true] {
        assert_eq!(ledger(durable).imbalances(), [""; 0]);
    }
}

#[test]
fn every_number_of_an_equation_counts() {
    let changes: [fn(&mut Ledger); 12] = [
        |ledger| source_of(ledger).received += 1,
        |ledger| source_of(ledger).accepted -= 1,
        |ledger| source_of(ledger).rejected += 1,
        |ledger| source_of(ledger).failed += 1,
        |ledger| source_of(ledger).waiting += 1,
        |ledger| sink_of(ledger).custody.taken -= 1,
        |ledger| sink_of(ledger).custody.pending += 1,
        |ledger| sink_of(ledger).custody.missing += 1,
        |ledger| sink_of(ledger).counts.delivered -= 1,
        |ledger| sink_of(ledger).counts.rejected += 1,
        |ledger| sink_of(ledger).counts.filtered += 1,
        |ledger| sink_of(ledger).counts.delivered = u64::MAX,
    ];
    for durable in [false, true] {
        for (number, change) in changes.into_iter().enumerate() {
            let mut ledger = ledger(durable);
            change(&mut ledger);
            assert_eq!(ledger.imbalances().len(), 1, "durable: {durable}, change {number}");
        }
    }
    let mut ledger = ledger(false);
    sink_of(&mut ledger).counts.failed += 1;
    let expected =
        "sinks.store: 17 taken, but 10 delivered + 3 rejected + 2 filtered + 2 failed + 0 missing + 1 pending";
    assert_eq!(ledger.imbalances(), [expected]);
}

#[test]
fn more_accepted_than_taken_is_an_imbalance() {
    let mut ledger = ledger(true);
    source_of(&mut ledger).received += 3;
    source_of(&mut ledger).accepted += 3;
    assert_eq!(ledger.imbalances(), [""; 0], "as many as were taken since the start");
    source_of(&mut ledger).received += 1;
    source_of(&mut ledger).accepted += 1;
    let expected = "sinks.store: 18 taken, 3 of them at the start, but the sources have accepted 16";
    assert_eq!(ledger.imbalances(), [expected]);
    ledger.shared = true;
    assert_eq!(ledger.imbalances(), [""; 0]);
}

#[tokio::test]
async fn ledger_has_every_component_by_name() {
    let (outlet, transport) = outlet(FakeTransport::default());
    let sinks = vec![("store".to_owned(), Arc::new(SinkCounters::default()))];
    let accounting = Accounting { sources: vec![("web".to_owned(), outlet.counters().clone())], transport, sinks };
    outlet.reject_invalid(1, []);
    let ledger = accounting.ledger();
    assert_eq!((ledger.sources["web"].received, ledger.sinks["store"].custody.taken), (1, 7));
}
