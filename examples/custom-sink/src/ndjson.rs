//! Events as lines of JSON, in a file for each hour.
//!
//! The hour is that of the event's `timestamp`, in UTC. It is part of the event's key, so an event that comes again
//! belongs into the same file as before: whoever writes reads that file first, and leaves out what it holds. Nothing is
//! remembered between two writes, neither in memory nor in an index that a crash could leave behind.
//!
//! What it costs: a write reads the files of its events' hours. Memory is bounded by the batch, and one line.
//!
//! Unix only: it locks and syncs a folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::event::EventKey;
use eye_core::sink::{Sink, SinkConfig, WriteError, Written};
use eye_core::timestamp::Timestamp;
use serde::Deserialize;
use tokio::task::spawn_blocking;

/// What operators write below `[sinks.NAME]`.
#[derive(Deserialize)]
pub(crate) struct NdjsonConfig {
    /// Where the files are. Created where it is missing; the folder above it has to be there.
    folder: PathBuf,
}

impl SinkConfig for NdjsonConfig {
    const TYPE: &'static str = "ndjson";

    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        let Self { folder } = self;
        let name = folder.display().to_string();
        match spawn_blocking(move || create(&folder)).await {
            Ok(Ok(folder)) => Ok(Box::new(NdjsonSink { folder: folder.into() })),
            Ok(Err(error)) => Err(BuildError::new(format!(
                "cannot use the folder {name}: {error}; make the folder above it, and both writable for the user that \
                 runs The Eye, or set `folder` to another one"
            ))),
            Err(panic) => Err(BuildError::new(panic.to_string())),
        }
    }
}

/// Creates the folder where it is missing; its absolute path.
fn create(folder: &Path) -> io::Result<PathBuf> {
    if let Err(error) = fs::create_dir(folder)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let folder = folder.canonicalize()?;
    if let Some(above) = folder.parent() {
        // A folder that is new survives a crash only when the one above it is synced.
        File::open(above)?.sync_all()?;
    }
    fs::read_dir(&folder)?;
    Ok(folder)
}

struct NdjsonSink {
    folder: Arc<Path>,
}

#[async_trait]
impl Sink for NdjsonSink {
    async fn prepare(&self) -> Result<(), WriteError> {
        self.on_folder(|folder| fs::read_dir(folder).map(drop)).await
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        // The thread may outlive this call, so it has events of its own. They share their texts with the batch.
        let batch = batch.to_vec();
        self.on_folder(move |folder| store(folder, &batch)).await?;
        Ok(Written::default())
    }
}

impl NdjsonSink {
    /// Does what blocks on a thread that may block.
    async fn on_folder(&self, work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) -> Result<(), WriteError> {
        let folder = self.folder.clone();
        match spawn_blocking(move || work(&folder)).await {
            Ok(Ok(())) => Ok(()),
            // A full disk, a folder that is not mounted, missing rights: none is the fault of an event, and all may pass.
            Ok(Err(error)) => Err(WriteError::retry(format!("{}: {error}", self.folder.display()))),
            Err(panic) => Err(WriteError::Unknown { reason: panic.to_string() }),
        }
    }
}

/// Appends the events that are not stored yet. When this returns `Ok`, all of them survive a crash.
fn store(folder: &Path, batch: &[Event]) -> io::Result<()> {
    let handle = File::open(folder)?;
    // Keeps out other writes, of this process and of others, until `handle` is dropped.
    handle.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(ErrorKind::WouldBlock, "another write is going on"),
        TryLockError::Error(error) => error,
    })?;
    let mut files = BTreeMap::<String, BTreeMap<EventKey, &Event>>::new();
    for event in batch {
        files.entry(file_name(event)).or_default().entry(event.key()).or_insert(event);
    }
    for (name, events) in files {
        append(&folder.join(name), events)?;
    }
    // For the names of new files. Always: a file may be there because of a write that did not get this far.
    handle.sync_all()
}

/// The file that an event belongs into, such as `2021-01-01T09.ndjson`.
fn file_name(event: &Event) -> String {
    format!("{:.13}.ndjson", event.timestamp())
}

/// Appends those events to a file that it does not hold.
fn append(path: &Path, mut events: BTreeMap<EventKey, &Event>) -> io::Result<()> {
    let file = File::options().read(true).append(true).create(true).open(path)?;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    let mut whole_lines_end = 0;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        whole_lines_end += length as u64;
        if let Some(key) = stored_key(&line) {
            events.remove(&key);
        }
    }
    if !line.is_empty() {
        // What a write that was interrupted has left. Nobody was told that it is stored.
        file.set_len(whole_lines_end)?;
    }
    let mut writer = BufWriter::new(&file);
    for event in events.into_values() {
        serde_json::to_writer(&mut writer, event)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()?;
    // Even if nothing was left to append: what was found may be from a write that did not get this far.
    file.sync_data()
}

