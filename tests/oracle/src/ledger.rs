//! What was sent and what was answered, on the disk: intents before the event is sent, fates afterwards.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;
use uuid::Uuid;

/// What producers were told of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Nothing, or to try again: it may be stored or not.
    #[default]
    Unknown,
    /// That it never will be stored.
    Refused,
    /// That it is taken for good, whatever else they were told when it was sent at other times.
    Acked,
}

impl Fate {
    fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Acked => "acked",
        }
    }
}

/// A ledger as it was read: of each id that was ever to be sent, the hash of what is to be stored, and its fate.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub(crate) entries: HashMap<Uuid, (String, Fate)>,
    /// By fate.
    counts: [usize; 3],
}

impl Ledger {
    /// Reads the file. What is being written may be missing.
    ///
    /// # Errors
    /// That it cannot be read, or is no ledger.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        // What comes after the last line break is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut ledger = Self::default();
        for line in whole.lines() {
            ledger.apply(line).ok_or_else(|| io::Error::other(format!("no line of a ledger: {line:?}")))?;
        }
        Ok(ledger)
    }

    fn apply(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ')?;
        if word == "intent" {
            let (id, hash) = rest.split_once(' ')?;
            return self.issue(id.parse().ok()?, hash.to_owned());
        }
        let fate = [Fate::Unknown, Fate::Refused, Fate::Acked].into_iter().find(|fate| fate.word() == word)?;
        self.settle(rest.parse().ok()?, fate)
    }

    /// Notes an intent; `None` when there was one of this id.
    pub(crate) fn issue(&mut self, id: Uuid, hash: String) -> Option<()> {
        self.counts[Fate::Unknown as usize] += 1;
        self.entries.insert(id, (hash, Fate::Unknown)).is_none().then_some(())
    }

    /// Notes a fate; `None` for an event that nobody has heard of.
    pub(crate) fn settle(&mut self, id: Uuid, fate: Fate) -> Option<()> {
        let (_, known) = self.entries.get_mut(&id)?;
        self.counts[*known as usize] -= 1;
        *known = fate.max(*known);
        self.counts[*known as usize] += 1;
        Some(())
    }

    /// How many events have this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.counts[fate as usize]
    }
}

/// Writes a ledger. What arrives during one `fdatasync` shares the next.
#[derive(Clone, Debug)]
pub(crate) struct Writer(mpsc::Sender<(String, oneshot::Sender<()>)>);

impl Writer {
    /// Continues the file, or makes it.
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(file)?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || write(file, &receiver));
        Ok(Self(sender))
    }

    /// Returns when all intents are on the disk.
    pub(crate) async fn intend(&self, events: &[(Uuid, String)]) {
        self.append(events.iter().map(|(id, hash)| format!("intent {id} {hash}\n")).collect()).await;
    }

    /// Returns when the fates are on the disk.
    pub(crate) async fn settle(&self, fates: &[(Uuid, Fate)]) {
        self.append(fates.iter().map(|(id, fate)| format!("{} {id}\n", fate.word())).collect()).await;
    }

    async fn append(&self, lines: String) {
        let (done, written) = oneshot::channel();
        self.0.send((lines, done)).expect("the thread ends last");
        written.await.expect("the ledger can be written");
    }
}

fn write(mut file: File, receiver: &mpsc::Receiver<(String, oneshot::Sender<()>)>) {
    while let Ok(first) = receiver.recv() {
        let group: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let lines: String = group.iter().map(|(lines, _)| lines.as_str()).collect();
        file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).expect("the ledger can be written");
        for (_, done) in group {
            // Nobody leaves before.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_best_that_was_said_of_an_event_is_its_fate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger");
        let writer = Writer::open(&file).unwrap();
        let ids: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
        let events: Vec<_> = ids.iter().map(|id| (*id, id.simple().to_string())).collect();
        writer.intend(&events).await;
        writer.settle(&[(ids[1], Fate::Refused), (ids[2], Fate::Acked), (ids[3], Fate::Unknown)]).await;
        // Sent again.
        writer.settle(&[(ids[2], Fate::Unknown), (ids[3], Fate::Acked)]).await;
        let ledger = Ledger::read(&file).unwrap();
        let fates: Vec<Fate> = ids.iter().map(|id| ledger.entries[id].1).collect();
        assert_eq!(fates, [Fate::Unknown, Fate::Refused, Fate::Acked, Fate::Acked]);
        assert_eq!(ledger.entries[&ids[0]].0, events[0].1);
        assert_eq!(ledger.count(Fate::Acked), 2);
    }

    #[test]
    fn what_is_no_ledger_is_an_error_and_half_a_line_at_its_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger");
        let id = Uuid::from_u128(1);
        for (text, readable) in [
            (format!("intent {id} ab\nacked {id}\n"), true),
            (format!("intent {id} ab\nacked {}", &id.to_string()[..5]), true),
            (format!("intent {id} ab\nintent {id} ab\n"), false),
            (format!("acked {id}\n"), false),
            ("nonsense\n".to_owned(), false),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(Ledger::read(&file).is_ok(), readable, "{text}");
        }
    }
}
