//! Stderr, written by a thread of its own, so that whoever reads it slowly or no longer holds up nothing.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for a slow reader, at most; further ones are lost and counted.
const MAX_WAITING_LINES: usize = 4096;

/// Takes log lines; each `write` is a whole one.
#[derive(Clone)]
pub(super) struct Stderr {
    queue: SyncSender<Item>,
    lost: Arc<AtomicUsize>,
}

enum Item {
    Line(Vec<u8>),
    /// All lines before it are written when it is dropped.
    Mark(#[expect(dead_code, reason = "it is there to be dropped")] SyncSender<()>),
}

impl Stderr {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start() -> io::Result<Self> {
        let (queue, waiting) = sync_channel(MAX_WAITING_LINES);
        let lost = Arc::new(AtomicUsize::new(0));
        let stderr = Self { queue, lost: lost.clone() };
        thread::Builder::new().name("log-writer".to_owned()).spawn(move || write_lines(&waiting, &lost))?;
        Ok(stderr)
    }

    /// Waits until what was logged before is written, or counted as lost. Blocks for as long as stderr does.
    pub(super) fn flush(&self) {
        self.wait_for_mark();
        report_lost(&self.lost);
        self.wait_for_mark();
    }

    fn wait_for_mark(&self) {
        let (mark, passed) = sync_channel(0);
        if self.queue.send(Item::Mark(mark)).is_ok() {
            let _ = passed.recv();
        }
    }
}

fn write_lines(waiting: &Receiver<Item>, lost: &AtomicUsize) {
    loop {
        let item = match waiting.try_recv() {
            Err(TryRecvError::Empty) => {
                report_lost(lost);
                waiting.recv().ok()
            }
            item => item.ok(),
        };
        match item {
            // A stderr that is closed or broken leaves nobody to tell.
            Some(Item::Line(line)) => drop(io::stderr().write_all(&line)),
            Some(Item::Mark(_)) => {}
            None => return,
        }
    }
}

/// To be called when there is room for one more line.
fn report_lost(lost: &AtomicUsize) {
    let lines = lost.swap(0, Ordering::Relaxed);
    if lines > 0 {
        tracing::warn!(lines, "log lines lost: stderr was read too slowly");
    }
}

impl Write for &Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
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
