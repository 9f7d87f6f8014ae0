//! Sequential reading of committed events, for one consumer.
//!
//! Damage never stops the reader: it reports damaged bytes, sets them aside, and continues with the next whole record.
//! Gaps in the event numbers tell how many events are missing. Read [`LogReader`] first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use eye_core::event::Event;
use eye_core::transport::BatchLimits;

use super::log::Log;
use super::{files, recovery};
use crate::record::{self, Parsed};

/// The bytes of one read, unless a single record is larger.
const CHUNK_BYTES: u64 = 1024 * 1024;

pub(super) struct LogReader {
    log: Arc<Log>,
    consumer: String,
    /// The number of the next event to read.
    next: u64,
    /// Events that are read and not settled, with their numbers.
    ahead: VecDeque<(u64, Event)>,
    /// The size of these events.
    ahead_bytes: usize,
    position: SegmentPosition,
    /// Committed bytes from the position on.
    buffer: Bytes,
    /// Consecutive reads that failed with an error of the disk.
    failed_reads: u32,
}

#[derive(Clone, Copy)]
struct SegmentPosition {
    segment: u64,
    offset: u64,
}

impl LogReader {
    pub(super) fn new(log: Arc<Log>, consumer: String, next: u64) -> Self {
        let position = SegmentPosition { segment: log.lock().segment_of(next), offset: 0 };
        let (ahead, buffer) = (VecDeque::new(), Bytes::new());
        Self { log, consumer, next, ahead, ahead_bytes: 0, position, buffer, failed_reads: 0 }
    }

    /// Reads ahead until a batch is full or no more events are committed. Blocks.
    ///
    /// # Errors
    /// The disk cannot be read. The next call continues at the same position.
    pub(super) fn read(&mut self, limits: BatchLimits) -> io::Result<()> {
        while self.full_at(limits).is_some() {
            let Some((first, events)) = self.next_record()? else { break };
            let unread = (first..).zip(events).filter(|(number, _)| *number >= self.next);
            self.ahead.extend(unread.inspect(|(_, event)| self.ahead_bytes += event.size_bytes()));
            self.next = self.ahead.back().map_or(self.next, |(number, _)| number + 1);
        }
        if self.is_empty() {
            // Events that are missing at the end of the queue are passed, too.
            self.log.ack(&self.consumer, self.next);
        }
        Ok(())
    }

    /// Returns whether all events that are read are settled.
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Returns the number that `next` must reach for a full batch; `None` if the batch is full.
    pub(super) fn full_at(&self, limits: BatchLimits) -> Option<u64> {
        let missing = limits.max_events.saturating_sub(self.ahead.len());
        (missing > 0 && self.ahead_bytes < limits.max_bytes).then_some(self.next + missing as u64)
    }

    /// Returns the next batch and the number of its first event. The numbers of a batch are consecutive.
    pub(super) fn batch(&self, limits: BatchLimits) -> (u64, Vec<Event>) {
        let first = self.ahead.front().map_or(self.next, |(number, _)| *number);
        let mut bytes = 0;
        let fits = (first..).zip(&self.ahead).take(limits.max_events).take_while(|(expected, (number, event))| {
            bytes += event.size_bytes();
            number == expected && (bytes <= limits.max_bytes || number == &first)
        });
        (first, fits.map(|(_, (_, event))| event.clone()).collect())
    }

    /// Removes the first `count` events and moves the consumer's cursor behind them.
    pub(super) fn settle(&mut self, count: usize) {
        for (number, event) in self.ahead.drain(..count) {
            self.ahead_bytes -= event.size_bytes();
            self.log.ack(&self.consumer, number + 1);
        }
    }