/// The key of the event in a line; `None` for a line that somebody else wrote.
fn stored_key(line: &[u8]) -> Option<EventKey> {
    #[derive(Deserialize)]
    struct Stored<'a> {
        timestamp: &'a str,
        id: &'a str,
    }
    let stored: Stored<'_> = serde_json::from_slice(line).ok()?;
    Some(EventKey { timestamp: Timestamp::parse(stored.timestamp).ok()?, id: stored.id.parse().ok()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::event::EventLimits;
    use eye_core::testkit::sink::{SinkFixture, suite};
    use eye_core::testkit::{assert_same_events, event, events};
    use tempfile::TempDir;

    use super::*;

    /// A folder, read without the sink's code.
    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(TempDir::new().unwrap())
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("events")
        }

        fn unmounted(&self) -> PathBuf {
            self.0.path().join("unmounted")
        }

        /// All files with their text, in the order of time.
        fn texts(&self) -> Vec<(PathBuf, String)> {
            let mut paths: Vec<_> = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
        }
    }

    #[async_trait]
    impl SinkFixture for Files {
        async fn open(&self) -> Box<dyn Sink> {
            NdjsonConfig { folder: self.folder() }.build().await.unwrap()
        }

        async fn stored(&self) -> Vec<Event> {
            let texts = self.texts();
            texts.iter().flat_map(|(_, text)| text.lines()).map(read).collect()
        }

        async fn go_away(&self) -> bool {
            fs::rename(self.folder(), self.unmounted()).unwrap();
            true
        }

        async fn come_back(&self) {
            fs::rename(self.unmounted(), self.folder()).unwrap();
        }
    }

    fn read(line: &str) -> Event {
        let fields: serde_json::Value = serde_json::from_str(line).unwrap();
        let received_at = Timestamp::parse(fields["received_at"].as_str().unwrap()).unwrap();
        Event::parse(line.as_bytes(), received_at, &EventLimits { max_event_bytes: usize::MAX }).unwrap()
    }

    #[tokio::test]
    async fn conforms() {
        suite(async || Files::new()).await;
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_and_its_event_stored() {
        let files = Files::new();
        files.open().await.write(&events(0, 3)).await.unwrap();
        let (path, text) = files.texts().remove(0);
        for kept in text.len() - 300..text.len() {
            fs::write(&path, &text[..kept]).unwrap();
            files.open().await.write(&events(0, 4)).await.unwrap();
            assert_same_events(&files.stored().await, &events(0, 4));
        }
    }

    #[tokio::test]
    async fn lines_of_others_are_left_alone() {
        let files = Files::new();
        let sink = files.open().await;
        sink.write(&events(0, 1)).await.unwrap();
        let (path, text) = files.texts().remove(0);
        let others = "\n\0\u{7f}\n{}\n{\"id\":1,\"timestamp\":\"2021-01-01\"}\n";
        fs::write(&path, format!("{others}{text}")).unwrap();
        sink.write(&events(0, 2)).await.unwrap();
        let (_, text) = files.texts().remove(0);
        let lines = text.strip_prefix(others).unwrap().lines();
        assert_same_events(&lines.map(read).collect::<Vec<_>>(), &events(0, 2));
    }

    #[tokio::test]
    async fn there_is_a_file_for_each_hour() {
        let files = Files::new();
        // 3,600,000 milliseconds later, one event each.
        files.open().await.write(&[event(3_599_999), event(0), event(3_600_000)]).await.unwrap();
        let texts = files.texts();
        let lines: Vec<_> = texts
            .iter()
            .map(|(path, text)| (path.file_name().unwrap().to_str().unwrap(), text.lines().count()))
            .collect();
        assert_eq!(lines, [("2021-01-01T00.ndjson", 2), ("2021-01-01T01.ndjson", 1)]);
    }

    #[tokio::test]
    async fn a_write_of_another_process_is_waited_for() {
        let files = Files::new();
        let sink = files.open().await;
        let other = File::open(files.folder()).unwrap();
        other.lock().unwrap();
        let error = sink.write(&events(0, 1)).await.unwrap_err();
        assert!(matches!(&error, WriteError::Retry { reason, .. } if reason.contains("another write")), "{error:?}");
        drop(other);
        sink.write(&events(0, 1)).await.unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_used_is_an_error_at_start() {
        let files = Files::new();
        fs::write(files.0.path().join("file"), "").unwrap();
        for folder in ["missing/events", "file", "file/events", ""] {
            let folder = if folder.is_empty() { PathBuf::new() } else { files.0.path().join(folder) };
            let error = NdjsonConfig { folder: folder.clone() }.build().await.err().unwrap().to_string();
            assert!(error.contains(&format!("the folder {}: ", folder.display())), "{error}");
        }
    }
}
