use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::ack::{Ack, Receipt, Rejection};
use crate::event::Event;
use crate::health::HealthBoard;
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
    let book = outlet.account().book();
    [book.received, book.accepted, book.rejected, book.failed, book.waiting]
}

fn rejection(index: usize) -> Rejection {
    Rejection { index, reason: "bad".into() }
}

#[tokio::test]
async fn a_source_has_each_event_in_one_place_whatever_becomes_of_it() {
    let (outlet, transport) = outlet(FakeTransport::default());
    for (outcome, expected) in [
        (Outcome::Delivered, [4, 4, 0, 0, 0]),
        (Outcome::Rejected(vec![rejection(0), rejection(2)]), [8, 6, 2, 0, 0]),
        (Outcome::failed("away"), [12, 6, 2, 4, 0]),
    ] {
        let receipt = outlet.publish(events(0, 4)).await.unwrap();
        assert_eq!(numbers(&outlet)[4], 4, "it waits");
        transport.acks.lock().unwrap().pop().unwrap().settle(outcome);
        receipt.outcome().await;
        assert_eq!(numbers(&outlet), expected);
    }
    assert_eq!(outlet.account().book().refusals, [("event: refused by the sink".to_owned(), 2)].into());
}

#[tokio::test]
async fn a_receipt_that_nobody_waits_for_any_longer_has_failed_even_if_it_is_settled_later() {
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
async fn what_the_transport_does_not_take_has_failed() {
    let (full, _) = outlet(FakeTransport { refuses: true, ..FakeTransport::default() });
    full.publish(events(0, 4)).await.unwrap_err();
    assert_eq!(numbers(&full), [4, 0, 0, 4, 0]);
    let (hanging, _) = outlet(FakeTransport { hangs: true, ..FakeTransport::default() });
    let publishing = hanging.publish(events(0, 4));
    tokio::time::timeout(std::time::Duration::from_millis(1), publishing).await.unwrap_err();
    assert_eq!(numbers(&hanging), [4, 0, 0, 4, 0]);
}

#[tokio::test]
async fn what_the_gate_refuses_counts_once_an_event_and_once_a_fault() {
    let (outlet, _) = outlet(FakeTransport::default());
    let fault = |part| Refusal { part, problem: "missing" };
    outlet.reject(2, [fault("name"), fault("data"), fault("name")]);
    outlet.refusals().note([Refusal { part: "body", problem: "not JSON" }]);
    assert_eq!(numbers(&outlet), [2, 0, 2, 0, 0]);
    let expected = [("body: not JSON", 1), ("data: missing", 1), ("name: missing", 2)];
    let expected = expected.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(outlet.account().book().refusals, expected.into());
}

#[test]
fn a_sink_has_each_event_in_one_place() {
    let account = SinkAccount::default();
    account.begin(12);
    account.settle(4, &Outcome::Delivered);
    account.settle(4, &Outcome::Rejected(vec![rejection(1)]));
    let book = account.book(Custody::default());
    assert_eq!((book.delivered, book.rejected, book.failed, book.in_flight), (7, 1, 0, 4));
    account.settle(4, &Outcome::failed("away"));
    let book = account.book(Custody::default());
    assert_eq!((book.delivered, book.rejected, book.failed, book.in_flight), (7, 1, 4, 0));
}

/// Books that balance: of 20 events read, 12 were accepted and 3 rejected by the sink.
fn books(durable: bool) -> Books {
    let source = SourceBook { received: 20, accepted: 12, rejected: 5, failed: 2, waiting: 1, ..SourceBook::default() };
    let custody = Custody { taken: 17, pending: 1, ..Custody::default() };
    let sink = SinkBook { custody, delivered: 12, rejected: 3, failed: 1, ..SinkBook::default() };
    let mut books = Books {
        sources: [("web".to_owned(), source)].into(),
        transport: TransportBook { durable, shared: false },
        sinks: [("store".to_owned(), sink)].into(),
    };
    if durable {
        // One more try that failed changes nothing there.
        sink_of(&mut books).failed = 99;
        sink_of(&mut books).custody = Custody { taken: 18, at_start: 3, pending: 1, missing: 2, in_stream: None };
    }
    books
}

fn source_of(books: &mut Books) -> &mut SourceBook {
    books.sources.get_mut("web").unwrap()
}

fn sink_of(books: &mut Books) -> &mut SinkBook {
    books.sinks.get_mut("store").unwrap()
}

#[test]
fn books_that_balance_have_nothing_to_say() {
    for durable in [false, true] {
        assert_eq!(books(durable).imbalances(), [""; 0]);
    }
}

#[test]
fn each_number_of_an_equation_counts() {
    let changes: [fn(&mut Books); 11] = [
        |books| source_of(books).received += 1,
        |books| source_of(books).accepted -= 1,
        |books| source_of(books).rejected += 1,
        |books| source_of(books).failed += 1,
        |books| source_of(books).waiting += 1,
        |books| sink_of(books).custody.taken -= 1,
        |books| sink_of(books).custody.pending += 1,
        |books| sink_of(books).custody.missing += 1,
        |books| sink_of(books).delivered -= 1,
        |books| sink_of(books).rejected += 1,
        |books| sink_of(books).delivered = u64::MAX,
    ];
    for durable in [false, true] {
        for (number, change) in changes.into_iter().enumerate() {
            let mut books = books(durable);
            change(&mut books);
            assert_eq!(books.imbalances().len(), 1, "durable: {durable}, change {number}");
        }
    }
    let mut books = books(false);
    sink_of(&mut books).failed += 1;
    let expected = "sinks.store: 17 taken, but 12 delivered + 3 rejected + 2 failed + 0 missing + 1 pending";
    assert_eq!(books.imbalances(), [expected]);
}

#[test]
fn more_accepted_than_taken_is_a_loss_unless_programs_share_the_transport() {
    let mut books = books(true);
    source_of(&mut books).received += 3;
    source_of(&mut books).accepted += 3;
    assert_eq!(books.imbalances(), [""; 0], "as many as were taken since the start");
    source_of(&mut books).received += 1;
    source_of(&mut books).accepted += 1;
    let expected = "sinks.store: 18 taken, 3 of them at the start, but the sources have accepted 16";
    assert_eq!(books.imbalances(), [expected]);
    books.transport.shared = true;
    assert_eq!(books.imbalances(), [""; 0]);
}

#[tokio::test]
async fn the_books_have_every_component_by_its_name() {
    let (outlet, transport) = outlet(FakeTransport::default());
    let sinks = vec![("store".to_owned(), Arc::new(SinkAccount::default()))];
    let accounts = Accounts { sources: vec![("web".to_owned(), outlet.account().clone())], transport, sinks };
    outlet.reject(1, []);
    let books = accounts.books();
    assert_eq!((books.sources["web"].received, books.sinks["store"].custody.taken), (1, 7));
    let json = serde_json::to_string(&books).unwrap();
    assert_eq!(serde_json::from_str::<Books>(&json).unwrap(), books);
}
