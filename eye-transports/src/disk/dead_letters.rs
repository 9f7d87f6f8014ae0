//! The dead letters of the disk queue: one file each, named after the event's number and the sink.
//!
//! A file appears whole, is replaced by the same letter alone, and is removed whole. So the program and any number of
//! commands share the folder without a lock, and damage costs only the letter that it hits. Read [`DiskDeadLetters`]
//! first.

use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use eye_core::dead_letter::{DeadLetter, DeadLetterError, DeadLetterStore, NewDeadLetter};
use eye_core::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::files;

const FOLDER: &str = "dead-letters";

/// The most letters of a page. Each page reads the names of the whole folder.
const PAGE_LETTERS: usize = 10_000;

/// Bytes of payload after which a page ends.
const PAGE_BYTES: usize = 8 << 20;

/// The first line of a letter's file. The payload follows.
#[derive(Serialize, Deserialize)]
struct LetterHeader<'a> {
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

/// The id of a letter, such as `123.store`: the event's number and the name of the sink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LetterId {
    number: u64,
    sink: String,
}

impl LetterId {
    /// Accepts the names of sinks alone: letters, digits, `_` and `-`. No id leads out of the folder.
    fn new(number: &str, sink: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_name = (1..=64).contains(&sink.len()) && sink.bytes().all(is_plain);
        is_name.then_some(Self { number: number.parse().ok()?, sink: sink.to_owned() })
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, sink) = text.split_once('.')?;
        Self::new(number, sink).filter(|id| id.to_string() == text)
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let (number, sink) = name.strip_suffix(".letter")?.split_once('.')?;
        Self::new(number, sink).filter(|id| id.file_name() == name)
    }

    fn file_name(&self) -> String {
        format!("{:020}.{}.letter", self.number, self.sink)
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.sink)
    }
}

/// Returns a number above those of all dead letters. Blocks.
pub(super) fn next_number(queue: &Path) -> io::Result<u64> {
    let mut next = 0;
    for id in DiskDeadLetters::new(queue).ids()? {
        next = next.max(id?.number.saturating_add(1));
    }
    Ok(next)
}

/// The dead letters of one queue. The methods that are not async block.
#[derive(Clone)]
pub(super) struct DiskDeadLetters {
    queue: Arc<Path>,
}

fn not_an_id(text: &str) -> DeadLetterError {
    DeadLetterError(format!("`{text}` is not the id of a dead letter"))
}

#[async_trait]
impl DeadLetterStore for DiskDeadLetters {
    async fn put(&self, letters: &[NewDeadLetter]) -> Result<(), DeadLetterError> {
        let time = Timestamp::now().to_string();
        let mut contents = Vec::with_capacity(letters.len());
        for NewDeadLetter { key, reason, payload, .. } in letters {
            let id = LetterId::parse(key).ok_or_else(|| not_an_id(key))?;
            let header = LetterHeader { reason: Cow::Borrowed(reason), time: Cow::Borrowed(&time) };
            let header = serde_json::to_vec(&header).expect("texts are JSON");
            contents.push((id.file_name(), files::seal(&[&header[..], payload].join(&b'\n'))));
        }
        self.run(move |letters| letters.write(&contents)).await
    }

    async fn page(&self, after: Option<&str>) -> Result<Vec<DeadLetter>, DeadLetterError> {
        let after = after.map(|after| LetterId::parse(after).ok_or_else(|| not_an_id(after))).transpose()?;
        self.run(|letters| letters.read_page(after)).await
    }

    async fn get(&self, id: &str) -> Result<Option<DeadLetter>, DeadLetterError> {
        let id = LetterId::parse(id);
        self.run(|letters| Ok(id.and_then(|id| letters.read(&id)))).await
    }

    async fn delete(&self, id: &str) -> Result<bool, DeadLetterError> {
        let id = LetterId::parse(id);
        self.run(|letters| id.map_or(Ok(false), |id| letters.remove(&id))).await
    }
}

impl DiskDeadLetters {
    pub(super) fn new(queue: &Path) -> Self {
        Self { queue: queue.into() }
    }

