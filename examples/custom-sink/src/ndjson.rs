//! A sink that writes events as lines of JSON, into one file for each hour.
//!
//! The hour is that of the event's `timestamp` in UTC. The timestamp is part of the event's key, so a repeated event
//! always leads to the same file. A write reads that file first and skips the events in it. So the sink needs no index,
//! and its memory is bounded by the batch and one line. The price is that each write reads the files of its hours.
//!
//! Read [`NdjsonConfig`] first, then `NdjsonSink`. Unix only, because the sink locks and syncs a folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use eye_core::context::BuildContext;
use eye_core::error::BuildError;
use eye_core::event::{Event, EventKey};
use eye_core::sink::{BuiltSink, Sink, SinkConfig, WriteError, Written};
use eye_core::timestamp::Timestamp;
use serde::Deserialize;
use tokio::task::spawn_blocking;

/// The settings below `[sinks.NAME]`.
#[derive(Deserialize)]
pub(crate) struct NdjsonConfig {
    /// Folder of the files. The sink creates a missing folder, but not the folder above it.
    folder: PathBuf,
}

impl SinkConfig for NdjsonConfig {
    const TYPE: &'static str = "ndjson";

    async fn build(self, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let Self { folder } = self;
        let name = folder.display().to_string();
        match spawn_blocking(move || create(&folder)).await {
            Ok(Ok(folder)) => Ok(BuiltSink::write_only(NdjsonSink { folder: folder.into() })),
            Ok(Err(error)) => Err(BuildError::at(
                "folder",
                format!(
                    "cannot use the folder {name}: {error}; create the folder above it, make both writable for the \
                     user that runs The Eye, or set `folder` to another one"
                ),
            )),
            Err(panic) => Err(BuildError::new(panic.to_string())),
        }
    }
}

/// Creates the folder if it is missing. Returns its absolute path.
fn create(folder: &Path) -> io::Result<PathBuf> {
    if let Err(error) = fs::create_dir(folder)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let folder = folder.canonicalize()?;
    if let Some(above) = folder.parent() {
        // A new folder survives a crash only if the folder above it is synced.
        File::open(above)?.sync_all()?;
    }
    fs::read_dir(&folder)?;
    Ok(folder)
}

/// A sink over one folder.
struct NdjsonSink {
    folder: Arc<Path>,
}

#[async_trait]
impl Sink for NdjsonSink {
    async fn prepare(&self) -> Result<(), WriteError> {
        self.on_folder(|folder| fs::read_dir(folder).map(drop)).await
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        // The thread may outlive this call, so it gets its own events. They share their texts with the batch.
        let batch = batch.to_vec();
        self.on_folder(move |folder| store(folder, &batch)).await?;
        Ok(Written::default())
    }
}

impl NdjsonSink {
    /// Runs file work on a thread that may block.
    async fn on_folder(&self, work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) -> Result<(), WriteError> {
        let folder = self.folder.clone();
        match spawn_blocking(move || work(&folder)).await {
            Ok(Ok(())) => Ok(()),
            // A full disk or an unmounted folder is no fault of an event, and an operator can fix it.
            Ok(Err(error)) => Err(WriteError::retry(format!("{}: {error}", self.folder.display()))),
            Err(panic) => Err(WriteError::Unknown { reason: panic.to_string() }),
        }
    }
}

/// Appends the events that are not stored yet. When this returns `Ok`, all of them survive a crash.
fn store(folder: &Path, batch: &[Event]) -> io::Result<()> {
    let handle = File::open(folder)?;
    // The lock excludes other writes, of this process and of others, until `handle` is dropped.
    handle.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::new(ErrorKind::WouldBlock, "another write holds the lock"),
        TryLockError::Error(error) => error,
    })?;
    let mut files = BTreeMap::<String, BTreeMap<EventKey, &Event>>::new();
    for event in batch {
        files.entry(file_name(event)).or_default().entry(event.key()).or_insert(event);
    }
    for (name, events) in files {
        append(&folder.join(name), events)?;
    }
    // Syncs the names of new files. An earlier write may have created a file and failed before this line.
    handle.sync_all()
}

/// Returns the name of an event's file, such as `2021-01-01T09.ndjson`.
fn file_name(event: &Event) -> String {
    format!("{:.13}.ndjson", event.timestamp())
}

/// Appends the events that the file does not hold yet.
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
        // Removes the rest of an interrupted write. Its event was not acknowledged.
        file.set_len(whole_lines_end)?;
    }
    let mut writer = BufWriter::new(&file);
    for event in events.into_values() {
        serde_json::to_writer(&mut writer, event)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()?;
    // Also without new events: an earlier write may have appended a line and failed before this sync.
    file.sync_data()
}

