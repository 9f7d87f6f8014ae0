//! Events that a sink refused for good, kept beside the queue: a file each, named after the event's number and the sink.
//!
//! A file is whole or not there, is never changed, and is removed as a whole. So the program and any number of commands
//! may work in the folder at once, without a lock, and damage costs the one letter it hits.

use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use eye_core::ack::Rejection;
use eye_core::dead_letter::{DeadLetter, DeadLetterError, DeadLetterStore, NewDeadLetter};
use eye_core::event::Event;
use eye_core::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::spawn_blocking;

use super::files;
use super::reader::Numbered;

const FOLDER: &str = "dead-letters";

/// The most letters of one page, and the bytes after which it ends. Each page looks through the whole folder.
const PAGE_LETTERS: usize = 10_000;
const PAGE_BYTES: usize = 8 << 20;

/// What a letter's file holds beside its checksum.
#[derive(Serialize)]
struct Written<'a> {
    reason: &'a str,
    time: Timestamp,
    /// As `POST /api/event/` takes it.
    event: &'a Event,
}

/// The same as it is read.
#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// Writes the refused events of a batch, durably, below the queue's folder. A batch that comes again after a crash has
/// the same numbers and so the same files again, also those that were deleted meanwhile. Blocks.
pub(super) fn write(queue: &Path, sink: &str, batch: &[Numbered], rejections: &[Rejection]) -> io::Result<()> {
    let folder = queue.join(FOLDER);
    files::create_folder(&folder)?;
    files::sync_folder(queue)?;
    let time = Timestamp::now();
    for Rejection { index, reason } in rejections {
        let Some((number, event)) = batch.get(*index) else { continue };
        let id = Id { number: *number, sink: sink.to_owned() };
        let content = files::seal(&serde_json::to_string(&Written { reason, time, event })?);
        files::write_unnamed(&folder, &id.file_name(), content.as_bytes())?;
    }
    files::sync_folder(&folder)?;
    // Why may quote an event, so it is in the file alone.
    tracing::warn!(
        component = format!("sinks.{sink}"),
        count = rejections.len(),
        "refused events are kept as dead letters; `eye dead-letters list` shows them"
    );
    Ok(())
}

/// A number that no event has of which there is a dead letter, and that is larger than theirs. Blocks.
pub(super) fn next_number(queue: &Path) -> io::Result<u64> {
    let last = ids(&queue.join(FOLDER))?.try_fold(None, |last, id| io::Result::Ok(last.max(Some(id?.number))))?;
    Ok(last.map_or(0, |last| last.saturating_add(1)))
}

/// What a letter is of. Its text, such as `123.store`, names it to operators.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    number: u64,
    sink: String,
}

impl Id {
    /// Nothing that leads out of the folder is one: names of sinks hold letters, digits, `_` and `-`.
    fn new(number: &str, sink: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_name = (1..=64).contains(&sink.len()) && sink.bytes().all(plain);
        is_name.then_some(Self { number: number.parse().ok()?, sink: sink.to_owned() })
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, sink) = text.split_once('.')?;
        Self::new(number, sink).filter(|id| id.to_string() == text)
    }

    fn of_file(name: &str) -> Option<Self> {
        let (number, sink) = name.strip_suffix(".letter")?.split_once('.')?;
        Self::new(number, sink).filter(|id| id.file_name() == name)
    }

    fn file_name(&self) -> String {
        format!("{:020}.{}.letter", self.number, self.sink)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.sink)
    }
}

/// Those that are in the folder, in no order.
fn ids(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<Id>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let id = |entry: io::Result<fs::DirEntry>| match entry {
        Ok(entry) => entry.file_name().to_str().and_then(Id::of_file).map(Ok),
        Err(error) => Some(Err(error)),
    };
    Ok(entries.into_iter().flatten().filter_map(id))
}

/// The dead letters of a queue.
pub(super) struct DiskDeadLetters {
    queue: Arc<Path>,
}

impl DiskDeadLetters {
    pub(super) fn new(queue: &Path) -> Self {
        Self { queue: queue.into() }
    }

