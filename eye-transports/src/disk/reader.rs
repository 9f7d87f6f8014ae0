//! Reads what is committed, one consumer's own way through the segments. What is damaged is reported, set aside and
//! passed over: it never stops the queue, and is never passed over in silence.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use eye_core::event::Event;
use eye_core::transport::BatchLimits;

use super::files;
use super::log::{Log, described, find_record};
use crate::record::{self, Parsed};

/// Bytes read at once, if there are as many; a record that is larger is read whole.
const CHUNK_BYTES: u64 = 1024 * 1024;

/// An event with its number in the queue.
pub(super) type Numbered = (u64, Event);

pub(super) struct Reader {
    log: Arc<Log>,
    consumer: String,
    /// The number of the next event to be read.
    next: u64,
    place: Option<Place>,
    /// The place's segment while there is something to read: one that is removed takes room as long as it is open.
    file: Option<File>,
    /// What was read from the place on, and is committed.
    buffer: Vec<u8>,
    /// Bytes of the buffer that are before the place.
    used: usize,
    /// How often in a row the disk could not read.
    failed_reads: u32,
}

/// A place in a segment.
struct Place {
    segment: u64,
    offset: u64,
}

impl Reader {
    pub(super) fn new(log: Arc<Log>, consumer: String, next: u64) -> Self {
        Self { log, consumer, next, place: None, file: None, buffer: Vec::new(), used: 0, failed_reads: 0 }
    }

    /// The number of the next event to be read.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Adds records to `ahead` until it holds as much as one batch may, or there is no more. Blocks.
    ///
    /// # Errors
    /// When the disk cannot be read; the next call goes on where this one stopped.
    pub(super) fn read(&mut self, limits: BatchLimits, ahead: &mut VecDeque<Numbered>) -> io::Result<()> {
        let mut bytes: usize = ahead.iter().map(|(_, event)| event.size_bytes()).sum();
        while ahead.len() < limits.max_events && bytes < limits.max_bytes {
            let Some((first, events)) = self.next_record()? else { break };
            let unread = (first..).zip(events).filter(|(number, _)| *number >= self.next);
            ahead.extend(unread.inspect(|(_, event)| bytes += event.size_bytes()));
            self.next = ahead.back().map_or(self.next, |(number, _)| number + 1);
        }
        Ok(())
    }

    /// The next record that has events from `next` on: the number of its first event, and its events.
    fn next_record(&mut self) -> io::Result<Option<(u64, Vec<Event>)>> {
        while let Some(remaining) = self.find_place()? {
            match record::parse(&self.buffer[self.used..]) {
                Parsed::Whole(record) => {
                    let (first, end, size) = (record.first, record.end(), record.size_bytes());
                    let Some(events) = record.events() else {
                        self.pass_over_damage(remaining)?;
                        continue;
                    };
                    self.advance(size);
                    if end > self.next {
                        self.report_missing(first);
                        return Ok(Some((first, events)));
                    }
                }
                Parsed::Short(needed) if needed as u64 <= remaining => {
                    if !self.fill(remaining.min(CHUNK_BYTES.max(needed as u64)))? {
                        self.pass_over_damage(remaining)?;
                    }
                }
                Parsed::Short(_) | Parsed::Damaged => self.pass_over_damage(remaining)?,
            }
        }
        Ok(None)
    }

    /// Goes to the next segment where this one is read to its end. How many committed bytes lie before us, if any.
    fn find_place(&mut self) -> io::Result<Option<u64>> {
        loop {
            let state = self.log.lock();
            let from = match &self.place {
                Some(place) => {
                    let committed = state.segments.get(&place.segment).copied().unwrap_or_default();
                    if committed > place.offset {
                        return Ok(Some(committed - place.offset));
                    }
                    Bound::Excluded(place.segment)
                }
                None => match state.segments.range(..=self.next).next_back() {
                    Some((first, _)) => Bound::Included(*first),
                    None => Bound::Unbounded,
                },
            };
            let segment = state.segments.range((from, Bound::Unbounded)).find(|(_, bytes)| **bytes > 0);
            let (segment, end) = (segment.map(|(first, _)| *first), state.next);
            drop(state);
            let Some(segment) = segment else {
                self.file = None;
                self.report_missing(end);
                return Ok(None);
            };
            self.buffer.clear();
            self.used = 0;
            self.file = None;
            self.place = Some(Place { segment, offset: 0 });
        }
    }

    /// Reads so many bytes from the place on. False when the file is shorter, or gone.
    fn fill(&mut self, bytes: u64) -> io::Result<bool> {
        self.used = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(bytes as usize, 0);
        match self.read_exact(&mut buffer) {
            Ok(()) => {
                self.buffer = buffer;
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::NotFound => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Fills `bytes` from the place on. What the disk cannot read, several times, is zeros, and so is found to be damaged.
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let place = self.place.as_ref().expect("there is something to read");
        let file = open(&mut self.file, &self.log.segment_path(place.segment))?;
        match file.read_exact_at(bytes, place.offset) {
            Err(error) if files::is_unreadable(&error) => {
                self.failed_reads += 1;
                if self.failed_reads < files::READ_TRIES {
                    return Err(error);
                }
                files::read_all_that_can_be(file, bytes, place.offset)
            }
            read => {
                self.failed_reads = 0;
                read
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.used += bytes;
        self.place.as_mut().expect("something was read").offset += bytes as u64;
    }

    /// What lies before us is no record: goes to the next one in this segment, else to its end.
    fn pass_over_damage(&mut self, remaining: u64) -> io::Result<()> {
        let place = self.place.as_ref().expect("something was read");
        let offset = place.offset;
        let rest = match open(&mut self.file, &self.log.segment_path(place.segment)) {
            Ok(file) => {
                let length = file.metadata()?.len().saturating_sub(offset);
                let mut rest = vec![0; remaining.min(length) as usize];
                self.read_exact(&mut rest)?;
                rest
            }
            // Somebody removed it.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let damaged = rest.get(1..).and_then(|rest| find_record(rest, self.next)).map(|(at, _)| at + 1);
        let place = self.place.as_mut().expect("as before");
        let kept = self.log.set_aside(place.segment, offset, &rest[..damaged.unwrap_or(rest.len())]);
        let kept = match kept {
            // It is not a place that is damaged: the disk is away, and may come back with all that it has.
            Err(error) if files::is_unreadable(&error) => return Err(error),
            kept => described(kept),
        };
        tracing::error!(
            component = "transport",
            sink = self.consumer,
            segment = %self.log.segment_path(place.segment).display(),
            offset,
            bytes = damaged.map_or(remaining, |bytes| bytes as u64),
            kept,
            "damaged on the disk"
        );
        self.buffer.clear();
        self.used = 0;
        place.offset += damaged.map_or(remaining, |bytes| bytes as u64);
        Ok(())
    }

    /// The next event there is has the number `first`.
    fn report_missing(&mut self, first: u64) {
        if let Some(missing @ 1..) = first.checked_sub(self.next) {
            let from = self.next;
            self.log.note_missing(&self.consumer, missing, first);
            tracing::error!(
                component = "transport",
                sink = self.consumer,
                missing,
                from,
                "events that were acknowledged cannot be read: the disk has lost or damaged them"
            );
            self.next = first;
        }
    }
}

fn open<'a>(file: &'a mut Option<File>, path: &Path) -> io::Result<&'a File> {
    match file {
        Some(file) => Ok(file),
        None => Ok(file.insert(File::open(path)?)),
    }
}
