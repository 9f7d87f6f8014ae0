//! What the threads of a queue share: its segments, its room, and how far each consumer has come.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use eye_core::transport::Custody;
use serde::{Deserialize, Serialize};

use super::files;
use crate::record::{self, MAGIC, Parsed};

/// Bytes that may wait for the disk.
const MAX_WAITING_BYTES: u64 = 64 * 1024 * 1024;

const CURSORS: &str = "cursors";

/// A queue's folder, locked.
pub(super) struct Log {
    path: PathBuf,
    max_bytes: u64,
    min_free_bytes: u64,
    state: Mutex<State>,
    /// Held while the cursors are written.
    saving: Mutex<()>,
    /// Locked as long as it is open.
    _lock: File,
}

#[derive(Default)]
pub(super) struct State {
    /// The number of the first event of each segment → bytes of it that are committed.
    pub(super) segments: BTreeMap<u64, u64>,
    /// The segment that is written to.
    active: Option<u64>,
    /// The number of the next event.
    pub(super) next: u64,
    /// The number of the first event that a consumer has not acked.
    cursors: BTreeMap<String, u64>,
    /// Or `next` has, which is saved with them.
    cursors_changed: bool,
    subscribed: BTreeMap<String, Account>,
    /// All have subscribed: what they are done with may go.
    started: bool,
    /// Bytes taken, and not committed yet.
    waiting: u64,
    /// Bytes free on the disk: as it was when last looked at, less what was written since.
    free: u64,
    /// What was refused since the last look, or would have been then: its bytes, and why.
    refused: Option<(u64, String)>,
}

/// What is known of one consumer's events since the start.
#[derive(Default)]
struct Account {
    /// Its cursor then.
    started_at: u64,
    /// Events behind it then.
    at_start: u64,
    missing: u64,
    /// Of them, those that the cursor has not come to: the number of the event after them, and how many.
    missing_ahead: Vec<(u64, u64)>,
}

/// What is written down once a second.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    /// As in [`State`]: how far the queue went at least, so that damage to its end is known from a write that was cut off.
    next: u64,
    cursors: BTreeMap<String, u64>,
}

