//! The writer: takes batches from a subscription and writes them to one sink.
//!
//! Every sink has a [`Writer`] of its own, which batches, filters, retries, bisects and settles. While the sink is
//! unavailable, a batch is retried with growing pauses for `retry_for_ms`. Then its producers are told, and later
//! events fail at once instead of waiting in a queue, until the sink is available again. Events that the sink refuses
//! after they were acknowledged become dead letters before their delivery is settled.

mod availability;
mod bisection;
mod settings;

use std::iter::repeat_n;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::batch::Batch;
use crate::counters::{REFUSED_BY_SINK, SinkCounters};
use crate::dead_letter::{DeadLetterStore, NewDeadLetter};
use crate::event::Event;
use crate::filter::SinkFilter;
use crate::health::Health;
use crate::refusals::Refusals;
use crate::sink::{Sink, WriteError, Written};
use crate::transport::{BatchLimits, Subscription};

use availability::{Availability, Outage, retry_backoff};
use bisection::{Bisection, PartResult};
pub use settings::{WriterConfig, WriterOverrides};

/// The duration after which a write without an answer makes the sink not ready: producers are about to time out.
const SLOW_WRITE: Duration = Duration::from_secs(5);

/// One sink's writer.
pub(crate) struct Writer {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) health: Health,
    pub(crate) counters: Arc<SinkCounters>,
    pub(crate) refusals: Refusals,
    pub(crate) filter: SinkFilter,
    pub(crate) limits: BatchLimits,
    pub(crate) retry_for: Duration,
    /// The transport's store; `None` where producers are told of refused events.
    pub(crate) dead_letters: Option<Arc<dyn DeadLetterStore>>,
    /// Cuts pauses short: once cancelled, each write is tried once.
    pub(crate) shutdown: CancellationToken,
}

/// A sink that will never be ready.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct WriterError {
    reason: String,
}

impl Writer {
    /// Writes until the subscription ends, then closes the sink. Not cancel-safe.
    ///
    /// # Errors
    /// [`WriterError`] when the sink will never be ready.
    pub(crate) async fn run(self, mut subscription: Box<dyn Subscription>) -> Result<(), WriterError> {
        let mut availability = Availability::new();
        availability.checked(self.prepare(false).await?);
        loop {
            let mut receiving = pin!(subscription.receive(self.limits));
            let deliveries = loop {
                tokio::select! {
                    biased;
                    () = sleep_until(availability.check_at) => {
                        let outage = self.prepare(availability.on_probation()).await?;
                        availability.checked(outage);
                    }
                    deliveries = &mut receiving => break deliveries,
                }
            };
            let Some(deliveries) = deliveries else { break };
            let mut batch = Batch::collect(deliveries, &self.filter);
            self.counters.begin(batch.delivered_events());
            match &availability.outage {
                None if batch.events().is_empty() => {}
                None => availability.written(self.write(&mut batch).await),
                Some(outage) => batch.fail(0..batch.events().len(), outage.reason.as_str()),
            }
            self.store_dead_letters(&mut batch).await;
            batch.settle(&self.counters);
        }
        if let Err(error) = self.sink.close().await {
            tracing::error!(component = self.health.name(), %error, "the sink was not closed cleanly");
        }
        Ok(())
    }

    /// Prepares the sink. Returns the outage if it is not ready.
    async fn prepare(&self, on_probation: bool) -> Result<Option<Outage>, WriterError> {
        let outage = match self.sink.prepare().await {
            Ok(()) => {
                if !on_probation {
                    self.health.ready();
                }
                return Ok(None);
            }
            Err(WriteError::Retry { reason, after }) => Outage::new(reason, after),
            Err(WriteError::Unknown { reason }) => Outage::new(reason, None),
            Err(WriteError::Reject { reason }) => return Err(WriterError { reason }),
        };
        self.health.unavailable(&outage.reason);
        Ok(Some(outage))
    }

