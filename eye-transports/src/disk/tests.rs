#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use eye_core::ack::Rejection;
use eye_core::health::{HealthBoard, State};
use eye_core::testkit::{self, events};
use eye_core::transport::BatchLimits;
use tempfile::TempDir;

use super::*;

mod damage;
mod room;

const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024 };

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn config(folder: &TempDir) -> DiskConfig {
    DiskConfig { path: folder.path().join("queue"), max_bytes: 64 << 20, min_free_bytes: 1 << 20 }
}

/// Opens the queue once the threads of the last one have let go of it.
async fn open(config: &DiskConfig) -> DiskTransport {
    once_it_is_free(|| DiskTransport::open(config)).await
}

async fn open_log(config: &DiskConfig) -> Log {
    once_it_is_free(|| Log::open(&config.path, config.max_bytes, config.min_free_bytes)).await
}

async fn once_it_is_free<T>(open: impl Fn() -> io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn commit(transport: &DiskTransport, from: u32, to: u32) {
    let receipt = transport.publish(events(from, to)).await.unwrap();
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
}

/// The next events, and what becomes of them.
async fn next(subscription: &mut dyn Subscription, outcome: Outcome) -> Vec<Event> {
    let deliveries = tokio::time::timeout(Duration::from_secs(20), subscription.receive(WIDE)).await;
    let mut deliveries = deliveries.expect("there is something").unwrap();
    let delivery = deliveries.pop().unwrap();
    assert!(deliveries.is_empty());
    delivery.ack.settle(outcome);
    delivery.events
}

/// The queue is closed as when the program stops, with all that is in it left there.
async fn stop(transport: DiskTransport, subscription: Box<dyn Subscription>) {
    transport.close();
    end(subscription).await;
}

async fn end(mut subscription: Box<dyn Subscription>) {
    while let Some(deliveries) = subscription.receive(WIDE).await {
        deliveries.into_iter().for_each(|delivery| delivery.ack.settle(Outcome::failed("away")));
    }
}

fn segments(config: &DiskConfig) -> Vec<PathBuf> {
    let names = fs::read_dir(&config.path).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = names.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn conforms() {
    let folder = folder();
    let count = std::sync::atomic::AtomicU32::new(0);
    testkit::transport::suite(async || {
        let name = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        DiskConfig { path: folder.path().join(name), ..DiskConfig::default() }.build().await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_was_not_acked_comes_again_after_a_start_and_what_was_acked_does_not() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 10).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(0, 10));
    commit(&transport, 10, 20).await;
    commit(&transport, 20, 30).await;
    stop(transport, subscription).await;

    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(10, 30));
    commit(&transport, 30, 31).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(30, 31));
}

#[tokio::test]
async fn what_comes_one_by_one_is_given_together() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    let start = Instant::now();
    let publishing = async {
        for number in 0..200 {
            commit(&transport, number, number + 1).await;
        }
    };
    let receiving = async {
        let (mut given, mut deliveries) = (0, 0);
        while given < 200 {
            given += next(&mut *subscription, Outcome::Delivered).await.len();
            deliveries += 1;
        }
        deliveries
    };
    let ((), deliveries) = tokio::join!(publishing, receiving);
    let waits = start.elapsed().as_millis() / subscription::GATHER_FOR.as_millis();
    assert!(deliveries <= waits + 1, "{deliveries} deliveries in {waits} waits");
}

#[tokio::test]
async fn a_receipt_needs_no_sink() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let _subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 10).await;
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged_and_ends_the_transport() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    transport.close();
    let log = transport.log.clone();
    let (committed, _) = watch::channel(0);
    let (status, status_receiver) = watch::channel(Status::Ready);
    let mut appender = Appender::new(log.clone(), committed, status);
    // Open for reading alone: as good as a disk that fails.
    appender.replace_file(fs::File::open(config(&folder).path.join("lock")).unwrap());
    let (sender, queue) = mpsc::channel();
    let (settle, receipt) = Receipt::pair();
    let request = Request { events: record::encode(&events(0, 1)), count: 1, settle: Box::new(settle) };
    log.reserve(request.reserved_bytes()).unwrap();
    sender.send(request).unwrap();
    thread::spawn(move || appender.run(&queue)).join().unwrap();
    assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    let Status::Broken(reason) = status_receiver.borrow().clone() else { panic!("not broken") };
    assert!(reason.contains("cannot write") && reason.contains("not acknowledged"), "{reason}");
    assert!(subscription.receive(WIDE).await.is_none(), "nothing was taken");
}