/// Returns the key of the event in a line; `None` for a line that this sink did not write.
fn stored_key(line: &[u8]) -> Option<EventKey> {
    #[derive(Deserialize)]
    struct StoredKey<'a> {
        timestamp: &'a str,
        id: &'a str,
    }
    let stored: StoredKey<'_> = serde_json::from_slice(line).ok()?;
    Some(EventKey { timestamp: Timestamp::parse(stored.timestamp).ok()?, id: stored.id.parse().ok()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use eye_core::event::{DefaultTimestamp, EventLimits, Origin, ParseContext};
    use eye_core::testkit::sink::{SinkFixture, suite};
    use eye_core::testkit::{assert_same_events, event, events};
    use tempfile::TempDir;

    use super::*;

    /// A storage that is read without the sink's code.
    struct FolderFixture(TempDir);

    impl FolderFixture {
        fn new() -> Self {
            Self(TempDir::new().unwrap())
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("events")
        }

        fn unmounted(&self) -> PathBuf {
            self.0.path().join("unmounted")
        }

        /// Returns all files with their text, in the order of their hours.
        fn texts(&self) -> Vec<(PathBuf, String)> {
            let mut paths: Vec<_> = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
        }
    }

    #[async_trait]
    impl SinkFixture for FolderFixture {
        async fn open(&self) -> BuiltSink {
            NdjsonConfig { folder: self.folder() }.build(&BuildContext::standalone("sinks.files")).await.unwrap()
        }

        async fn stored(&self) -> Vec<Event> {
            let texts = self.texts();
            texts.iter().flat_map(|(_, text)| text.lines()).map(read).collect()
        }

        async fn become_unavailable(&self) -> bool {
            fs::rename(self.folder(), self.unmounted()).unwrap();
            true
        }

        async fn become_available(&self) {
            fs::rename(self.unmounted(), self.folder()).unwrap();
        }
    }

    fn read(line: &str) -> Event {
        let fields: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| fields[field].as_str().unwrap();
        let context = ParseContext {
            received_at: Timestamp::parse(text("received_at")).unwrap(),
            default_timestamp: DefaultTimestamp::None,
            origin: Arc::new(Origin::new(text("origin"), None)),
            limits: EventLimits { max_event_bytes: usize::MAX },
        };
        Event::parse(line.as_bytes(), &context).unwrap()
    }

    #[tokio::test]
    async fn conforms() {
        suite(async || FolderFixture::new()).await;
    }

    #[tokio::test]
    async fn torn_line_is_removed_and_its_event_stored() {
        let files = FolderFixture::new();
        files.open().await.sink.write(&events(0, 3)).await.unwrap();
        let (path, text) = files.texts().remove(0);
        for length in text.len() - 300..text.len() {
            fs::write(&path, &text[..length]).unwrap();
            files.open().await.sink.write(&events(0, 4)).await.unwrap();
            assert_same_events(&files.stored().await, &events(0, 4));
        }
    }

    #[tokio::test]
    async fn foreign_lines_are_kept() {
        let files = FolderFixture::new();
        let sink = files.open().await.sink;
        sink.write(&events(0, 1)).await.unwrap();
        let (path, text) = files.texts().remove(0);
        let foreign = "\n\0\u{7f}\n{}\n{\"id\":1,\"timestamp\":\"2021-01-01\"}\n";
        fs::write(&path, format!("{foreign}{text}")).unwrap();
        sink.write(&events(0, 2)).await.unwrap();
        let (_, text) = files.texts().remove(0);
        let lines = text.strip_prefix(foreign).unwrap().lines();
        assert_same_events(&lines.map(read).collect::<Vec<_>>(), &events(0, 2));
    }

    #[tokio::test]
    async fn each_hour_has_its_own_file() {
        let files = FolderFixture::new();
        // The suite has one event each millisecond, so an hour has 3,600,000.
        files.open().await.sink.write(&[event(3_599_999), event(0), event(3_600_000)]).await.unwrap();
        let texts = files.texts();
        let lines: Vec<_> = texts
            .iter()
            .map(|(path, text)| (path.file_name().unwrap().to_str().unwrap(), text.lines().count()))
            .collect();
        assert_eq!(lines, [("2021-01-01T00.ndjson", 2), ("2021-01-01T01.ndjson", 1)]);
    }

    #[tokio::test]
    async fn locked_folder_is_a_retryable_error() {
        let files = FolderFixture::new();
        let sink = files.open().await.sink;
        let other = File::open(files.folder()).unwrap();
        other.lock().unwrap();
        let error = sink.write(&events(0, 1)).await.unwrap_err();
        assert!(matches!(&error, WriteError::Retry { reason, .. } if reason.contains("another write")), "{error:?}");
        drop(other);
        sink.write(&events(0, 1)).await.unwrap();
    }

    #[tokio::test]
    async fn unusable_folder_is_a_build_error() {
        let files = FolderFixture::new();
        fs::write(files.0.path().join("file"), "").unwrap();
        for folder in ["missing/events", "file", "file/events", ""] {
            let folder = if folder.is_empty() { PathBuf::new() } else { files.0.path().join(folder) };
            let context = BuildContext::standalone("sinks.files");
            let error = NdjsonConfig { folder: folder.clone() }.build(&context).await.err().unwrap().to_string();
            assert!(error.contains(&format!("the folder {}: ", folder.display())), "{error}");
        }
    }
}
