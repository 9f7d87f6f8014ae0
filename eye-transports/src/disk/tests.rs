#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use eye_core::ack::Rejection;
use eye_core::dead_letter::NewDeadLetter;
use eye_core::health::{ComponentState, HealthBoard};
use eye_core::testkit::{self, events};
use eye_core::transport::BatchLimits;
use tempfile::TempDir;

use super::*;

mod capacity;
mod damage;

const WIDE: BatchLimits = BatchLimits { max_events: 1000, max_bytes: 1024 * 1024, max_wait: Duration::ZERO };

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn config(folder: &TempDir) -> DiskConfig {
    DiskConfig { path: folder.path().join("queue"), max_bytes: 64 << 20, min_free_bytes: 1 << 20 }
}

/// Opens the queue once the threads of the last transport have closed it.
async fn open(config: &DiskConfig) -> DiskTransport {
    retry_while_busy(|| DiskTransport::open(config)).await
}

async fn open_log(config: &DiskConfig) -> Log {
    retry_while_busy(|| Log::open(&config.path, config.max_bytes, config.min_free_bytes)).await
}

async fn retry_while_busy<T>(open: impl Fn() -> io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

fn context() -> BuildContext {
    BuildContext::standalone("transport")
}

async fn commit(transport: &DiskTransport, from: u32, to: u32) {
    let receipt = transport.publish(events(from, to)).await.unwrap();
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
}

/// Receives one batch and settles it with `outcome`.
async fn next(subscription: &mut dyn Subscription, outcome: Outcome) -> Vec<Event> {
    let deliveries = tokio::time::timeout(Duration::from_secs(20), subscription.receive(WIDE)).await;
    let mut deliveries = deliveries.expect("events arrive").unwrap();
    let delivery = deliveries.pop().unwrap();
    assert!(deliveries.is_empty());
    delivery.ack.settle(outcome);
    delivery.events
}

/// Closes the queue like a program that stops, and leaves its events there.
async fn stop(transport: DiskTransport, subscription: Box<dyn Subscription>) {
    transport.close();
    end(subscription).await;
}

async fn end(mut subscription: Box<dyn Subscription>) {
    while let Some(deliveries) = subscription.receive(WIDE).await {
        deliveries.into_iter().for_each(|delivery| delivery.ack.settle(Outcome::failed("unavailable")));
    }
}

fn segments(config: &DiskConfig) -> Vec<PathBuf> {
    let names = fs::read_dir(&config.path).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = names.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    segments.sort();
    segments
}

async fn eventually(condition_name: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {condition_name}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn disk_transport_conforms() {
    let folder = folder();
    let count = std::sync::atomic::AtomicU32::new(0);
    testkit::transport::suite(async || {
        let name = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        DiskConfig { path: folder.path().join(name), ..DiskConfig::default() }.build(&context()).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn restart_redelivers_unsettled_events_only() {
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
async fn batch_gathers_events_until_it_is_full() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    let limits = BatchLimits { max_events: 100, max_wait: Duration::from_secs(600), ..WIDE };
    let publishing = async {
        for number in 0..200 {
            commit(&transport, number, number + 1).await;
        }
    };
    let receiving = async {
        for first in [0, 100] {
            let delivery = subscription.receive(limits).await.unwrap().remove(0);
            assert_eq!(delivery.events, events(first, first + 100));
            delivery.ack.settle(Outcome::Delivered);
        }
    };
    tokio::join!(publishing, receiving);
}

#[tokio::test]
async fn close_ends_the_gathering() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 1).await;
    let limits = BatchLimits { max_wait: Duration::from_secs(600), ..WIDE };
    let (received, ()) = tokio::join!(subscription.receive(limits), async {
        tokio::task::yield_now().await;
        transport.close();
    });
    assert_eq!(received.unwrap().remove(0).events, events(0, 1));
}

#[tokio::test]
async fn receipt_settles_without_the_sink() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let _subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 10).await;
}

#[tokio::test]
async fn write_error_fails_receipts_and_ends_the_transport() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    transport.close();
    let log = transport.log.clone();
    let (committed, _) = watch::channel(0);
    let (status, status_receiver) = watch::channel(QueueStatus::Ready);
    let mut appender = Appender::new(log.clone(), committed, status);
    // A write to a read-only file fails as on a broken disk.
    appender.replace_file(fs::File::open(config(&folder).path.join("lock")).unwrap());
    let (sender, queue) = mpsc::channel();
    let (settle, receipt) = Receipt::pair();
    let request = AppendRequest { events: record::encode(&events(0, 1)), count: 1, settle: Box::new(settle) };
    log.capacity().reserve(request.reserved_bytes()).unwrap();
    sender.send(request).unwrap();
    thread::spawn(move || appender.run(&queue)).join().unwrap();
    assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    let QueueStatus::Broken(reason) = status_receiver.borrow().clone() else { panic!("not broken") };
    assert!(reason.contains("cannot write") && reason.contains("not acknowledged"), "{reason}");
    assert!(subscription.receive(WIDE).await.is_none(), "no event is in the queue");
}

