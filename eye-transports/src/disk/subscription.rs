//! The subscription of one sink to the disk queue.
//!
//! Batches are delivered in order, one at a time. A failed batch is delivered again, together with newer events, until
//! the sink has settled it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::backoff::Backoff;
use eye_core::transport::{BatchLimits, Delivery, Position, Subscription};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::files;
use super::log::Log;
use super::reader::LogReader;

/// The longest drain after the queue is closed. The rest is delivered after the next start.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// The period in which a batch that is being gathered is read, so that its bytes are known.
const GATHER_PERIOD: Duration = Duration::from_millis(50);

/// The pauses before a failed batch is delivered again.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct DiskSubscription {
    log: Arc<Log>,
    sink: String,
    /// Shared with the thread that reads.
    reader: Arc<Mutex<LogReader>>,
    /// The number of events with the sink, and their outcome.
    in_flight: Option<(usize, Receipt)>,
    /// The number of the event after the last committed one. Its sender is the writing thread.
    committed: watch::Receiver<u64>,
    closing: CancellationToken,
    /// Set once the queue is closed.
    drained_by: Option<Instant>,
    backoff: Backoff,
}

#[async_trait]
impl Subscription for DiskSubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        if let Some((count, receipt)) = self.in_flight.take() {
            if let Outcome::Failed { .. } = receipt.outcome().await {
                let pause = self.backoff.next_pause();
                if self.is_closed_within(pause).await {
                    // The sink is unavailable. It gets the events after the next start.
                    return self.end().await;
                }
            } else {
                // Rejected events are settled, too: the writer has stored them as dead letters.
                self.reader().settle(count);
                self.backoff.reset();
            }
        }
        let mut deliver_at = None;
        let mut is_writing = true;
        loop {
            if self.is_drain_over() {
                return self.end().await;
            }
            self.committed.mark_unchanged();
            if !self.read(limits).await {
                return self.end().await;
            }
            if self.reader().is_empty() {
                if !is_writing {
                    return self.end().await;
                }
                is_writing = self.committed.changed().await.is_ok();
                continue;
            }
            let deliver_at = *deliver_at.get_or_insert_with(|| Instant::now() + limits.max_wait);
            let full_at = self.reader().full_at(limits);
            match full_at {
                Some(full_at) if is_writing && Instant::now() < deliver_at => {
                    is_writing = self.gather(full_at, deliver_at).await;
                }
                _ => return Some(vec![self.deliver(limits)]),
            }
        }
    }
}

impl DiskSubscription {
    pub(super) fn new(
        log: Arc<Log>,
        sink: String,
        cursor: u64,
        committed: watch::Receiver<u64>,
        closing: CancellationToken,
    ) -> Self {
        let reader = Arc::new(Mutex::new(LogReader::new(log.clone(), sink.clone(), cursor)));
        let backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        Self { log, sink, reader, in_flight: None, committed, closing, drained_by: None, backoff }
    }

    fn reader(&self) -> MutexGuard<'_, LogReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until a batch is full or no more events are committed. Retries errors of the disk; returns false if the
    /// queue is closed meanwhile.
    async fn read(&self, limits: BatchLimits) -> bool {
        loop {
            let reader = self.reader.clone();
            let work = move || reader.lock().unwrap_or_else(PoisonError::into_inner).read(limits);
            let Err(error) = spawn_blocking(work).await.expect("reading does not panic") else { return true };
            tracing::error!(sink = self.sink, %error, "cannot read the queue, trying again");
            if self.is_closed_within(files::READ_PAUSE).await {
                return false;
            }
        }
    }

    /// Waits until the event `full_at` is committed, `deliver_at`, or the next read is due. Returns false if no more
    /// events will be committed.
    async fn gather(&mut self, full_at: u64, deliver_at: Instant) -> bool {
        let read_at = deliver_at.min(Instant::now() + GATHER_PERIOD);
        tokio::select! {
            committed = self.committed.wait_for(|next| *next >= full_at) => committed.is_ok(),
            () = self.closing.cancelled() => false,
            () = sleep_until(read_at) => true,
        }
    }

    fn deliver(&mut self, limits: BatchLimits) -> Delivery {
        let (number, events) = self.reader().batch(limits);
        let (settle, receipt) = Receipt::pair();
        self.in_flight = Some((events.len(), receipt));
        let position = Some(Position { prefix: String::new(), number });
        Delivery { events, ack: Ack::new(settle), position }
    }

    /// Waits for a pause; returns true, and early, if the queue is closed.
    async fn is_closed_within(&self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => false,
            () = self.closing.cancelled() => true,
        }
    }

    fn is_drain_over(&mut self) -> bool {
        if !self.closing.is_cancelled() {
            return false;
        }
        let now = Instant::now();
        now >= *self.drained_by.get_or_insert(now + DRAIN_FOR)
    }

    /// Saves the cursors and ends the subscription.
    async fn end(&self) -> Option<Vec<Delivery>> {
        let log = self.log.clone();
        if let Err(error) = spawn_blocking(move || log.save_cursors()).await.expect("saving does not panic") {
            tracing::warn!(sink = self.sink, %error, "cannot save the cursors: the sink gets some events again");
        }
        None
    }
}
