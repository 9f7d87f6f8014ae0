//! The shared state of a disk queue: its segments, its capacity, and the cursor of each consumer.
//!
//! A cursor is the number of the first event that a consumer has not settled. Cursors and the queue's end are saved
//! once a second: after a crash consumers get some events again, and never skip one. No event number is ever used
//! twice. Read [`Log`] first.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use eye_core::transport::Custody;
use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::{dead_letters, files, recovery};

const CURSORS: &str = "cursors";

/// A locked queue folder.
pub(super) struct Log {
    pub(super) path: PathBuf,
    /// The bytes after which a new segment begins. A partly settled segment is then a small part of the quota.
    pub(super) segment_bytes: u64,
    capacity: Mutex<Capacity>,
    state: Mutex<LogState>,
    /// Held while the cursors are saved.
    saving: Mutex<()>,
    /// Locked as long as the file is open.
    _lock: File,
}

#[derive(Default)]
pub(super) struct LogState {
    /// The number of the first event of each segment → committed bytes of the segment.
    pub(super) segments: BTreeMap<u64, u64>,
    /// The segment that is written to.
    active: Option<u64>,
    /// The number of the next event.
    pub(super) next: u64,
    cursors: BTreeMap<String, u64>,
    /// Some cursor or `next` has changed since the last save.
    has_changed: bool,
    consumers: BTreeMap<String, ConsumerAccount>,
    /// All consumers have subscribed, so segments before their cursors may be removed.
    is_started: bool,
}

/// The event counts of one consumer since startup.
#[derive(Default)]
struct ConsumerAccount {
    /// The cursor at startup.
    started_at: u64,
    /// Events behind the cursor at startup.
    at_start: u64,
    missing: u64,
    /// Missing events that the cursor has not reached: the number of the event after them, and their count.
    missing_ahead: Vec<(u64, u64)>,
}

/// The content of the file `cursors`.
#[derive(Default, Serialize, Deserialize)]
struct SavedCursors {
    /// The queue's end at the time of the save. Tells damage of committed events from an incomplete write.
    next: u64,
    cursors: BTreeMap<String, u64>,
}

