//! Damage to the files of a closed disk queue: each 512-byte block inverted or zeroed in turn, files cut off, zeroed
//! and removed. Every event is delivered, or reported missing if its record was hit, and the queue continues to work.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use eye_core::ack::Outcome;
use eye_core::context::BuildContext;
use eye_core::dead_letter::NewDeadLetter;
use eye_core::event::Event;
use eye_core::testkit::events;
use eye_core::transport::{BatchLimits, Subscription, Transport, TransportConfig};
use eye_transports::disk::DiskConfig;
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

const BLOCK_BYTES: usize = 512;
const LIMITS: BatchLimits = BatchLimits { max_events: 50, max_bytes: 1024 * 1024, max_wait: Duration::ZERO };
/// The records of a segment, and the events of a record.
const RECORDS: u32 = 5;
const RECORD_EVENTS: u32 = 20;
/// The first bytes of each record.
const RECORD_START: &[u8] = &[0xFE, b'E', b'y', 1];
/// The first sink is ahead of the second.
const SINKS: [&str; 2] = ["first", "second"];

/// Opens the queue once the threads of the last transport have closed it.
async fn open(path: &Path) -> Box<dyn Transport> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let config = DiskConfig { path: path.to_owned(), max_bytes: 64 << 20, min_free_bytes: 1 << 20 };
        match config.build(&BuildContext::standalone("transport")).await {
            Ok(transport) => return transport,
            Err(error) => {
                let busy = error.to_string().contains("another process uses this queue");
                assert!(busy && Instant::now() < deadline, "{error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn subscribe(transport: &dyn Transport) -> Vec<Box<dyn Subscription>> {
    let mut subscriptions = Vec::new();
    for sink in SINKS {
        subscriptions.push(transport.subscribe(sink).await.unwrap());
    }
    subscriptions
}

async fn publish(transport: &dyn Transport, from: u32, to: u32) {
    let receipt = transport.publish(events(from, to)).await.unwrap();
    assert_eq!(receipt.outcome().await, Outcome::Delivered);
}

/// Receives the rest of a closed queue, and settles each batch with `outcome`.
async fn drain(mut subscription: Box<dyn Subscription>, outcome: &Outcome) -> Vec<Event> {
    let mut received = Vec::new();
    loop {
        let deliveries = tokio::time::timeout(Duration::from_secs(20), subscription.receive(LIMITS)).await;
        let Some(deliveries) = deliveries.expect("the subscription ends") else { return received };
        for delivery in deliveries {
            received.extend(delivery.events);
            delivery.ack.settle(outcome.clone());
        }
    }
}

/// Opens the queue, publishes the event `fresh`, closes it, and returns the events that each sink gets.
async fn open_and_drain(path: &Path, fresh: Option<u32>) -> Vec<Vec<Event>> {
    let transport = open(path).await;
    let subscriptions = subscribe(&*transport).await;
    if let Some(fresh) = fresh {
        publish(&*transport, fresh, fresh + 1).await;
    }
    transport.close();
    let mut received = Vec::new();
    for subscription in subscriptions {
        received.push(drain(subscription, &Outcome::Delivered).await);
    }
    received
}

/// The queue of a stopped program.
struct Stopped {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// The events that each sink has not settled.
    pending: [BTreeSet<u32>; SINKS.len()],
    /// The number of acknowledged events.
    taken: u32,
}

/// Creates 3 segments of 5 records of 20 events. Both sinks are in the middle of a record, and there are dead letters.
async fn stopped_queue() -> Stopped {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue");
    let mut taken = 0;
    let mut pending = [(); SINKS.len()].map(|()| BTreeSet::new());
    // The batches that each sink settles before the program stops.
    for batches in [[2, 1], [1, 0], [0, 0]] {
        let transport = open(&path).await;
        let mut subscriptions = subscribe(&*transport).await;
        for _ in 0..RECORDS {
            publish(&*transport, taken, taken + RECORD_EVENTS).await;
            pending.iter_mut().for_each(|pending| pending.extend(taken..taken + RECORD_EVENTS));
            taken += RECORD_EVENTS;
        }
        for (sink, batches) in batches.into_iter().enumerate() {
            for _ in 0..batches {
                let delivery = subscriptions[sink].receive(LIMITS).await.unwrap().remove(0);
                let letter = NewDeadLetter {
                    key: format!("{}.{}", delivery.position.unwrap().key(3), SINKS[sink]),
                    refused_by: format!("sinks.{}", SINKS[sink]),
                    reason: "too big".to_owned(),
                    payload: serde_json::to_vec(&delivery.events[3]).unwrap(),
                };
                transport.dead_letters().unwrap().put(&[letter]).await.unwrap();
                delivery.ack.settle(Outcome::Delivered);
                let done: Vec<u32> = pending[sink].iter().copied().take(delivery.events.len()).collect();
                pending[sink].retain(|number| !done.contains(number));
            }
        }
        transport.close();
        for subscription in subscriptions {
            drain(subscription, &Outcome::failed("unavailable")).await;
        }
    }
    // Waits until the threads have closed the files.
    drop(open(&path).await);
    let mut files = BTreeMap::new();
    read(&path, &path, &mut files);
    assert_eq!(pending.each_ref().map(BTreeSet::len), [150, 250], "of 300");
    Stopped { files, pending, taken }
}

/// Returns a folder in memory, where a sync takes no time, if the system has one.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn read(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, files);
        } else {
            files.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

impl Stopped {
    /// Returns the events of the records that have bytes in this range of a file.
    fn events_at(&self, file: &Path, range: &Range<usize>) -> BTreeSet<u32> {
        let Some(first) = file.to_str().unwrap().strip_suffix(".log") else { return BTreeSet::new() };
        let (first, content): (u32, _) = (first.parse().unwrap(), &self.files[file]);
        let starts = (0..content.len()).filter(|&at| content[at..].starts_with(RECORD_START));
        let starts: Vec<usize> = starts.chain([content.len()]).collect();
        assert_eq!(starts.len(), RECORDS as usize + 1);
        let records = starts.windows(2).map(|ends| ends[0]..ends[1]);
        let hit = records.zip(0..).filter(|(record, _)| record.start < range.end && range.start < record.end);
        hit.flat_map(|(_, number)| first + number * RECORD_EVENTS..first + (number + 1) * RECORD_EVENTS).collect()
    }

    /// Checks the queue with other content of `file`, or without the file. The content is damaged in the range `hit`.
    async fn with_damage(&self, what: &str, file: &Path, content: Option<&[u8]>, hit: Range<usize>) {
        let case = format!("{} {what}", file.display());
        let folder = in_memory();
        for (path, intact) in &self.files {
            let to = folder.path().join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let content = if path == file { content } else { Some(&intact[..]) };
            content.into_iter().for_each(|content| fs::write(&to, content).unwrap());
        }
        take_errors();
        let all = open_and_drain(folder.path(), None).await;
        let errors = take_errors();
        for ((sink, received), pending) in SINKS.iter().zip(all).zip(&self.pending) {
            let numbers: Vec<u32> = received.iter().map(|event| event.id().as_u128() as u32 - 1).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{case}: {sink} gets each event once, in order");
            for (event, number) in received.iter().zip(&numbers) {
                assert_eq!(event, &events(*number, number + 1)[0], "{case}: {sink} gets the published event");
            }
            let again = numbers.iter().filter(|number| !pending.contains(number)).count();
            assert!(again == 0 || file == Path::new("cursors"), "{case}: {sink} gets {again} events again");
            let lost: BTreeSet<u32> = pending.iter().copied().filter(|number| !numbers.contains(number)).collect();
            assert!(
                lost.is_subset(&self.events_at(file, &hit)),
                "{case}: {sink} lacks events of intact records: {lost:?}"
            );
            let missing = errors.missing.get(*sink).copied().unwrap_or_default();
            assert_eq!(missing, lost.len() as u64, "{case}: {sink} learns the number of missing events");
        }
        for received in open_and_drain(folder.path(), Some(self.taken)).await {
            assert_eq!(received, events(self.taken, self.taken + 1), "{case}: the queue continues to work");
        }
        for received in open_and_drain(folder.path(), None).await {
            assert_eq!(received, [], "{case}: settled events do not come again");
        }
        assert_eq!(take_errors().count, 0, "{case}: damage is reported once");
    }
}

#[tokio::test]
async fn damaged_events_are_reported_and_others_delivered() {
    let stopped = stopped_queue().await;
    tracing::subscriber::set_global_default(ErrorRecorder).unwrap();
    let names: Vec<&str> = stopped.files.keys().map(|file| file.to_str().unwrap()).collect();
    let of_kind = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    assert!(of_kind(".log") == 3 && of_kind("cursors") == 1 && of_kind(".letter") == 4, "{names:?}");
    let mut cases = 0;
    for (file, intact) in &stopped.files {
        for at in (0..intact.len()).step_by(BLOCK_BYTES) {
            let block = at..intact.len().min(at + BLOCK_BYTES);
            let mut damaged = intact.clone();
            damaged[block.clone()].iter_mut().for_each(|byte| *byte = !*byte);
            stopped.with_damage(&format!("with block {at} inverted"), file, Some(&damaged), block.clone()).await;
            damaged[block.clone()].fill(0);
            stopped.with_damage(&format!("with block {at} zeroed"), file, Some(&damaged), block).await;
            stopped.with_damage(&format!("cut off at {at}"), file, Some(&intact[..at]), at..intact.len()).await;
            cases += 3;
        }
        stopped.with_damage("zeroed", file, Some(&vec![0; intact.len()]), 0..intact.len()).await;
        stopped.with_damage("removed", file, None, 0..intact.len()).await;
        cases += 2;
    }
    println!("{cases} cases");
}

/// The errors that the queue has logged.
#[derive(Default)]
struct LoggedErrors {
    count: usize,
    /// Sink → events that were reported missing for it.
    missing: BTreeMap<String, u64>,
}

static ERRORS: Mutex<LoggedErrors> = Mutex::new(LoggedErrors { count: 0, missing: BTreeMap::new() });

/// Returns the errors since the last call.
fn take_errors() -> LoggedErrors {
    std::mem::take(&mut *ERRORS.lock().unwrap())
}

struct ErrorRecorder;

impl Subscriber for ErrorRecorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut errors = ERRORS.lock().unwrap();
        errors.count += 1;
        if let (Some(sink), Some(missing)) = (fields.sink, fields.missing) {
            *errors.missing.entry(sink).or_default() += missing;
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    sink: Option<String>,
    missing: Option<u64>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "sink" {
            self.sink = Some(value.to_owned());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "missing" {
            self.missing = Some(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
