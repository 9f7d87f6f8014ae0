//! Stderr behind a bounded queue.
//!
//! A thread of its own writes, so a slow or absent reader blocks no one that logs. Lines that do not fit are counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for a slow reader. Further ones are lost and counted.
const MAX_WAITING_LINES: usize = 4096;

/// A writer of log lines. Each `write` is one whole line.
#[derive(Clone)]
pub(super) struct Stderr {
    queue: SyncSender<QueueItem>,
    lost: Arc<AtomicUsize>,
}

enum QueueItem {
    Line(Vec<u8>),
    /// Dropped by the thread once all lines before it are written.
    Mark(#[expect(dead_code, reason = "its drop is the signal")] SyncSender<()>),
}

impl Stderr {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    /// Fails if the system cannot start a thread.
    pub(super) fn start() -> io::Result<Self> {
        let (queue, waiting) = sync_channel(MAX_WAITING_LINES);
        let lost = Arc::new(AtomicUsize::new(0));
        let stderr = Self { queue, lost: lost.clone() };
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || write_lines(&waiting, &lost))?;
        Ok(stderr)
    }

    /// Waits until all earlier lines are written or counted as lost. Blocks for as long as stderr does.
    pub(super) fn flush(&self) {
        self.wait_for_mark();
        report_lost(&self.lost);
        self.wait_for_mark();
    }

    fn wait_for_mark(&self) {
        let (mark, passed) = sync_channel(0);
        if self.queue.send(QueueItem::Mark(mark)).is_ok() {
            let _ = passed.recv();
        }
    }
}

fn write_lines(waiting: &Receiver<QueueItem>, lost: &AtomicUsize) {
    loop {
        let item = match waiting.try_recv() {
            Err(TryRecvError::Empty) => {
                report_lost(lost);
                waiting.recv().ok()
            }
            item => item.ok(),
        };
        match item {
            // There is nowhere to report that stderr is closed or broken.
            Some(QueueItem::Line(line)) => drop(io::stderr().write_all(&line)),
            Some(QueueItem::Mark(_)) => {}
            None => return,
        }
    }
}

/// Logs the number of lost lines. Call it when the queue has capacity for one more line.
fn report_lost(lost: &AtomicUsize) {
    let lines = lost.swap(0, Ordering::Relaxed);
    if lines > 0 {
        tracing::warn!(lines, "log lines lost: stderr was read too slowly");
    }
}

impl Write for &Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(QueueItem::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}
