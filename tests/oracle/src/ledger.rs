//! The ledger on the disk: the intent to send an event, written before the send, and the outcome, written afterwards.
//!
//! [`Ledger`] is its content in memory, [`LedgerWriter`] appends to the file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;
use uuid::Uuid;

/// The outcome of an event as its producer knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReportedOutcome {
    /// No answer, or a request to try again. The event may be stored or not.
    #[default]
    Unknown,
    /// The event is refused for good and never stored.
    Refused,
    /// The event is acknowledged, whatever the answers to its other sends were.
    Acked,
}

impl ReportedOutcome {
    fn keyword(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Acked => "acked",
        }
    }
}

/// The content of a ledger: fingerprint and outcome of every event that was to be sent.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub(crate) entries: HashMap<Uuid, (u64, ReportedOutcome)>,
    /// The number of events with each outcome.
    counts: [usize; 3],
}

impl Ledger {
    /// Reads the file without an incomplete last line.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is no ledger.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut ledger = Self::default();
        for line in complete.lines() {
            ledger.apply(line).ok_or_else(|| io::Error::other(format!("not a line of a ledger: {line:?}")))?;
        }
        Ok(ledger)
    }

    fn apply(&mut self, line: &str) -> Option<()> {
        let (keyword, rest) = line.split_once(' ')?;
        if keyword == "intent" {
            let (id, fingerprint) = rest.split_once(' ')?;
            return self.record_intent(id.parse().ok()?, fingerprint.parse().ok()?);
        }
        let outcome = [ReportedOutcome::Unknown, ReportedOutcome::Refused, ReportedOutcome::Acked]
            .into_iter()
            .find(|outcome| outcome.keyword() == keyword)?;
        self.record_outcome(rest.parse().ok()?, outcome)
    }

    /// Records the intent to send an event. Returns `None` if the id is known already.
    pub fn record_intent(&mut self, id: Uuid, fingerprint: u64) -> Option<()> {
        self.counts[ReportedOutcome::Unknown as usize] += 1;
        self.entries.insert(id, (fingerprint, ReportedOutcome::Unknown)).is_none().then_some(())
    }

    /// Records an outcome. Returns `None` if the id is unknown.
    pub fn record_outcome(&mut self, id: Uuid, outcome: ReportedOutcome) -> Option<()> {
        let (_, known) = self.entries.get_mut(&id)?;
        self.counts[*known as usize] -= 1;
        *known = outcome.max(*known);
        self.counts[*known as usize] += 1;
        Some(())
    }

    /// Returns the ids of all acknowledged events.
    pub fn acked(&self) -> impl Iterator<Item = Uuid> {
        self.entries.iter().filter(|(_, (_, outcome))| *outcome == ReportedOutcome::Acked).map(|(id, _)| *id)
    }

    /// Returns the number of events with this outcome.
    pub fn count(&self, outcome: ReportedOutcome) -> usize {
        self.counts[outcome as usize]
    }
}

/// A writer that appends to a ledger. Lines that arrive during one `fdatasync` share the next.
#[derive(Clone, Debug)]
pub(crate) struct LedgerWriter(mpsc::Sender<(String, oneshot::Sender<()>)>);

impl LedgerWriter {
    /// Opens the file, or creates it.
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(file)?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || write(file, &receiver));
        Ok(Self(sender))
    }

    /// Appends intents and returns after their sync.
    pub(crate) async fn write_intents(&self, events: &[(Uuid, u64)]) {
        self.append(events.iter().map(|(id, fingerprint)| format!("intent {id} {fingerprint}\n")).collect()).await;
    }

    /// Appends outcomes and returns after their sync.
    pub(crate) async fn write_outcomes(&self, outcomes: &[(Uuid, ReportedOutcome)]) {
        self.append(outcomes.iter().map(|(id, outcome)| format!("{} {id}\n", outcome.keyword())).collect()).await;
    }

    async fn append(&self, lines: String) {
        let (done, written) = oneshot::channel();
        self.0.send((lines, done)).expect("the thread outlives all writers");
        written.await.expect("the ledger can be written");
    }
}

fn write(mut file: File, receiver: &mpsc::Receiver<(String, oneshot::Sender<()>)>) {
    while let Ok(first) = receiver.recv() {
        let group: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let lines: String = group.iter().map(|(lines, _)| lines.as_str()).collect();
        file.write_all(lines.as_bytes()).and_then(|()| file.sync_data()).expect("the ledger can be written");
        for (_, done) in group {
            // All callers still wait.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn best_answer_is_the_outcome() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger");
        let writer = LedgerWriter::open(&file).unwrap();
        let ids: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
        let events: Vec<_> = ids.iter().zip(1..).map(|(id, fingerprint)| (*id, fingerprint)).collect();
        writer.write_intents(&events).await;
        writer
            .write_outcomes(&[
                (ids[1], ReportedOutcome::Refused),
                (ids[2], ReportedOutcome::Acked),
                (ids[3], ReportedOutcome::Unknown),
            ])
            .await;
        // Sent again.
        writer.write_outcomes(&[(ids[2], ReportedOutcome::Unknown), (ids[3], ReportedOutcome::Acked)]).await;
        let ledger = Ledger::read(&file).unwrap();
        let outcomes: Vec<ReportedOutcome> = ids.iter().map(|id| ledger.entries[id].1).collect();
        assert_eq!(
            outcomes,
            [ReportedOutcome::Unknown, ReportedOutcome::Refused, ReportedOutcome::Acked, ReportedOutcome::Acked]
        );
        assert_eq!(ledger.entries[&ids[0]].0, events[0].1);
        assert_eq!(ledger.count(ReportedOutcome::Acked), 2);
    }

    #[test]
    fn only_an_incomplete_last_line_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger");
        let id = Uuid::from_u128(1);
        for (text, readable) in [
            (format!("intent {id} 7\nacked {id}\n"), true),
            (format!("intent {id} 7\nacked {}", &id.to_string()[..5]), true),
            (format!("intent {id} 7\nintent {id} 7\n"), false),
            (format!("acked {id}\n"), false),
            ("nonsense\n".to_owned(), false),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(Ledger::read(&file).is_ok(), readable, "{text}");
        }
    }
}