    /// Runs blocking work on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DeadLetterError> {
        let letters = self.clone();
        let done = spawn_blocking(move || {
            // A missing queue is an error: the path is probably relative to another working directory.
            fs::metadata(&letters.queue)?;
            work(&letters)
        });
        done.await.expect("the work does not panic").map_err(|error| {
            let path = files::absolute(&self.queue);
            DeadLetterError(format!("cannot access the dead letters of the queue {}: {error}", path.display()))
        })
    }

    /// Returns the folder of the letters. The first letter creates it.
    fn folder(&self) -> PathBuf {
        self.queue.join(FOLDER)
    }

    fn path(&self, id: &LetterId) -> PathBuf {
        self.folder().join(id.file_name())
    }

    fn write(&self, contents: &[(String, Vec<u8>)]) -> io::Result<()> {
        let folder = self.folder();
        files::create_folder(&folder)?;
        contents.iter().try_for_each(|(name, content)| files::write_unsynced(&folder, name, content))?;
        files::sync_folder(&folder)
    }

    /// Returns the ids of all letters, in no order.
    fn ids(&self) -> io::Result<impl Iterator<Item = io::Result<LetterId>>> {
        let entries = match fs::read_dir(self.folder()) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let id = |entry: io::Result<fs::DirEntry>| match entry {
            Ok(entry) => entry.file_name().to_str().and_then(LetterId::from_file_name).map(Ok),
            Err(error) => Some(Err(error)),
        };
        Ok(entries.into_iter().flatten().filter_map(id))
    }

    fn read_page(&self, mut after: Option<LetterId>) -> io::Result<Vec<DeadLetter>> {
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
            // An empty page would mean the end, but these letters may all have been deleted in the meantime.
            if !page.is_empty() || ids.is_empty() {
                return Ok(page);
            }
            after = ids.into_iter().next_back();
        }
    }

    /// Returns the first ids after `after`, in order. Never holds all ids in memory.
    fn first_after(&self, after: Option<&LetterId>) -> io::Result<Vec<LetterId>> {
        let mut first = BinaryHeap::with_capacity(PAGE_LETTERS + 1);
        for id in self.ids()? {
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

    /// Reads a letter; `None` if there is none. An unreadable or damaged file becomes a letter with this fault as its
    /// reason. It is listed, can be deleted, and hides no other letter.
    fn read(&self, id: &LetterId) -> Option<DeadLetter> {
        let path = self.path(id);
        let (reason, payload) = match fs::read(&path) {
            Ok(content) => match parse_letter(id, &content) {
                Some(letter) => return Some(letter),
                None => ("damaged on the disk; the payload is the rest of the file".to_owned(), content),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => (format!("the letter's file cannot be read: {error}"), Vec::new()),
        };
        let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).unwrap_or(UNIX_EPOCH);
        let micros = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let time = i64::try_from(micros).ok().and_then(Timestamp::from_micros).unwrap_or_default();
        Some(DeadLetter { id: id.to_string(), refused_by: refused_by(id), reason, time, payload })
    }

    fn remove(&self, id: &LetterId) -> io::Result<bool> {
        match fs::remove_file(self.path(id)) {
            Ok(()) => files::sync_folder(&self.folder()).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Parses the content of a letter's file; `None` if it is damaged.
fn parse_letter(id: &LetterId, content: &[u8]) -> Option<DeadLetter> {
    let content = files::unseal(content)?;
    let (header, payload) = content.split_at_checked(content.iter().position(|byte| *byte == b'\n')?)?;
    let LetterHeader { reason, time } = serde_json::from_slice(header).ok()?;
    Some(DeadLetter {
        id: id.to_string(),
        refused_by: refused_by(id),
        reason: reason.into_owned(),
        time: Timestamp::parse(&time).ok()?,
        payload: payload[1..].to_vec(),
    })
}

fn refused_by(id: &LetterId) -> String {
    format!("sinks.{}", id.sink)
}

#[cfg(test)]
mod tests;