#[tokio::test]
async fn a_broken_queue_ends_the_watch() {
    let folder = folder();
    let mut transport = open(&config(&folder)).await;
    let (status, receiver) = watch::channel(Status::Ready);
    transport.status = receiver;
    status.send_replace(Status::Broken("no disk".to_owned()));
    let health = HealthBoard::default().component("transport");
    assert_eq!(transport.watch(health).await.to_string(), "no disk");
}

#[tokio::test]
async fn each_sink_gets_every_event_and_goes_its_own_way() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let mut first = transport.subscribe("first").await.unwrap();
    let second = transport.subscribe("second").await.unwrap();
    commit(&transport, 0, 3).await;
    assert_eq!(next(&mut *first, Outcome::Delivered).await, events(0, 3));
    transport.close();
    end(first).await;
    end(second).await;
    drop(transport);

    let transport = open(&config).await;
    let mut first = transport.subscribe("first").await.unwrap();
    let mut second = transport.subscribe("second").await.unwrap();
    let mut new = transport.subscribe("new").await.unwrap();
    commit(&transport, 3, 4).await;
    assert_eq!(next(&mut *first, Outcome::Delivered).await, events(3, 4));
    assert_eq!(next(&mut *second, Outcome::Delivered).await, events(0, 4));
    assert_eq!(next(&mut *new, Outcome::Delivered).await, events(0, 4), "from the oldest that is there");
}

#[tokio::test]
async fn what_failed_comes_again_in_its_order_with_what_came_since() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 3).await;
    assert_eq!(next(&mut *subscription, Outcome::failed("away")).await, events(0, 3));
    commit(&transport, 3, 5).await;
    let started = Instant::now();
    assert_eq!(next(&mut *subscription, Outcome::failed("away")).await, events(0, 5));
    assert!(started.elapsed() >= subscription::MIN_PAUSE, "not at once");
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(0, 5));
}

#[tokio::test]
async fn a_sink_that_is_away_does_not_hold_up_the_end() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 3).await;
    transport.close();
    next(&mut *subscription, Outcome::failed("away")).await;
    assert!(subscription.receive(WIDE).await.is_none());
}

#[tokio::test]
async fn refused_events_are_dead_letters_and_the_others_are_done() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 5).await;
    let refused = [1, 3].map(|index| Rejection { index, reason: "too big".into() });
    next(&mut *subscription, Outcome::Rejected(refused.to_vec())).await;
    commit(&transport, 5, 6).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(5, 6));

    let letters = config.dead_letters().unwrap().page(None).await.unwrap();
    assert_eq!(letters.iter().map(|letter| &*letter.id).collect::<Vec<_>>(), ["1.store", "3.store"]);
    for (letter, n) in letters.iter().zip([1, 3]) {
        assert_eq!((&*letter.refused_by, &*letter.reason), ("sinks.store", "too big"));
        assert_eq!(letter.payload, serde_json::to_vec(&testkit::event(n)).unwrap());
    }
    let file = config.path.join("dead-letters/00000000000000000001.store.letter");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn dead_letters_that_cannot_be_kept_are_tried_again_until_they_are_or_come_again_after_a_start() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 1).await;
    let in_the_way = config.path.join("dead-letters");
    fs::write(&in_the_way, "").unwrap();
    let refused = Outcome::Rejected(vec![Rejection { index: 0, reason: "too big".into() }]);
    next(&mut *subscription, refused.clone()).await;
    stop(transport, subscription).await;
    fs::remove_file(&in_the_way).unwrap();

    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    fs::write(&in_the_way, "").unwrap();
    assert_eq!(next(&mut *subscription, refused).await, events(0, 1));
    commit(&transport, 1, 2).await;
    let (received, ()) = tokio::join!(next(&mut *subscription, Outcome::Delivered), async {
        tokio::task::yield_now().await;
        assert_eq!(transport.custody("store").pending, 2);
        fs::remove_file(&in_the_way).unwrap();
    });
    assert_eq!(received, events(1, 2));
    assert_eq!(fs::read_dir(in_the_way).unwrap().count(), 1);
}

