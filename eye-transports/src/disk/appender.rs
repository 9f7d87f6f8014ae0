//! The writing thread of the disk queue. It groups commits: the requests that arrive during one fsync become one
//! record.
//!
//! A receipt settles as delivered only after its events are synced, in the file that still has the segment's path. A
//! write error other than a full disk ends the thread and the queue, because the state of the file is unknown then.

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

/// The period of [`Appender::maintain`]. No producer waits for it.
const MAINTENANCE_PERIOD: Duration = Duration::from_secs(1);

/// The events of one publish.
pub(super) struct AppendRequest {
    /// The result of [`record::encode`].
    pub(super) events: Vec<u8>,
    pub(super) count: u32,
    /// Called with the outcome of the commit. Dropped, and so failed, if the thread ends before.
    pub(super) settle: Box<dyn FnOnce(Outcome) + Send>,
}

impl AppendRequest {
    /// Returns the capacity to reserve for the request.
    pub(super) fn reserved_bytes(&self) -> u64 {
        (HEADER_BYTES + self.events.len()) as u64
    }
}

/// The state of the queue, for its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QueueStatus {
    Ready,
    /// Requests are refused.
    Full(String),
    /// This process can never write again.
    Broken(String),
}

pub(super) struct Appender {
    log: Arc<Log>,
    /// `None` before the first write, so that a program can start on a full disk. Each start writes to a new segment:
    /// an old one may end in the remains of a crash.
    file: Option<File>,
    /// The number of the first event of the segment that is written to.
    segment: u64,
    /// Bytes of that segment.
    written: u64,
    /// The record that is being written.
    record: Vec<u8>,
    committed: watch::Sender<u64>,
    status: watch::Sender<QueueStatus>,
    /// The last error of each task of [`maintain`](Self::maintain).
    failures: [Option<String>; 3],
}

impl Appender {
    pub(super) fn new(log: Arc<Log>, committed: watch::Sender<u64>, status: watch::Sender<QueueStatus>) -> Self {
        Self {
            log,
            file: None,
            segment: 0,
            written: 0,
            record: Vec::new(),
            committed,
            status,
            failures: Default::default(),
        }
    }

    /// Writes until the queue is closed and empty, or the file is in doubt. Blocks.
    pub(super) fn run(mut self, queue: &Receiver<AppendRequest>) {
        let mut maintain_at = Instant::now();
        loop {
            match queue.recv_timeout(maintain_at.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    if let Err(error) = self.commit(first, queue) {
                        let reason = format!(
                            "cannot write {}: {error}; the write was not acknowledged; repair the disk and start again",
                            self.log.segment_path(self.segment).display()
                        );
                        self.status.send_replace(QueueStatus::Broken(reason));
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.maintain(),
            }
            if Instant::now() >= maintain_at {
                self.maintain();
                maintain_at = Instant::now() + MAINTENANCE_PERIOD;
            }
        }
    }

    /// Commits `first` and the requests behind it as one record. A full disk fails them, and the next may succeed.
    ///
    /// # Errors
    /// The state of the file is unknown.
    fn commit(&mut self, first: AppendRequest, queue: &Receiver<AppendRequest>) -> io::Result<()> {
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
        let is_written = self.write(count)?;
        let outcome = if is_written {
            let next = self.log.commit(self.segment, reserved, self.record.len() as u64, count);
            self.committed.send_replace(next);
            Outcome::Delivered
        } else {
            let mut capacity = self.log.capacity();
            capacity.release(reserved);
            // Refuses requests until the next measurement.
            capacity.set_free(0);
            Outcome::failed("the disk of the queue is full")
        };
        settles.into_iter().for_each(|settle| settle(outcome.clone()));
        Ok(())
    }

    /// Writes and syncs the record. Returns false, and leaves no part of the record, if the disk is full.
    fn write(&mut self, count: u32) -> io::Result<bool> {
        if self.file.is_none() || self.written >= self.log.segment_bytes {
            match self.log.new_segment() {
                Ok((segment, file)) => (self.segment, self.file, self.written) = (segment, Some(file), 0),
                Err(error) if is_full(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let file = self.file.as_ref().expect("opened above");
        record::seal(&mut self.record, self.log.lock().next, count);
        match file.write_all_at(&self.record, self.written) {
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                file.set_len(self.written)?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        // After a failed fsync the state of the file is unknown, and a second fsync would not tell.
        if !mutant::is("no-sync") {
            file.sync_data()?;
        }
        self.check_path()?;
        self.written += self.record.len() as u64;
        Ok(true)
    }

    /// Fails if the segment was removed or replaced: events in it could not be read back.
    fn check_path(&self) -> io::Result<()> {
        let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let file = self.file.as_ref().expect("a record was written to it");
        let at_path = self.log.segment_path(self.segment).metadata().map(id);
        if at_path.is_ok_and(|at_path| file.metadata().map(id).is_ok_and(|written| written == at_path)) {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::NotFound, "the file was removed or replaced while it was in use"))
    }

    /// Saves the cursors, removes settled segments and measures the disk. Each task is independent of the others: a
    /// disk that is too full for the cursors needs the removal all the more. A failed task is logged, and retried next
    /// time.
    fn maintain(&mut self) {
        let log = self.log.clone();
        // Read before the save: a removed segment is then always before the saved cursors, and does not count as
        // missing.
        let low_cursor = log.low_cursor();
        let saved = log.save_cursors();
        let removed = log.remove_before(low_cursor);
        let tasks = [
            // The removal may have made space.
            ("save the cursors", saved.or_else(|_| log.save_cursors())),
            ("remove delivered events", removed),
            ("measure the free space", log.measure_disk()),
        ];
        for ((task, result), failure) in tasks.into_iter().zip(&mut self.failures) {
            let error = result.err().map(|error| error.to_string());
            // Logged once for each reason: a line a second would take the space that is lacking.
            if let Some(error) = error.as_ref().filter(|error| failure.as_ref() != Some(error)) {
                tracing::warn!(component = "transport", error, "cannot {task} in {}", log.path.display());
            }
            *failure = error;
        }
        let status = log.capacity().refusing().map_or(QueueStatus::Ready, QueueStatus::Full);
        self.status.send_if_modified(|before| {
            let is_changed = *before != status;
            *before = status;
            is_changed
        });
    }
}

#[cfg(test)]
impl Appender {
    /// Replaces the file that is written to.
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = Some(file);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}