    /// Does what blocks on a thread for it.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DeadLetterError> {
        let queue = self.queue.clone();
        let done = spawn_blocking(move || Folder::of(&queue).and_then(|folder| work(&folder)));
        done.await.expect("it does not panic, and is not cancelled").map_err(|error| {
            let path = super::path_from_root(&self.queue);
            DeadLetterError(format!("cannot work with the dead letters of the queue {}: {error}", path.display()))
        })
    }
}

#[async_trait]
impl DeadLetterStore for DiskDeadLetters {
    async fn put(&self, _letters: &[NewDeadLetter]) -> Result<(), DeadLetterError> {
        Err(DeadLetterError("the queue writes its dead letters itself".to_owned()))
    }

    async fn page(&self, after: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let not_one = |after| DeadLetterError(format!("`{after}` is not the id of a dead letter"));
        let after = after.map(|after| Id::parse(after).ok_or_else(|| not_one(after))).transpose()?;
        self.blocking(|folder| folder.page(after)).await
    }

    async fn get(&self, id: &str) -> Result<Option<DeadLetter>, DeadLetterError> {
        let id = Id::parse(id);
        self.blocking(|folder| Ok(id.and_then(|id| folder.read(&id)))).await
    }

    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError> {
        let id = Id::parse(id);
        self.blocking(|folder| id.map_or(Ok(false), |id| folder.delete(&id))).await
    }
}

/// Where the letters lie; it need not be there. Everything blocks.
struct Folder(PathBuf);

impl Folder {
    fn of(queue: &Path) -> io::Result<Self> {
        // Most likely the path is relative, and this is not where the program runs.
        fs::metadata(queue)?;
        Ok(Self(queue.join(FOLDER)))
    }

    fn page(&self, mut after: Option<Id>) -> io::Result<Vec<DeadLetter>> {
        loop {
            let ids = self.first_after(after.as_ref())?;
            let mut bytes = 0;
            let mut page = Vec::new();
            for letter in ids.iter().filter_map(|id| self.read(id)) {
                bytes += letter.payload.len();
                page.push(letter);
                if bytes >= PAGE_BYTES {
                    break;
                }
            }
            // All of them may have been deleted just now; that is not the end.
            if !page.is_empty() || ids.is_empty() {
                return Ok(page);
            }
            after = ids.into_iter().next_back();
        }
    }

    /// The first ones after `after`, in order, without keeping all in memory.
    fn first_after(&self, after: Option<&Id>) -> io::Result<Vec<Id>> {
        let mut first = BinaryHeap::with_capacity(PAGE_LETTERS + 1);
        for id in ids(&self.0)? {
            let id = id?;
            if after.is_none_or(|after| id > *after) {
                first.push(id);
                if first.len() > PAGE_LETTERS {
                    first.pop();
                }
            }
        }
        Ok(first.into_sorted_vec())
    }

    /// A letter that cannot be read, or that the disk has damaged, says so as its reason: it is seen, can be deleted, and
    /// hides no other.
    fn read(&self, id: &Id) -> Option<DeadLetter> {
        let path = self.0.join(id.file_name());
        let (reason, payload) = match fs::read(&path) {
            Ok(content) => match letter(id, &content) {
                Some(letter) => return Some(letter),
                None => ("damaged on the disk; the payload is what is left of the file".to_owned(), content),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => (format!("its file cannot be read: {error}"), Vec::new()),
        };
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
        let micros = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let time = i64::try_from(micros).ok().and_then(Timestamp::from_micros).unwrap_or_default();
        Some(DeadLetter { id: id.to_string(), refused_by: refused_by(id), reason, time, payload })
    }

    fn delete(&self, id: &Id) -> io::Result<bool> {
        match fs::remove_file(self.0.join(id.file_name())) {
            Ok(()) => files::sync_folder(&self.0).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The letter that a file holds; `None` when it is damaged.
fn letter(id: &Id, content: &[u8]) -> Option<DeadLetter> {
    let Read { reason, time, event } = serde_json::from_str(files::unseal(content)?).ok()?;
    Some(DeadLetter {
        id: id.to_string(),
        refused_by: refused_by(id),
        reason: reason.into_owned(),
        time: Timestamp::parse(&time).ok()?,
        payload: event.get().as_bytes().to_vec(),
    })
}

fn refused_by(id: &Id) -> String {
    format!("sinks.{}", id.sink)
}

#[cfg(test)]
mod tests;
