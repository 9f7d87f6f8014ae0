//! Events that a sink refused for good, kept beside the queue: a file for each batch that had any, a line for each event.

use std::io;
use std::path::Path;

use eye_core::ack::Rejection;
use eye_core::event::Event;
use eye_core::timestamp::Timestamp;
use serde::Serialize;

use super::files;
use super::reader::Numbered;

#[derive(Serialize)]
struct DeadLetter<'a> {
    /// In the queue. A batch that came again after a crash has the same numbers again.
    number: u64,
    sink: &'a str,
    reason: &'a str,
    time: Timestamp,
    /// As `POST /api/event/` takes it.
    event: &'a Event,
}

/// Writes the refused events of a batch, durably, below the queue's folder. Blocks.
pub(super) fn write(queue: &Path, sink: &str, batch: &[Numbered], rejections: &[Rejection]) -> io::Result<()> {
    let time = Timestamp::now();
    let mut lines = Vec::new();
    let mut name = None;
    for Rejection { index, reason } in rejections {
        let Some((number, event)) = batch.get(*index) else { continue };
        serde_json::to_writer(&mut lines, &DeadLetter { number: *number, sink, reason, time, event })?;
        lines.push(b'\n');
        name.get_or_insert_with(|| format!("{number:020}.{sink}.ndjson"));
    }
    let Some(name) = name else { return Ok(()) };
    files::write(&queue.join("dead-letters"), &name, &lines)?;
    // Why may quote an event, so it is in the file alone.
    tracing::warn!(
        component = format!("sinks.{sink}"),
        count = rejections.len(),
        file = %queue.join("dead-letters").join(name).display(),
        "refused events are kept as dead letters"
    );
    Ok(())
}
