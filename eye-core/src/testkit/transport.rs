//! The conformance suite for transports: the obligations to sources and writers, durable or not.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{event, events};
use crate::ack::{Outcome, Rejection};
use crate::event::Event;
use crate::health::{ComponentState, HealthBoard};
use crate::transport::{BatchLimits, Custody, Delivery, PublishError, Subscription, Transport};

const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024, max_wait: Duration::ZERO };

/// Runs every case, each on a transport of its own, without anything in it.
///
/// # Panics
/// At the first case that does not hold.
pub async fn suite(new_transport: impl AsyncFn() -> Box<dyn Transport>) {
    macro_rules! run {
        ($($case:ident)*) => { $(
            println!("transport suite: {}", stringify!($case));
            $case(Arc::from(new_transport().await)).await;
        )* };
    }
    run! {
        every_subscriber_gets_every_event_in_order
        a_receipt_settles_once_all_is_delivered
        nothing_published_is_delivered_at_once
        a_batch_keeps_to_its_limits
        close_drains_and_then_refuses
        custody_has_each_event_until_it_is_settled_for_good
    }
}

/// The time within which a transport must take events.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Watches the transport as the pipeline does once all have subscribed, for as long as the handle lives. Waits until it
/// takes events.
async fn start(transport: &Arc<dyn Transport>) -> AbortOnDropHandle<()> {
    let board = HealthBoard::default();
    let (watched, health) = (transport.clone(), board.component("transport"));
    let watch = tokio::spawn(async move { panic!("the transport broke: {}", watched.watch(health).await) });
    let is_ready = async {
        while board.components()[0].state != ComponentState::Ready {
            assert!(!watch.is_finished(), "the transport broke");
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(READY_WITHIN, is_ready).await.expect("the transport becomes ready");
    AbortOnDropHandle::new(watch)
}

async fn drain(subscription: &mut dyn Subscription) -> Vec<Event> {
    let mut received = Vec::new();
    while let Some(deliveries) = subscription.receive(WIDE).await {
        received.extend(settle(deliveries));
    }
    received
}

fn settle(deliveries: Vec<Delivery>) -> Vec<Event> {
    let mut events = Vec::new();
    for delivery in deliveries {
        events.extend(delivery.events);
        delivery.ack.settle(Outcome::Delivered);
    }
    events
}

async fn every_subscriber_gets_every_event_in_order(transport: Arc<dyn Transport>) {
    let mut first = transport.subscribe("first").await.unwrap();
    let mut second = transport.subscribe("second").await.unwrap();
    let _watch = start(&transport).await;
    for n in 0..10 {
        transport.publish(events(n * 3, n * 3 + 3)).await.unwrap();
    }
    for subscription in [&mut first, &mut second] {
        let mut received = Vec::new();
        while received.len() < 30 {
            received.extend(settle(subscription.receive(WIDE).await.unwrap()));
        }
        assert_eq!(received, events(0, 30));
    }
    transport.close();
    assert_eq!(drain(&mut *first).await, []);
    assert_eq!(drain(&mut *second).await, []);
}

async fn a_receipt_settles_once_all_is_delivered(transport: Arc<dyn Transport>) {
    let mut subscription = transport.subscribe("only").await.unwrap();
    let _watch = start(&transport).await;
    let receipt = transport.publish(events(0, 3)).await.unwrap();
    assert_eq!(settle(subscription.receive(WIDE).await.unwrap()), events(0, 3));
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
}

async fn nothing_published_is_delivered_at_once(transport: Arc<dyn Transport>) {
    let _subscription = transport.subscribe("only").await.unwrap();
    let _watch = start(&transport).await;
    assert_eq!(transport.publish(Vec::new()).await.unwrap().outcome().await, Outcome::Delivered);
}

async fn a_batch_keeps_to_its_limits(transport: Arc<dyn Transport>) {
    let mut subscription = transport.subscribe("only").await.unwrap();
    let _watch = start(&transport).await;
    for request in [events(0, 5), events(5, 7), events(7, 9), events(9, 10)] {
        transport.publish(request).await.unwrap();
    }
    let by_count = BatchLimits { max_events: 4, ..WIDE };
    let by_bytes = BatchLimits { max_bytes: 2 * event(9).size_bytes(), ..WIDE };
    let mut received = Vec::new();
    for limits in [by_count, by_bytes].into_iter().cycle() {
        let deliveries = subscription.receive(limits).await.unwrap();
        let several = deliveries.len() > 1;
        let batch = settle(deliveries);
        let size_bytes: usize = batch.iter().map(Event::size_bytes).sum();
        let within = batch.len() <= limits.max_events && size_bytes <= limits.max_bytes;
        assert!(
            within || !several,
            "{} events, {size_bytes} bytes: what is larger than {limits:?} comes alone",
            batch.len()
        );
        received.extend(batch);
        if received.len() >= 10 {
            break;
        }
    }
    assert_eq!(received, events(0, 10));
}

async fn close_drains_and_then_refuses(transport: Arc<dyn Transport>) {
    let mut subscription = transport.subscribe("only").await.unwrap();
    let _watch = start(&transport).await;
    transport.publish(events(0, 3)).await.unwrap();
    transport.close();
    assert_eq!(transport.publish(events(3, 4)).await.unwrap_err(), PublishError::Closed);
    assert_eq!(drain(&mut *subscription).await, events(0, 3));
    assert!(transport.subscribe("late").await.is_err());
}

async fn custody_has_each_event_until_it_is_settled_for_good(transport: Arc<dyn Transport>) {
    let mut slow = transport.subscribe("slow").await.unwrap();
    let mut fast = transport.subscribe("fast").await.unwrap();
    let _watch = start(&transport).await;
    transport.publish(events(0, 6)).await.unwrap();
    transport.publish(events(6, 9)).await.unwrap();
    let mut received = 0;
    while received < 9 {
        for delivery in fast.receive(WIDE).await.unwrap() {
            received += delivery.events.len();
            delivery.ack.settle(match received {
                9 => Outcome::Rejected(vec![Rejection { index: 0, reason: "bad".into() }]),
                _ => Outcome::Delivered,
            });
        }
    }
    transport.close();
    assert!(fast.receive(WIDE).await.is_none());
    let custody = |pending| Custody { taken: 9, pending, ..Custody::default() };
    let custody_of = |name| Custody { shared_backlog: None, ..transport.custody(name) };
    assert_eq!(custody_of("fast"), custody(0));
    let slow_custody = custody_of("slow");
    // What others may take out need not be here before it is asked for.
    let here = if transport.is_shared() { slow_custody.taken } else { 9 };
    assert_eq!(slow_custody, Custody { taken: here, pending: here, ..Custody::default() });
    drain(&mut *slow).await;
    assert_eq!(custody_of("slow"), custody(0));
    assert_eq!(transport.custody("nobody"), Custody::default());
}