impl Log {
    /// Opens the queue in the folder `path`, which is made where it is not there. Blocks.
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
        let mut state = State { cursors: saved.cursors, ..State::default() };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Some(first) = entry.file_name().to_str().and_then(first_of_segment) {
                state.segments.insert(first, entry.metadata()?.len());
            }
        }
        let last = state.segments.last_key_value().map(|(first, bytes)| (*first, *bytes));
        if let Some((first, bytes)) = last {
            let (end, whole_bytes) = recover(path, first, bytes, saved.next)?;
            state.next = end;
            state.segments.insert(first, whole_bytes);
        }
        // A number that was given is never given again, whatever the disk has lost: the gap tells how much.
        state.next = state.cursors.values().copied().fold(state.next.max(saved.next), u64::max);
        // Nor is one that has a dead letter, or another event's would take its place.
        state.next = state.next.max(super::dead_letters::next_number(path)?);
        let log = Self {
            path: path.to_owned(),
            max_bytes,
            min_free_bytes,
            state: Mutex::new(state),
            saving: Mutex::default(),
            _lock: lock,
        };
        log.look_at_disk()?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn segment_path(&self, first: u64) -> PathBuf {
        segment_path(&self.path, first)
    }

    /// Bytes after which a new segment begins: few enough that one that is not used up is a small part of the quota.
    pub(super) fn segment_bytes(&self) -> u64 {
        (self.max_bytes / 16).min(64 * 1024 * 1024)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a segment that begins with the next event, and its name durable. Blocks.
    pub(super) fn new_segment(&self) -> io::Result<(u64, File)> {
        let first = self.lock().next;
        // One of this name holds no event, or it would not be its name.
        let file = files::options().create(true).truncate(true).open(self.segment_path(first))?;
        files::sync_folder(&self.path)?;
        let mut state = self.lock();
        state.segments.insert(first, 0);
        state.active = Some(first);
        Ok((first, file))
    }

    /// Takes room for bytes that are to be written; the reason when there is none.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), String> {
        let mut state = self.lock();
        if let Some(reason) = self.lacks_room_for(&state, bytes) {
            state.refused = Some((bytes, reason.clone()));
            return Err(reason);
        }
        state.waiting += bytes;
        Ok(())
    }

    fn lacks_room_for(&self, state: &State, bytes: u64) -> Option<String> {
        let waiting = state.waiting + bytes;
        if state.on_disk() + waiting > self.max_bytes {
            Some(format!("the queue holds {} bytes (transport.max_bytes = {})", state.on_disk(), self.max_bytes))
        } else if state.free < waiting.saturating_add(self.min_free_bytes) {
            Some(format!("the disk has {} bytes free (transport.min_free_bytes = {})", state.free, self.min_free_bytes))
        } else if waiting > MAX_WAITING_BYTES && state.waiting > 0 {
            // One that is larger by itself is taken once nothing else waits.
            Some(format!("{} bytes wait for the disk", state.waiting))
        } else {
            None
        }
    }

    /// Gives back what was reserved and not written.
    pub(super) fn release(&self, reserved: u64) {
        self.lock().waiting -= reserved;
    }

    /// What was reserved for a record is committed: its bytes, in the segment of that first event.
    pub(super) fn committed(&self, segment: u64, reserved: u64, bytes: u64, events: u32) -> u64 {
        let mut state = self.lock();
        state.waiting -= reserved;
        state.free = state.free.saturating_sub(bytes);
        state.next += u64::from(events);
        state.cursors_changed = true;
        *state.segments.entry(segment).or_default() += bytes;
        state.next
    }

    /// Nothing can be written: nothing is taken until the disk was looked at again.
    pub(super) fn disk_is_full(&self) {
        self.lock().free = 0;
    }

    /// Why requests are refused: what was refused since this was last asked, or would be now if it came again.
    pub(super) fn refusing(&self) -> Option<String> {
        let mut state = self.lock();
        let refused = state.refused.take();
        let bytes = refused.as_ref().map_or(1, |(bytes, _)| *bytes);
        let lacking = self.lacks_room_for(&state, bytes);
        state.refused = lacking.clone().map(|reason| (bytes, reason));
        lacking.or(refused.map(|(_, reason)| reason))
    }

    /// Finds out how much room the disk has. Blocks.
    pub(super) fn look_at_disk(&self) -> io::Result<()> {
        let disk = rustix::fs::statvfs(&self.path)?;
        self.lock().free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(())
    }

    /// A consumer's place: where it was, else at the oldest event that is there. `None` when it has one already.
    pub(super) fn subscribe(&self, consumer: &str) -> Option<u64> {
        let mut state = self.lock();
        if state.subscribed.contains_key(consumer) {
            return None;
        }
        let oldest = state.segments.first_key_value().map_or(state.next, |(first, _)| *first);
        let cursor = *state.cursors.entry(consumer.to_owned()).or_insert(oldest);
        let at_start = state.next - cursor;
        state.subscribed.insert(consumer.to_owned(), Account { started_at: cursor, at_start, ..Account::default() });
        Some(cursor)
    }

    /// All have subscribed. Who has not, but did so once, holds nothing back any more.
    pub(super) fn start(&self) {
        let mut state = self.lock();
        let State { next, cursors, subscribed, .. } = &mut *state;
        cursors.retain(|consumer, cursor| {
            let stays = subscribed.contains_key(consumer);
            if !stays {
                let undelivered = next.saturating_sub(*cursor);
                tracing::warn!(sink = consumer, undelivered, "no longer configured: the queue keeps nothing for it");
            }
            stays
        });
        state.started = true;
        state.cursors_changed = true;
    }

    /// A consumer is done with every event before `cursor`.
    pub(super) fn ack(&self, consumer: &str, cursor: u64) {
        let mut state = self.lock();
        let before = state.cursors.insert(consumer.to_owned(), cursor);
        state.cursors_changed |= before != Some(cursor);
        if let Some(account) = state.subscribed.get_mut(consumer) {
            account.missing_ahead.retain(|(end, _)| *end > cursor);
        }
    }

    /// A consumer has found so many events missing, before the one with the number `end`.
    pub(super) fn note_missing(&self, consumer: &str, missing: u64, end: u64) {
        if let Some(account) = self.lock().subscribed.get_mut(consumer) {
            account.missing += missing;
            account.missing_ahead.push((end, missing));
        }
    }

    /// Writes down how far the queue and the consumers are, when that has changed. Blocks. After a crash they are where
    /// they were at the last time, and get again what sinks store once.
    pub(super) fn save_cursors(&self) -> io::Result<()> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.cursors_changed) {
                return Ok(());
            }
            let saved = Saved { next: state.next, cursors: state.cursors.clone() };
            serde_json::to_string(&saved).expect("texts and numbers are JSON")
        };
        files::write(&self.path, CURSORS, files::seal(&saved).as_bytes())
            .inspect_err(|_| self.lock().cursors_changed = true)
    }

    /// The first event that some consumer is not done with.
    pub(super) fn done_before(&self) -> u64 {
        let state = self.lock();
        let least = state.cursors.values().min().copied();
        least.filter(|_| state.started).unwrap_or_default()
    }

    /// Removes the segments that end before an event, never the one that is written to. Blocks.
    pub(super) fn remove_before(&self, done_before: u64) -> io::Result<()> {
        let done = self.lock().take_segments_before(done_before);
        done.into_iter().try_for_each(|first| fs::remove_file(self.segment_path(first)))
    }

    /// Keeps bytes of a segment that are not a record, for whoever can make something of them. Blocks.
    pub(super) fn set_aside(&self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<PathBuf> {
        set_aside(&self.path, segment, offset, bytes)
    }
}