    /// Writes a batch and bisects it around events that are refused. Returns the outage that ended the writing, if any.
    async fn write(&self, batch: &mut Batch) -> Option<Outage> {
        let mut give_up_at = Instant::now() + self.retry_for;
        let mut bisection = Bisection::new(batch.events().len());
        while let Some((part, tries)) = bisection.next_part() {
            let result = self.write_part(batch, part.clone(), tries, give_up_at).await;
            if matches!(result, PartResult::Stored | PartResult::Refused { certain: true, .. }) {
                // The sink is available, so the next part gets the full time.
                give_up_at = Instant::now() + self.retry_for;
            }
            bisection.record(part, result, batch);
        }
        // An unavailable sink does not store again an event that it has, either.
        let is_available = match bisection.probe() {
            Some(index) => self.write_once(&batch.events()[index..=index]).await.is_ok(),
            None => false,
        };
        let (outage, failure) = bisection.finish(is_available, batch);
        if let Some(reason) = failure {
            self.health.unavailable(reason);
        }
        if batch.rejected() > 0 {
            self.refusals.note(repeat_n(REFUSED_BY_SINK, batch.rejected()));
        }
        outage
    }

    /// Tries one part of a batch until it is stored, refused, or the time is up for an unavailable sink.
    async fn write_part(&self, batch: &Batch, part: Range<usize>, tries: u32, give_up_at: Instant) -> PartResult {
        let mut backoff = retry_backoff();
        let mut unknown = 0;
        loop {
            let (outage, pause) = match self.write_once(&batch.events()[part.clone()]).await {
                Ok(written) => {
                    self.health.ready();
                    self.counters.add_duplicates(written.duplicates);
                    return PartResult::Stored;
                }
                Err(WriteError::Reject { reason }) => return PartResult::Refused { reason, certain: true },
                Err(WriteError::Unknown { reason }) => {
                    unknown += 1;
                    if unknown >= tries {
                        return PartResult::Refused { reason, certain: false };
                    }
                    (Outage::new(reason, None), backoff.next_pause())
                }
                Err(WriteError::Retry { reason, after }) => {
                    self.health.unavailable(&reason);
                    let outage = Outage::new(reason, after);
                    let pause = backoff.next_pause().max(outage.pause);
                    if Instant::now() + pause > give_up_at {
                        return PartResult::Unavailable(outage);
                    }
                    (outage, pause)
                }
            };
            if self.is_shut_down_within(pause).await {
                return PartResult::Unavailable(outage);
            }
            self.counters.add_retry();
        }
    }

    /// Writes once, as long as the sink takes, and reports a write that hangs.
    async fn write_once(&self, events: &[Event]) -> Result<Written, WriteError> {
        let mut writing = self.sink.write(events);
        tokio::select! {
            written = &mut writing => return written,
            () = tokio::time::sleep(SLOW_WRITE) => {}
        }
        self.health.unavailable(format!("no answer to a write for {} s", SLOW_WRITE.as_secs()));
        writing.await
    }

    /// Stores refused events as dead letters where they were acknowledged. Retries until that succeeds, without asking
    /// the sink again; at a shutdown the deliveries fail, so they come again.
    async fn store_dead_letters(&self, batch: &mut Batch) {
        let Some(store) = self.dead_letters.as_ref().filter(|_| batch.rejected() > 0) else { return };
        let letters: Vec<NewDeadLetter> = batch.dead_letters(self.health.name());
        if letters.is_empty() {
            return;
        }
        let mut backoff = retry_backoff();
        while let Err(error) = store.put(&letters).await {
            tracing::error!(component = self.health.name(), %error, "cannot store dead letters, trying again");
            if self.is_shut_down_within(backoff.next_pause()).await {
                batch.fail_rejected(&format!("dead letters cannot be stored: {error}"));
                return;
            }
        }
        // The reason may quote an event, so it is in the letter alone.
        tracing::warn!(
            component = self.health.name(),
            count = letters.len(),
            "refused events were stored as dead letters; `eye dead-letters list` shows them"
        );
    }

    /// Waits for the pause, or for the shutdown: then true.
    async fn is_shut_down_within(&self, pause: Duration) -> bool {
        tokio::time::timeout(pause, self.shutdown.cancelled()).await.is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
