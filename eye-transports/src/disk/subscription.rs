//! One sink's view of the queue: batches in order, each until the sink has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Ack, Outcome, Receipt};
use eye_core::transport::BatchLimits;
use eye_core::transport::{Delivery, Subscription};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::dead_letters;
use super::log::Log;
use super::reader::{Numbered, Reader};

/// How long a sink that takes events is given more once the queue is closed. What is left comes after the next start.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// How long more events are waited for where no batch is full: their producers have their answer, and an event of a large
/// batch costs the database less.
pub(super) const GATHER_FOR: Duration = Duration::from_millis(50);

/// The pauses before what a sink did not take is given to it again: they double.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct DiskSubscription {
    log: Arc<Log>,
    sink: String,
    /// `None` while a thread reads with it.
    reader: Option<Reader>,
    /// Read, and not acked.
    ahead: VecDeque<Numbered>,
    /// How many of them were given to the sink, and its answer.
    given: Option<(usize, Receipt)>,
    /// The number of the event after the last that is committed. Ends with the thread that writes.
    committed: watch::Receiver<u64>,
    closing: CancellationToken,
    /// Set once it is closing.
    drained_by: Option<Instant>,
    pause: Duration,
}

#[async_trait]
impl Subscription for DiskSubscription {
    async fn receive(&mut self, limits: BatchLimits) -> Option<Vec<Delivery>> {
        if let Some((count, receipt)) = self.given.take()
            && !self.settle(count, receipt.outcome().await).await
        {
            let closed = self.wait(self.pause).await;
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            // The sink is away: the next start will not find less.
            if closed {
                return self.end().await;
            }
        }
        let (mut writing_ended, mut has_gathered) = (false, false);
        loop {
            if self.is_time_up() {
                return self.end().await;
            }
            self.committed.mark_unchanged();
            if !self.read(limits).await {
                return self.end().await;
            }
            if !self.ahead.is_empty() {
                if !has_gathered && self.has_read_all() {
                    has_gathered = true;
                    self.wait(GATHER_FOR).await;
                    continue;
                }
                return Some(vec![self.give(limits)]);
            }
            if writing_ended {
                return self.end().await;
            }
            writing_ended = self.committed.changed().await.is_err();
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
        let reader = Some(Reader::new(log.clone(), sink.clone(), cursor));
        let (ahead, pause) = (VecDeque::new(), MIN_PAUSE);
        Self { log, sink, reader, ahead, given: None, committed, closing, drained_by: None, pause }
    }

    /// Lets go of the first `count` events when the sink has them, or they are dead letters; else they stay, and this is
    /// false. Dead letters that cannot be kept are tried again, not the sink, which has what it did not refuse.
    async fn settle(&mut self, count: usize, outcome: Outcome) -> bool {
        let done = match outcome {
            Outcome::Delivered => true,
            Outcome::Rejected(rejections) => {
                let batch: Vec<Numbered> = self.ahead.range(..count).cloned().collect();
                let refused = Arc::new((self.sink.clone(), batch, rejections));
                loop {
                    let (log, refused) = (self.log.clone(), refused.clone());
                    let work = move || dead_letters::write(log.path(), &refused.0, &refused.1, &refused.2);
                    let written = spawn_blocking(work).await.expect("it does not panic, and is not cancelled");
                    let Err(error) = written else { break true };
                    tracing::error!(sink = self.sink, %error, "cannot keep refused events, trying again");
                    if self.wait(MAX_PAUSE).await {
                        break false;
                    }
                }
            }
            Outcome::Failed { .. } => false,
        };
        if done {
            let last = self.ahead.drain(..count).next_back();
            self.log.ack(&self.sink, last.expect("no delivery is empty").0 + 1);
            self.pause = MIN_PAUSE;
        }
        done
    }

    /// Reads ahead; false when the queue was closed while the disk could not be read.
    async fn read(&mut self, limits: BatchLimits) -> bool {
        loop {
            let mut reader = self.reader.take().expect("nobody else reads");
            let mut ahead = std::mem::take(&mut self.ahead);
            let work = move || {
                let result = reader.read(limits, &mut ahead);
                (reader, ahead, result)
            };
            let (reader, ahead, result) = spawn_blocking(work).await.expect("it does not panic, and is not cancelled");
            (self.reader, self.ahead) = (Some(reader), ahead);
            let Err(error) = result else {
                if let (true, Some(reader)) = (self.ahead.is_empty(), &self.reader) {
                    // Past what is missing at the end, too: it was reported.
                    self.log.ack(&self.sink, reader.next_number());
                }
                return true;
            };
            tracing::error!(sink = self.sink, %error, "cannot read the queue, trying again");
            if self.wait(MAX_PAUSE).await {
                return false;
            }
        }
    }

    /// Whether all that is committed is ahead.
    fn has_read_all(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.next_number() == *self.committed.borrow())
    }

    /// As much of what is ahead as one batch may hold, and one event at least.
    fn give(&mut self, limits: BatchLimits) -> Delivery {
        let mut bytes = 0;
        let fits = self.ahead.iter().take(limits.max_events).take_while(|(_, event)| {
            bytes += event.size_bytes();
            bytes <= limits.max_bytes
        });
        let count = fits.count().max(1);
        let events = self.ahead.range(..count).map(|(_, event)| event.clone()).collect();
        let (settle, receipt) = Receipt::pair();
        self.given = Some((count, receipt));
        Delivery { events, ack: Ack::new(settle), position: None }
    }

    /// Waits, or until the queue is closed: then true.
    async fn wait(&self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => false,
            () = self.closing.cancelled() => true,
        }
    }

    fn is_time_up(&mut self) -> bool {
        if !self.closing.is_cancelled() {
            return false;
        }
        let now = Instant::now();
        now >= *self.drained_by.get_or_insert(now + DRAIN_FOR)
    }

    /// Leaves word of how far the sink is.
    async fn end(&self) -> Option<Vec<Delivery>> {
        let log = self.log.clone();
        if let Err(error) = spawn_blocking(move || log.save_cursors()).await.expect("it does not panic") {
            tracing::warn!(sink = self.sink, %error, "cannot save how far it is: it gets some events again");
        }
        None
    }
}