#[tokio::test]
async fn broken_queue_ends_the_watch() {
    let folder = folder();
    let mut transport = open(&config(&folder)).await;
    let (status, receiver) = watch::channel(QueueStatus::Ready);
    transport.status = receiver;
    status.send_replace(QueueStatus::Broken("no disk".to_owned()));
    let health = HealthBoard::default().component("transport");
    assert_eq!(transport.watch(health).await.to_string(), "no disk");
}

#[tokio::test]
async fn each_sink_has_its_own_cursor() {
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
    assert_eq!(next(&mut *new, Outcome::Delivered).await, events(0, 4), "from the oldest event of the queue");
}

#[tokio::test]
async fn failed_batch_is_redelivered_with_newer_events() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 3).await;
    assert_eq!(next(&mut *subscription, Outcome::failed("unavailable")).await, events(0, 3));
    commit(&transport, 3, 5).await;
    let started = Instant::now();
    assert_eq!(next(&mut *subscription, Outcome::failed("unavailable")).await, events(0, 5));
    assert!(started.elapsed() >= subscription::MIN_PAUSE / 2, "after a pause");
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(0, 5));
}

#[tokio::test]
async fn unavailable_sink_does_not_delay_the_end() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 3).await;
    transport.close();
    next(&mut *subscription, Outcome::failed("unavailable")).await;
    assert!(subscription.receive(WIDE).await.is_none());
}

#[tokio::test]
async fn rejected_batch_is_settled() {
    let folder = folder();
    let transport = open(&config(&folder)).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 0, 5).await;
    let rejections = [1, 3].map(|index| Rejection { index, reason: "too big".into() });
    next(&mut *subscription, Outcome::Rejected(rejections.to_vec())).await;
    commit(&transport, 5, 6).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(5, 6));
}

#[tokio::test]
async fn positions_are_event_numbers_and_survive_a_restart() {
    let folder = folder();
    let config = config(&folder);
    for first in [0, 3] {
        let transport = open(&config).await;
        let mut subscription = transport.subscribe("store").await.unwrap();
        commit(&transport, first, first + 3).await;
        for number in [first, first + 2] {
            let limits = BatchLimits { max_events: 2, ..WIDE };
            let delivery = subscription.receive(limits).await.unwrap().remove(0);
            assert_eq!(delivery.position.unwrap().key(0), number.to_string());
            delivery.ack.settle(Outcome::Delivered);
        }
        stop(transport, subscription).await;
    }
}

#[tokio::test]
async fn open_queue_cannot_be_opened_again() {
    let folder = folder();
    let _first = open(&config(&folder)).await;
    let error = config(&folder).build(&context()).await.err().unwrap().to_string();
    assert!(error.contains("another process uses this queue") && error.contains("queue: "), "{error}");
}

#[tokio::test]
async fn files_are_readable_by_the_owner_alone() {
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
async fn removed_sink_retains_no_segments() {
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
    assert_eq!(received, events(0, 500), "a new sink gets all events of the queue");
    let _held = tokio::spawn(async move { subscription.receive(WIDE).await });
    eventually("settled segments are removed", || segments(&config).is_empty()).await;
}

/// Leaves a closed queue of three records. Returns the length of each record.
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

/// Opens the queue, closes it, and returns all events that it delivers.
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
async fn number_of_a_dead_letter_is_not_reused() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    let letter = NewDeadLetter {
        key: "2.store".to_owned(),
        refused_by: "sinks.store".to_owned(),
        reason: "bad".to_owned(),
        payload: b"{}".to_vec(),
    };
    transport.dead_letters().unwrap().put(&[letter]).await.unwrap();
    drop(transport);
    // The queue has no segment and no cursor that tells how far its numbers were.
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 3, 4).await;
    let delivery = subscription.receive(WIDE).await.unwrap().remove(0);
    assert_eq!(delivery.position.unwrap().key(0), "3");
}