impl Log {
    /// Opens the queue in the folder `path`, and creates the folder if necessary. Blocks.
    pub(super) fn open(path: &Path, max_bytes: u64, min_free_bytes: u64) -> io::Result<Self> {
        files::create_folder(path)?;
        let lock = files::options().create(true).truncate(false).open(path.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                ErrorKind::ResourceBusy,
                "another process uses this queue; stop it, or set `path` to another folder",
            ),
            TryLockError::Error(error) => error,
        })?;
        let saved = read_saved(path)?;
        let mut state = LogState { cursors: saved.cursors, ..LogState::default() };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Some(first) = entry.file_name().to_str().and_then(recovery::first_of_segment) {
                state.segments.insert(first, entry.metadata()?.len());
            }
        }
        if let Some((&first, bytes)) = state.segments.iter_mut().next_back() {
            (state.next, *bytes) = recovery::recover_end(path, first, *bytes, saved.next)?;
        }
        // Numbers that were used once stay used, whatever the disk has lost: the gap tells how many events are missing.
        state.next = state.cursors.values().copied().fold(state.next.max(saved.next), u64::max);
        // The same holds for the numbers of dead letters, or a new letter would replace an old one.
        state.next = state.next.max(dead_letters::next_number(path)?);
        let capacity = Capacity::new(max_bytes, min_free_bytes, state.segments.values().sum());
        let log = Self {
            path: path.to_owned(),
            segment_bytes: (max_bytes / 16).min(64 * 1024 * 1024),
            capacity: Mutex::new(capacity),
            state: Mutex::new(state),
            saving: Mutex::default(),
            _lock: lock,
        };
        log.measure_disk()?;
        Ok(log)
    }

    pub(super) fn segment_path(&self, first: u64) -> PathBuf {
        recovery::segment_path(&self.path, first)
    }

    pub(super) fn capacity(&self) -> MutexGuard<'_, Capacity> {
        self.capacity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates, durably, the segment that begins with the next event. Blocks.
    pub(super) fn new_segment(&self) -> io::Result<(u64, File)> {
        let first = self.lock().next;
        // An existing file of this name holds no event: otherwise `next` would be higher.
        let file = files::options().create(true).truncate(true).open(self.segment_path(first))?;
        files::sync_folder(&self.path)?;
        let mut state = self.lock();
        state.segments.insert(first, 0);
        state.active = Some(first);
        Ok((first, file))
    }

    /// Adds a durable record of reserved capacity to a segment. Returns the number of the event after the record's
    /// last.
    pub(super) fn commit(&self, segment: u64, reserved: u64, bytes: u64, events: u32) -> u64 {
        self.capacity().commit(reserved, bytes);
        let mut state = self.lock();
        state.next += u64::from(events);
        state.has_changed = true;
        *state.segments.entry(segment).or_default() += bytes;
        state.next
    }

    /// Measures the free space of the disk. Blocks.
    pub(super) fn measure_disk(&self) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&self.path)?;
        self.capacity().set_free(disk.f_bavail.saturating_mul(disk.f_frsize));
        Ok(())
    }

    /// Subscribes a consumer at its saved cursor, or at the oldest event. Returns `None` if it has subscribed already.
    pub(super) fn subscribe(&self, consumer: &str) -> Option<u64> {
        let mut state = self.lock();
        if state.consumers.contains_key(consumer) {
            return None;
        }
        let oldest = state.segments.first_key_value().map_or(state.next, |(first, _)| *first);
        let cursor = *state.cursors.entry(consumer.to_owned()).or_insert(oldest);
        let at_start = state.next - cursor;
        let account = ConsumerAccount { started_at: cursor, at_start, ..ConsumerAccount::default() };
        state.consumers.insert(consumer.to_owned(), account);
        Some(cursor)
    }

    /// Forgets the cursors of consumers that have not subscribed, and permits the removal of segments.
    pub(super) fn start(&self) {
        let mut state = self.lock();
        let LogState { next, cursors, consumers, .. } = &mut *state;
        cursors.retain(|consumer, cursor| {
            let is_configured = consumers.contains_key(consumer);
            if !is_configured {
                let undelivered = next.saturating_sub(*cursor);
                tracing::warn!(sink = consumer, undelivered, "a removed sink: the queue keeps no events for it");
            }
            is_configured
        });
        state.is_started = true;
        state.has_changed = true;
    }

    /// Moves a consumer's cursor: every event before it is settled.
    pub(super) fn ack(&self, consumer: &str, cursor: u64) {
        let mut state = self.lock();
        let before = state.cursors.insert(consumer.to_owned(), cursor);
        state.has_changed |= before != Some(cursor);
        if let Some(account) = state.consumers.get_mut(consumer) {
            account.missing_ahead.retain(|(end, _)| *end > cursor);
        }
    }

    /// Counts events that are missing for a consumer, in front of the event with the number `end`.
    pub(super) fn note_missing(&self, consumer: &str, missing: u64, end: u64) {
        if let Some(account) = self.lock().consumers.get_mut(consumer) {
            account.missing += missing;
            account.missing_ahead.push((end, missing));
        }
    }

    /// Saves the queue's end and the cursors if they have changed. Blocks.
    pub(super) fn save_cursors(&self) -> io::Result<()> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.has_changed) {
                return Ok(());
            }
            let saved = SavedCursors { next: state.next, cursors: state.cursors.clone() };
            serde_json::to_vec(&saved).expect("texts and numbers are JSON")
        };
        files::write(&self.path, CURSORS, &files::seal(&saved)).inspect_err(|_| self.lock().has_changed = true)
    }

    /// Returns the lowest cursor: every consumer has settled the events before it.
    pub(super) fn low_cursor(&self) -> u64 {
        let state = self.lock();
        let lowest = state.cursors.values().min().copied();
        lowest.filter(|_| state.is_started).unwrap_or_default()
    }

    /// Removes the segments that end at or before `cursor`, except the active one. Blocks.
    pub(super) fn remove_before(&self, cursor: u64) -> io::Result<()> {
        let removable = self.lock().take_segments_before(cursor);
        for (first, bytes) in removable {
            fs::remove_file(self.segment_path(first))?;
            self.capacity().remove(bytes);
        }
        Ok(())
    }
}

impl LogState {
    /// Returns a consumer's custody. Computed from the cursor alone, so that a skipped event shows in the balance.
    pub(super) fn custody(&self, consumer: &str) -> Custody {
        let (Some(account), Some(cursor)) = (self.consumers.get(consumer), self.cursors.get(consumer)) else {
            return Custody::default();
        };
        let missing_ahead: u64 = account.missing_ahead.iter().map(|(_, count)| count).sum();
        Custody {
            taken: self.next - account.started_at,
            at_start: account.at_start,
            pending: (self.next - cursor).saturating_sub(missing_ahead),
            missing: account.missing,
            shared_backlog: None,
        }
    }

    /// Returns the segment of an event, or of the next event to come. A lost segment counts as one without bytes.
    pub(super) fn segment_of(&self, number: u64) -> u64 {
        let containing = self.segments.range(..=number).next_back().filter(|_| number < self.next);
        containing.map_or(number, |(first, _)| *first)
    }

    fn take_segments_before(&mut self, cursor: u64) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        while let Some((&first, &bytes)) = self.segments.first_key_value() {
            let end = self.segments.range(first + 1..).next().map_or(self.next, |(next, _)| *next);
            if end > cursor || self.active == Some(first) {
                break;
            }
            self.segments.remove(&first);
            taken.push((first, bytes));
        }
        taken
    }
}

/// Reads the saved cursors. A damaged file counts as absent: consumers get events again.
fn read_saved(queue: &Path) -> io::Result<SavedCursors> {
    let content = match fs::read(queue.join(CURSORS)) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SavedCursors::default()),
        Err(error) if files::is_unreadable(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    let parsed = files::unseal(&content).and_then(|saved| serde_json::from_slice(saved).ok());
    Ok(parsed.unwrap_or_else(|| {
        tracing::error!(
            file = %queue.join(CURSORS).display(),
            "the cursors are damaged on the disk: every sink gets all events of the queue again"
        );
        SavedCursors::default()
    }))
}
