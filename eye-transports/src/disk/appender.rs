//! The thread that writes: all requests that arrive during one fsync are the next record.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use eye_core::ack::Outcome;
use eye_core::mutant;
use tokio::sync::watch;

use super::log::Log;
use crate::record::{self, HEADER_BYTES};

/// Bytes after which a record takes no further request.
const MAX_RECORD_BYTES: usize = 4 * 1024 * 1024;

/// How often the disk is looked at, and what is done with removed. It bounds nothing that a producer waits for.
const TICK: Duration = Duration::from_secs(1);

/// The events of one publish.
pub(super) struct Request {
    /// As [`record::encode`] made them.
    pub(super) events: Vec<u8>,
    pub(super) count: u32,
    /// Called with [`Outcome::Delivered`] once they are committed; dropped when the thread ends without.
    pub(super) settle: Box<dyn FnOnce(Outcome) + Send>,
}

impl Request {
    /// The room it takes.
    pub(super) fn reserved_bytes(&self) -> u64 {
        (HEADER_BYTES + self.events.len()) as u64
    }
}

/// How the queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ready,
    /// Requests are refused.
    Full(String),
    /// It can never write again in this process.
    Broken(String),
}

pub(super) struct Appender {
    log: Arc<Log>,
    /// `None` before the first write: a full disk can be started on, and drained. Nothing is ever written behind what a
    /// crash has left.
    file: Option<File>,
    /// The number of the first event of the segment that is written to.
    segment: u64,
    /// Bytes of it.
    written: u64,
    /// What is being written. It starts with room for the header.
    record: Vec<u8>,
    committed: watch::Sender<u64>,
    status: watch::Sender<Status>,
    /// Why each part of [`tick`](Self::tick) could not be done the last time.
    undone: [Option<String>; 3],
}

impl Appender {
    pub(super) fn new(log: Arc<Log>, committed: watch::Sender<u64>, status: watch::Sender<Status>) -> Self {
        Self {
            log,
            file: None,
            segment: 0,
            written: 0,
            record: Vec::new(),
            committed,
            status,
            undone: Default::default(),
        }
    }

    /// Writes until the queue is closed and empty, or nothing can be written any more. Blocks.
    pub(super) fn run(mut self, queue: &Receiver<Request>) {
        let mut tick_at = Instant::now();
        loop {
            match queue.recv_timeout(tick_at.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    if let Err(error) = self.commit(first, queue) {
                        let reason = format!(
                            "cannot write {}: {error}; what was being written was not acknowledged",
                            self.log.segment_path(self.segment).display()
                        );
                        self.status.send_replace(Status::Broken(reason));
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.tick(),
            }
            if Instant::now() >= tick_at {
                self.tick();
                tick_at = Instant::now() + TICK;
            }
        }
    }

    /// Commits `first` and what else is there.
    ///
    /// # Errors
    /// What leaves the file in doubt. A full disk does not: its requests fail, and the next may have room.
    fn commit(&mut self, first: Request, queue: &Receiver<Request>) -> io::Result<()> {
        self.record.clear();
        self.record.resize(HEADER_BYTES, 0);
        let (mut settles, mut count, mut reserved) = (Vec::new(), 0, 0);
        for request in std::iter::once(first).chain(queue.try_iter()) {
            self.record.extend_from_slice(&request.events);
            count += request.count;
            reserved += request.reserved_bytes();
            settles.push(request.settle);
            if self.record.len() >= MAX_RECORD_BYTES {
                break;
            }
        }
        if mutant::is("ack-before-sync") {
            settles.drain(..).for_each(|settle: Box<dyn FnOnce(Outcome) + Send>| settle(Outcome::Delivered));
        }
        if !self.write(count)? {
            self.log.release(reserved);
            self.log.disk_is_full();
            for settle in settles {
                settle(Outcome::failed("the disk of the queue is full"));
            }
            return Ok(());
        }
        let next = self.log.committed(self.segment, reserved, self.record.len() as u64, count);
        for settle in settles {
            settle(Outcome::Delivered);
        }
        self.committed.send_replace(next);
        Ok(())
    }

    /// Writes the record, and waits until the disk has it. False when the disk is full; then nothing of it is there.
    fn write(&mut self, count: u32) -> io::Result<bool> {
        if self.file.is_none() || self.written >= self.log.segment_bytes() {
            match self.log.new_segment() {
                Ok((segment, file)) => (self.segment, self.file, self.written) = (segment, Some(file), 0),
                Err(error) if is_full(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let file = self.file.as_ref().expect("it was made above");
        record::seal(&mut self.record, self.log.lock().next, count);
        match file.write_all_at(&self.record, self.written) {
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                file.set_len(self.written)?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        // When this fails nobody knows what the disk has, and a second try would not tell.
        if !mutant::is("no-sync") {
            file.sync_data()?;
        }
        self.check_path()?;
        self.written += self.record.len() as u64;
        Ok(true)
    }

    /// A file that was removed or replaced takes all that is written to it, and nobody can read it.
    fn check_path(&self) -> io::Result<()> {
        let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let file = self.file.as_ref().expect("it was written to");
        let there = self.log.segment_path(self.segment).metadata().map(id);
        if there.is_ok_and(|there| file.metadata().map(id).is_ok_and(|written| written == there)) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "the file was removed or replaced while it was in use"))
    }

    /// What does not have to be done at once. None of it can lose anything, so a failure is logged and tried again.
    /// Each for itself: when the disk is too full to save the cursors, what is done with is removed all the more.
    fn tick(&mut self) {
        let log = self.log.clone();
        // Asked first, so that no crash leaves a saved cursor before the oldest segment, as if what it had were lost.
        let done_before = log.done_before();
        let saved = log.save_cursors();
        let removed = log.remove_before(done_before);
        let works = [
            // Now there may be room for them, and the oldest segment may be another.
            ("save the cursors", saved.or_else(|_| log.save_cursors())),
            ("remove what is delivered", removed),
            ("see what room the disk has", log.look_at_disk()),
        ];
        for ((work, done), undone) in works.into_iter().zip(&mut self.undone) {
            let error = done.err().map(|error| error.to_string());
            // Once for each reason: a log that grows every second would take the room that is lacking.
            if let Some(error) = error.as_ref().filter(|error| undone.as_ref() != Some(error)) {
                tracing::warn!(component = "transport", error, "cannot {work} in {}", log.path().display());
            }
            *undone = error;
        }
        let status = log.refusing().map_or(Status::Ready, Status::Full);
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
    }
}

#[cfg(test)]
impl Appender {
    /// Writes to this file from now on.
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = Some(file);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}
