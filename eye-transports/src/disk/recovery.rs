//! Recovery of damaged segments: finds the next whole record, and keeps damaged bytes in the folder `damaged/`.
//!
//! [`recover_end`] runs at startup, on the segment that was written last. All other damage is found by the reader.

use std::io;
use std::path::{Path, PathBuf};

use super::files;
use crate::record::{self, MAGIC, Parsed, Record};

/// Returns the path of the segment whose first event has the number `first`.
pub(super) fn segment_path(queue: &Path, first: u64) -> PathBuf {
    queue.join(format!("{first:020}.log"))
}

/// Returns the number of a segment's first event, from the segment's file name.
pub(super) fn first_of_segment(name: &str) -> Option<u64> {
    name.strip_suffix(".log").filter(|digits| digits.len() == 20)?.parse().ok()
}

/// Finds the first whole record that has an event numbered `expected` or higher, and its offset.
pub(super) fn find_record(bytes: &[u8], expected: u64) -> Option<(usize, Record<'_>)> {
    let mut at = 0;
    loop {
        match record::parse(&bytes[at..]) {
            Parsed::Whole(record) if record.end() > expected => return Some((at, record)),
            _ => at += 1,
        }
        at += bytes.get(at..)?.windows(MAGIC.len()).position(|window| window == MAGIC)?;
    }
}

/// Copies damaged bytes of a segment to a file of their own, for manual repair. Blocks.
pub(super) fn set_aside(queue: &Path, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<PathBuf> {
    let (folder, name) = (queue.join("damaged"), format!("{segment:020}-{offset}.bin"));
    files::write(&folder, &name, bytes)?;
    Ok(folder.join(name))
}

/// Describes the result of [`set_aside`] for the log.
pub(super) fn describe(copied: io::Result<PathBuf>) -> String {
    copied.map_or_else(|error| format!("no copy kept: {error}"), |path| path.display().to_string())
}

/// Cuts off the incomplete end of the segment that was written last, and sets it aside. Blocks.
///
/// Returns the number of the event after the segment's last, and the bytes of its whole records. Every event before
/// `committed` was whole once: if one is incomplete now, the disk has damaged it.
pub(super) fn recover_end(queue: &Path, segment: u64, bytes: u64, committed: u64) -> io::Result<(u64, u64)> {
    let content = files::read_patiently(&segment_path(queue, segment))?;
    let (mut end, mut whole) = (segment, 0);
    while let Some((at, record)) = find_record(&content[whole..], end) {
        end = record.end();
        whole += at + record.size_bytes();
    }
    let rest = &content[whole..];
    if !rest.is_empty() {
        let copy = match set_aside(queue, segment, whole as u64, rest) {
            // The disk is unavailable, and may return with all its data.
            Err(error) if files::is_unreadable(&error) => return Err(error),
            // On a full disk the bytes stay in the segment. The reader finds and reports them.
            Err(_) if end < committed => return Ok((end, bytes)),
            // Bytes that were never acknowledged must not stay: a new segment may get the same name, and the reader
            // would continue in the middle of one of its records.
            copied => describe(copied),
        };
        let bytes = rest.len();
        if end < committed {
            tracing::error!(bytes, copy, "the end of the queue is damaged on the disk: cut off");
        } else {
            tracing::warn!(bytes, copy, "a crash left an incomplete write, which was never acknowledged: cut off");
        }
    }
    if bytes != whole as u64 {
        let file = files::options().open(segment_path(queue, segment))?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    Ok((end, whole as u64))
}