#[tokio::test]
async fn two_cannot_open_one_queue() {
    let folder = folder();
    let _first = open(&config(&folder)).await;
    let error = config(&folder).build().await.err().unwrap().to_string();
    assert!(error.contains("another process uses this queue") && error.contains("queue: "), "{error}");
}

#[tokio::test]
async fn the_files_are_for_the_owner_alone() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 1).await;
    stop(transport, subscription).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config.path), 0o700);
    for entry in fs::read_dir(&config.path).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
    }
}

#[tokio::test]
async fn a_sink_that_is_no_longer_configured_holds_nothing_back() {
    let folder = folder();
    let config = DiskConfig { max_bytes: 200_000, ..config(&folder) };
    let transport = open(&config).await;
    let subscription = transport.subscribe("gone").await.unwrap();
    for n in 0..50 {
        commit(&transport, n * 10, n * 10 + 10).await;
    }
    stop(transport, subscription).await;
    assert!(segments(&config).len() > 1);

    let transport = Arc::new(open(&config).await);
    let mut subscription = transport.subscribe("store").await.unwrap();
    let (watched, health) = (transport.clone(), HealthBoard::default().component("transport"));
    tokio::spawn(async move { watched.watch(health).await });
    let mut received = Vec::new();
    while received.len() < 500 {
        received.extend(next(&mut *subscription, Outcome::Delivered).await);
    }
    assert_eq!(received, events(0, 500), "what is there, a new sink gets");
    let _held = tokio::spawn(async move { subscription.receive(WIDE).await });
    eventually("what all are done with is removed", || segments(&config).is_empty()).await;
}

/// Three records in a queue that is not open; how long each is.
async fn three_records(config: &DiskConfig) -> usize {
    let transport = open(config).await;
    let subscription = transport.subscribe("store").await.unwrap();
    for n in 0..3 {
        commit(&transport, n * 2, n * 2 + 2).await;
    }
    stop(transport, subscription).await;
    drop(open(config).await);
    fs::metadata(&segments(config)[0]).unwrap().len() as usize / 3
}

/// All that comes from a queue that is opened and closed.
async fn drain(config: &DiskConfig) -> Vec<Event> {
    let transport = open(config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    transport.close();
    let mut received = Vec::new();
    while let Some(deliveries) = subscription.receive(WIDE).await {
        for delivery in deliveries {
            received.extend(delivery.events);
            delivery.ack.settle(Outcome::Delivered);
        }
    }
    received
}

fn custody(transport: &DiskTransport) -> [u64; 4] {
    let Custody { taken, at_start, pending, missing, .. } = transport.custody("store");
    [taken, at_start, pending, missing]
}

#[tokio::test]
async fn a_number_that_has_a_dead_letter_is_never_given_again() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 3).await;
    next(&mut *subscription, Outcome::Rejected(vec![Rejection { index: 2, reason: "bad".into() }])).await;
    stop(transport, subscription).await;
    // All that else tells how far the numbers were is lost.
    segments(&config).into_iter().for_each(|segment| fs::remove_file(segment).unwrap());
    fs::remove_file(config.path.join("cursors")).unwrap();

    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 3, 4).await;
    next(&mut *subscription, Outcome::Rejected(vec![Rejection { index: 0, reason: "bad".into() }])).await;
    commit(&transport, 4, 5).await;
    next(&mut *subscription, Outcome::Delivered).await;
    let letters = config.dead_letters().unwrap().page(None).await.unwrap();
    let payloads: Vec<_> = letters.into_iter().map(|letter| letter.payload).collect();
    assert_eq!(payloads, [2, 3].map(|n| serde_json::to_vec(&testkit::event(n)).unwrap()));
}
