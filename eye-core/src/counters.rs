//! Event counters of sources and sinks: atomics that the hot path adds to, without a lock.
//!
//! All counters start at zero with the program and count events unless they say otherwise. [`SourceCounters`] and
//! [`SinkCounters`] are written by the pipeline; [`SourceCounts`] and [`SinkCounts`] are what they said at one moment.
//! [`crate::accounting`] tells whether the numbers add up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::ack::Outcome;
use crate::refusals::{Refusal, Refusals};

/// A sink's reason may quote the event, so it goes to the producer alone and not into reports.
pub(crate) const REFUSED_BY_SINK: Refusal = Refusal { part: "event", problem: "refused by the sink" };

/// One source's counters.
#[derive(Debug)]
pub struct SourceCounters {
    received: AtomicU64,
    accepted: AtomicU64,
    invalid: AtomicU64,
    rejected_by_sink: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicU64,
    refusals: Refusals,
}

/// The numbers of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Events that could be read.
    pub received: u64,
    /// Events that were acknowledged: the producer was told "ok".
    pub accepted: u64,
    /// Events that were refused for good, as invalid or by a sink: the producer was told why.
    pub rejected: u64,
    /// Events whose producer was told to send them again, or could not be told.
    pub failed: u64,
    /// Events that were published and have no outcome yet.
    pub waiting: u64,
    /// Number of refusals by reason. An event may have several faults. A body or message in which no event could be
    /// read is counted here alone.
    pub refusals: BTreeMap<String, u64>,
}

impl SourceCounters {
    pub(crate) fn new(component: &str) -> Self {
        Self {
            received: AtomicU64::default(),
            accepted: AtomicU64::default(),
            invalid: AtomicU64::default(),
            rejected_by_sink: AtomicU64::default(),
            failed: AtomicU64::default(),
            waiting: AtomicU64::default(),
            refusals: Refusals::new(component),
        }
    }

    pub(crate) fn reject_invalid(&self, events: usize, refusals: impl IntoIterator<Item = Refusal>) {
        self.received.fetch_add(events as u64, Relaxed);
        self.invalid.fetch_add(events as u64, Relaxed);
        self.refusals.note(refusals);
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Returns the numbers now.
    pub fn counts(&self) -> SourceCounts {
        let rejected_by_sink = self.rejected_by_sink.load(Relaxed);
        let mut refusals: BTreeMap<String, u64> =
            self.refusals.totals().into_iter().map(|(refusal, total)| (refusal.to_string(), total)).collect();
        if rejected_by_sink > 0 {
            refusals.insert(REFUSED_BY_SINK.to_string(), rejected_by_sink);
        }
        SourceCounts {
            received: self.received.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            rejected: self.invalid.load(Relaxed) + rejected_by_sink,
            failed: self.failed.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            refusals,
        }
    }
}

/// Events of one publish whose outcome the source does not know yet. Dropped without an outcome, they count as failed.
#[derive(Debug)]
pub(crate) struct WaitingEvents {
    counters: Arc<SourceCounters>,
    /// Zero once the outcome is counted.
    events: u64,
}

impl WaitingEvents {
    pub(crate) fn new(counters: Arc<SourceCounters>, events: usize) -> Self {
        let events = events as u64;
        counters.received.fetch_add(events, Relaxed);
        counters.waiting.fetch_add(events, Relaxed);
        Self { counters, events }
    }

    pub(crate) fn settle(mut self, outcome: &Outcome) {
        let events = std::mem::take(&mut self.events);
        let rejected = rejected(outcome);
        let counters = &self.counters;
        counters.waiting.fetch_sub(events, Relaxed);
        match outcome {
            Outcome::Failed { .. } => counters.failed.fetch_add(events, Relaxed),
            Outcome::Delivered | Outcome::Rejected(_) => {
                counters.rejected_by_sink.fetch_add(rejected, Relaxed);
                counters.accepted.fetch_add(events.saturating_sub(rejected), Relaxed)
            }
        };
    }
}

impl Drop for WaitingEvents {
    fn drop(&mut self) {
        self.counters.waiting.fetch_sub(self.events, Relaxed);
        self.counters.failed.fetch_add(self.events, Relaxed);
    }
}

/// One sink's counters.
#[derive(Debug, Default)]
pub struct SinkCounters {
    delivered: AtomicU64,
    duplicates: AtomicU64,
    rejected: AtomicU64,
    filtered: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    in_flight: AtomicU64,
}

/// The numbers of a sink's writer at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkCounts {
    /// Events that the sink has stored.
    pub delivered: u64,
    /// Delivered events that were stored already: sent twice by their producers, delivered again after a crash, or
    /// stored by a write that had seemed to fail. 0 where the sink cannot tell.
    pub duplicates: u64,
    /// Events that were refused for good: dead letters where the transport is durable, else the producer was told.
    pub rejected: u64,
    /// Events that the sink's filter left out.
    pub filtered: u64,
    /// Events that could not be stored: a durable transport delivers them again, and each time counts; else the
    /// producer was told.
    pub failed: u64,
    /// Writes, not events, that were tried again.
    pub retried: u64,
    /// Events that are being written.
    pub in_flight: u64,
}

impl SinkCounters {
    /// Counts events that the writer starts to work on.
    pub(crate) fn begin(&self, events: usize) {
        self.in_flight.fetch_add(events as u64, Relaxed);
    }

    /// Counts the outcome of one delivery: of its `events`, `filtered` were left out.
    pub(crate) fn settle(&self, events: usize, filtered: usize, outcome: &Outcome) {
        let (events, filtered, rejected) = (events as u64, filtered as u64, rejected(outcome));
        self.in_flight.fetch_sub(events, Relaxed);
        match outcome {
            Outcome::Failed { .. } => {
                self.failed.fetch_add(events, Relaxed);
            }
            Outcome::Delivered | Outcome::Rejected(_) => {
                self.rejected.fetch_add(rejected, Relaxed);
                self.filtered.fetch_add(filtered, Relaxed);
                self.delivered.fetch_add(events.saturating_sub(rejected + filtered), Relaxed);
            }
        }
    }

    pub(crate) fn add_duplicates(&self, events: usize) {
        self.duplicates.fetch_add(events as u64, Relaxed);
    }

    pub(crate) fn add_retry(&self) {
        self.retried.fetch_add(1, Relaxed);
    }

    /// Returns the numbers now.
    pub fn counts(&self) -> SinkCounts {
        SinkCounts {
            delivered: self.delivered.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
            filtered: self.filtered.load(Relaxed),
            failed: self.failed.load(Relaxed),
            retried: self.retried.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
        }
    }
}

fn rejected(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Rejected(rejections) => rejections.len() as u64,
        Outcome::Delivered | Outcome::Failed { .. } => 0,
    }
}