impl State {
    /// By the cursor alone, so that an event that it passed and the sink never got shows in the books.
    pub(super) fn custody(&self, consumer: &str) -> Custody {
        let (Some(account), Some(cursor)) = (self.subscribed.get(consumer), self.cursors.get(consumer)) else {
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

    fn on_disk(&self) -> u64 {
        self.segments.values().sum()
    }

    fn take_segments_before(&mut self, number: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        while let Some((&first, _)) = self.segments.first_key_value() {
            let end = self.segments.range(first + 1..).next().map_or(self.next, |(next, _)| *next);
            if end > number || self.active == Some(first) {
                break;
            }
            self.segments.remove(&first);
            taken.push(first);
        }
        taken
    }
}

fn segment_path(path: &Path, first: u64) -> PathBuf {
    path.join(format!("{first:020}.log"))
}

fn first_of_segment(name: &str) -> Option<u64> {
    name.strip_suffix(".log").filter(|digits| digits.len() == 20)?.parse().ok()
}

/// For messages: where bytes were set aside, or why they were not.
pub(super) fn described(kept: io::Result<PathBuf>) -> String {
    kept.map_or_else(|error| format!("not kept: {error}"), |path| path.display().to_string())
}

fn set_aside(path: &Path, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<PathBuf> {
    let (folder, name) = (path.join("damaged"), format!("{segment:020}-{offset}.bin"));
    files::write(&folder, &name, bytes)?;
    Ok(folder.join(name))
}

/// Where the segment that was written to last ends: the number of the event after its last, and its whole bytes. What
/// lies behind them is cut off and set aside. What comes before the event `committed` was whole once.
fn recover(path: &Path, segment: u64, bytes: u64, committed: u64) -> io::Result<(u64, u64)> {
    let content = files::read_patiently(&segment_path(path, segment))?;
    let (mut end, mut whole) = (segment, 0);
    while let Some((at, record)) = find_record(&content[whole..], end) {
        end = record.end();
        whole += at + record.size_bytes();
    }
    let rest = &content[whole..];
    if !rest.is_empty() {
        let kept = match set_aside(path, segment, whole as u64, rest) {
            // The disk is away, and may come back with all that it has.
            Err(error) if files::is_unreadable(&error) => return Err(error),
            // On a full disk it stays where it is: the reader comes to it, and says so.
            Err(_) if end < committed => return Ok((end, bytes)),
            // What nobody was promised does not stay: its segment may get the same name again, and the reader would stand
            // in the midst of it.
            kept => described(kept),
        };
        let bytes = rest.len();
        if end < committed {
            tracing::error!(bytes, kept, "the end of the queue is damaged on the disk; set aside");
        } else {
            tracing::warn!(
                bytes,
                kept,
                "the end of the queue was not whole, as it is when a crash cut off what was not acknowledged yet; cut off"
            );
        }
    }
    if bytes != whole as u64 {
        let file = files::options().open(segment_path(path, segment))?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    Ok((end, whole as u64))
}

/// The first whole record whose events are not all before `expected`, and where it lies.
pub(super) fn find_record(bytes: &[u8], expected: u64) -> Option<(usize, record::Record<'_>)> {
    let mut at = 0;
    loop {
        match record::parse(&bytes[at..]) {
            Parsed::Whole(record) if record.end() > expected => return Some((at, record)),
            _ => at += 1,
        }
        at += bytes.get(at..)?.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    }
}

/// How far the queue and the consumers were. A file that is damaged is as good as none: they get again what they have.
fn read_saved(path: &Path) -> io::Result<Saved> {
    let content = match fs::read(path.join(CURSORS)) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Saved::default()),
        Err(error) if files::is_unreadable(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    let parsed = files::unseal(&content).and_then(|saved| serde_json::from_str(saved).ok());
    Ok(parsed.unwrap_or_else(|| {
        tracing::error!(
            file = %path.join(CURSORS).display(),
            "damaged: nobody knows what the sinks have; they get again all that is in the queue"
        );
        Saved::default()
    }))
}