    /// Reads the next record that has unread events. Returns the number of its first event, and all its events.
    fn next_record(&mut self) -> io::Result<Option<(u64, Vec<Event>)>> {
        while let Some(remaining) = self.seek() {
            match record::parse(&self.buffer) {
                Parsed::Whole(record) => {
                    let (first, end, size) = (record.first, record.end(), record.size_bytes());
                    let Some(events) = record.events() else {
                        self.skip_damage(remaining)?;
                        continue;
                    };
                    self.buffer.advance(size);
                    self.position.offset += size as u64;
                    if end > self.next {
                        self.report_missing(first);
                        return Ok(Some((first, events)));
                    }
                }
                Parsed::Short(needed) if needed as u64 <= remaining => {
                    let wanted = remaining.min(CHUNK_BYTES.max(needed as u64));
                    self.buffer = self.read_segment(wanted)?.into();
                    if (self.buffer.len() as u64) < wanted {
                        self.skip_damage(remaining)?;
                    }
                }
                Parsed::Short(_) | Parsed::Damaged => self.skip_damage(remaining)?,
            }
        }
        Ok(None)
    }

    /// Moves to the next segment once the current one is read. Returns the committed bytes from the position on; `None`
    /// at the end of the queue.
    fn seek(&mut self) -> Option<u64> {
        let state = self.log.lock();
        let SegmentPosition { segment, offset } = self.position;
        let committed = state.segments.get(&segment).copied().unwrap_or_default();
        if committed > offset {
            return Some(committed - offset);
        }
        let found = state.segments.range(segment + 1..).find(|(_, bytes)| **bytes > 0);
        let (found, end) = (found.map(|(first, bytes)| (*first, *bytes)), state.next);
        drop(state);
        let Some((segment, committed)) = found else {
            self.report_missing(end);
            return None;
        };
        self.buffer.clear();
        self.position = SegmentPosition { segment, offset: 0 };
        Some(committed)
    }

    /// Reads bytes from the position on: fewer if the segment is cut off, and none if its file is gone. Bytes that
    /// remain unreadable become zeros, and so count as damaged.
    fn read_segment(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        let SegmentPosition { segment, offset } = self.position;
        // Opened for each read: a removed segment would take disk space as long as its file is open.
        let file = match File::open(self.log.segment_path(segment)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        let available = file.metadata()?.len().saturating_sub(offset);
        let mut content = vec![0; bytes.min(available) as usize];
        match file.read_exact_at(&mut content, offset) {
            Err(error) if files::is_unreadable(&error) => {
                self.failed_reads += 1;
                if self.failed_reads < files::READ_TRIES {
                    return Err(error);
                }
                files::read_zeroing_unreadable(&file, &mut content, offset)?;
            }
            read => {
                read?;
                self.failed_reads = 0;
            }
        }
        Ok(content)
    }

    /// Skips the bytes before the next whole record of the segment, or before the segment's end. Reports them, and sets
    /// them aside.
    fn skip_damage(&mut self, remaining: u64) -> io::Result<()> {
        let rest = self.read_segment(remaining)?;
        let SegmentPosition { segment, offset } = self.position;
        let damaged = rest.get(1..).and_then(|rest| recovery::find_record(rest, self.next)).map(|(at, _)| at + 1);
        let copied = recovery::set_aside(&self.log.path, segment, offset, &rest[..damaged.unwrap_or(rest.len())]);
        let copy = match copied {
            // The whole disk is unavailable, and may return with all its data.
            Err(error) if files::is_unreadable(&error) => return Err(error),
            copied => recovery::describe(copied),
        };
        let skipped = damaged.map_or(remaining, |bytes| bytes as u64);
        tracing::error!(
            component = "transport",
            sink = self.consumer,
            segment = %self.log.segment_path(segment).display(),
            offset,
            bytes = skipped,
            copy,
            "damaged on the disk: skipped"
        );
        self.buffer.clear();
        self.position.offset += skipped;
        Ok(())
    }

    /// Reports the events before the number `first`, the next one that can be read, as missing.
    fn report_missing(&mut self, first: u64) {
        if let Some(missing @ 1..) = first.checked_sub(self.next) {
            let from = self.next;
            self.log.note_missing(&self.consumer, missing, first);
            tracing::error!(
                component = "transport",
                sink = self.consumer,
                missing,
                from,
                "acknowledged events are missing: the disk has lost or damaged them"
            );
            self.next = first;
        }
    }
}
