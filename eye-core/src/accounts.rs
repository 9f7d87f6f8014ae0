//! What every component has done with its events, counted, and whether it adds up.
//!
//! All counters start at zero with the program, and count events. There are three equations:
//!
//! 1. A source: `received = accepted + rejected + failed + waiting`.
//! 2. A sink: `taken = delivered + rejected + missing + pending`, and `+ failed` where the transport is not durable:
//!    there the producer was told, while a durable transport keeps what failed pending. The writer counts what it
//!    delivered, rejected and failed; the transport counts what it took, holds and misses. So an event that got lost
//!    between the two, or went twice, shows.
//! 3. All sources together: `accepted ≤ taken - at start` of each sink, unless programs share the transport: nobody was
//!    told "ok" for what no sink will get.
//!
//! Where programs share the transport, 2 is about what this one has had at hand: nobody counts what the others do, so what
//! the transport itself loses does not show. `in_stream` tells what it still holds.
//!
//! They hold at every quiet moment. Between two counters that are changed one after the other, they may not: the books
//! are read while the program works.
//!
//! `taken` has what was pending when the program started, be it that a crash left it so because how far the sink was had
//! not been written down (then it is delivered a second time, as a duplicate). Programs before this one have accepted it,
//! so 3 is without it. What else makes its two sides differ: what a sink rejected without a durable transport; and what
//! was taken, but whose producer heard of a failure, because the receipt came too late or another sink failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::ack::Outcome;
use crate::refusals::{Refusal, Refusals};
use crate::sink::Written;
use crate::transport::{Custody, Transport};

/// Why the sink refused an event may quote it, so that is for its producer alone.
pub(crate) const REFUSED_BY_SINK: Refusal = Refusal { part: "event", problem: "refused by the sink" };

/// One source's counters.
#[derive(Debug)]
pub struct SourceAccount {
    received: AtomicU64,
    accepted: AtomicU64,
    rejected_by_gate: AtomicU64,
    rejected_by_sink: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicU64,
    refusals: Refusals,
}

impl SourceAccount {
    pub(crate) fn new(component: &str) -> Self {
        Self {
            received: AtomicU64::default(),
            accepted: AtomicU64::default(),
            rejected_by_gate: AtomicU64::default(),
            rejected_by_sink: AtomicU64::default(),
            failed: AtomicU64::default(),
            waiting: AtomicU64::default(),
            refusals: Refusals::new(component),
        }
    }

    pub(crate) fn reject(&self, events: usize, refusals: impl IntoIterator<Item = Refusal>) {
        self.received.fetch_add(events as u64, Relaxed);
        self.rejected_by_gate.fetch_add(events as u64, Relaxed);
        self.refusals.note(refusals);
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// What it says now.
    pub fn book(&self) -> SourceBook {
        let rejected_by_sink = self.rejected_by_sink.load(Relaxed);
        let mut refusals: BTreeMap<String, u64> =
            self.refusals.totals().into_iter().map(|(refusal, total)| (refusal.to_string(), total)).collect();
        if rejected_by_sink > 0 {
            refusals.insert(REFUSED_BY_SINK.to_string(), rejected_by_sink);
        }
        SourceBook {
            received: self.received.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            rejected: self.rejected_by_gate.load(Relaxed) + rejected_by_sink,
            failed: self.failed.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            refusals,
        }
    }
}

/// Events of one publish whose outcome the source does not know yet. Dropped without, they have failed.
#[derive(Debug)]
pub(crate) struct Entry {
    account: Arc<SourceAccount>,
    /// None of them are left once they are settled.
    events: u64,
}

impl Entry {
    pub(crate) fn open(account: Arc<SourceAccount>, events: usize) -> Self {
        let events = events as u64;
        account.received.fetch_add(events, Relaxed);
        account.waiting.fetch_add(events, Relaxed);
        Self { account, events }
    }

    pub(crate) fn settle(mut self, outcome: &Outcome) {
        let events = std::mem::take(&mut self.events);
        let rejected = rejected(outcome);
        let account = &self.account;
        account.waiting.fetch_sub(events, Relaxed);
        match outcome {
            Outcome::Failed { .. } => account.failed.fetch_add(events, Relaxed),
            Outcome::Delivered | Outcome::Rejected(_) => {
                account.rejected_by_sink.fetch_add(rejected, Relaxed);
                account.accepted.fetch_add(events.saturating_sub(rejected), Relaxed)
            }
        };
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.account.waiting.fetch_sub(self.events, Relaxed);
        self.account.failed.fetch_add(self.events, Relaxed);
    }
}

/// One sink's counters.
#[derive(Debug, Default)]
pub struct SinkAccount {
    delivered: AtomicU64,
    duplicates: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    in_flight: AtomicU64,
}

impl SinkAccount {
    /// The writer has these events at hand.
    pub(crate) fn begin(&self, events: usize) {
        self.in_flight.fetch_add(events as u64, Relaxed);
    }

    /// The writer tells a delivery what became of its events.
    pub(crate) fn settle(&self, events: usize, outcome: &Outcome) {
        let (events, rejected) = (events as u64, rejected(outcome));
        self.in_flight.fetch_sub(events, Relaxed);
        match outcome {
            Outcome::Failed { .. } => self.failed.fetch_add(events, Relaxed),
            Outcome::Delivered | Outcome::Rejected(_) => {
                self.rejected.fetch_add(rejected, Relaxed);
                self.delivered.fetch_add(events.saturating_sub(rejected), Relaxed)
            }
        };
    }

    pub(crate) fn note_duplicates(&self, written: Written) {
        self.duplicates.fetch_add(written.duplicates as u64, Relaxed);
    }

    pub(crate) fn note_retry(&self) {
        self.retried.fetch_add(1, Relaxed);
    }

    /// What it says now, beside how the custody of the events stands.
    pub(crate) fn book(&self, custody: Custody) -> SinkBook {
        SinkBook {
            custody,
            delivered: self.delivered.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            rejected: self.rejected.load(Relaxed),
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

/// The accounts of a pipeline.
#[derive(Clone)]
pub struct Accounts {
    /// By name, below `[sources]`.
    pub(crate) sources: Vec<(String, Arc<SourceAccount>)>,
    pub(crate) transport: Arc<dyn Transport>,
    /// By name, below `[sinks]`.
    pub(crate) sinks: Vec<(String, Arc<SinkAccount>)>,
}

impl Accounts {
    /// Reports what the sources refused and have not reported yet. Connections and tasks that have not ended share the
    /// accounts, so their last owner may be dropped too late, or never.
    pub(crate) fn report_refusals(&self) {
        for (_, account) in &self.sources {
            account.refusals.report_rest();
        }
    }

    /// What they say now. What was accepted is read before what was taken.
    pub fn books(&self) -> Books {
        let sources = self.sources.iter().map(|(name, account)| (name.clone(), account.book())).collect();
        let sinks = self.sinks.iter().map(|(name, account)| {
            let custody = self.transport.custody(name);
            (name.clone(), account.book(custody))
        });
        let transport = TransportBook { durable: self.transport.is_durable(), shared: self.transport.is_shared() };
        Books { sources, transport, sinks: sinks.collect() }
    }
}

/// What all components have done with their events since the program started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// By name.
    pub sources: BTreeMap<String, SourceBook>,
    /// What the equations depend on.
    pub transport: TransportBook,
    /// By name.
    pub sinks: BTreeMap<String, SinkBook>,
}

/// What a source has done with the events that it could read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBook {
    /// Read.
    pub received: u64,
    /// Acknowledged: the producer was told "ok".
    pub accepted: u64,
    /// Refused for good, by the gate or by a sink: the producer was told why.
    pub rejected: u64,
    /// The producer was told to try again, or there was nobody to tell.
    pub failed: u64,
    /// Handed on; the outcome is not known yet.
    pub waiting: u64,
    /// What was wrong → how often. An event may have several faults; a body or message in which no event could be read
    /// counts here alone.
    pub refusals: BTreeMap<String, u64>,
}

/// What kind of transport it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportBook {
    /// See [`Transport::is_durable`].
    pub durable: bool,
    /// See [`Transport::is_shared`].
    pub shared: bool,
}

/// What became of the events for a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkBook {
    /// What the transport says.
    #[serde(flatten)]
    pub custody: Custody,
    /// In the sink.
    pub delivered: u64,
    /// Found there already: sent twice by their producers, delivered again after a crash, or stored by a write that had
    /// seemed to fail. 0 where the sink cannot tell.
    pub duplicates: u64,
    /// Refused for good: dead letters where the transport is durable, else the producer was told.
    pub rejected: u64,
    /// Handed back: a durable transport delivers them again, and each time counts; else the producer was told.
    pub failed: u64,
    /// Writes, not events, that were tried again.
    pub retried: u64,
    /// Being written.
    pub in_flight: u64,
}

impl Books {
    /// The equations that do not hold, with their numbers. See [the module](self).
    pub fn imbalances(&self) -> Vec<String> {
        let sources = self.sources.iter().filter_map(|(name, source)| {
            let SourceBook { received, accepted, rejected, failed, waiting, .. } = *source;
            let text = format!(
                "sources.{name}: {received} received, but {accepted} accepted + {rejected} rejected + {failed} failed + \
                 {waiting} waiting"
            );
            (!adds_up(received, &[accepted, rejected, failed, waiting])).then_some(text)
        });
        let sinks = self.sinks.iter().filter_map(|(name, sink)| {
            let SinkBook { custody: Custody { taken, pending, missing, .. }, delivered, rejected, failed, .. } = *sink;
            let (failed, and_failed) = match self.transport.durable {
                true => (0, String::new()),
                false => (failed, format!(" + {failed} failed")),
            };
            let text = format!(
                "sinks.{name}: {taken} taken, but {delivered} delivered + {rejected} rejected{and_failed} + {missing} \
                 missing + {pending} pending"
            );
            (!adds_up(taken, &[delivered, rejected, failed, missing, pending])).then_some(text)
        });
        let accepted: u128 = self.sources.values().map(|source| u128::from(source.accepted)).sum();
        let untaken = self.sinks.iter().filter_map(|(name, sink)| {
            let Custody { taken, at_start, .. } = sink.custody;
            let lost = !self.transport.shared && accepted + u128::from(at_start) > u128::from(taken);
            let text = || {
                format!("sinks.{name}: {taken} taken, {at_start} of them at the start, but the sources have accepted {accepted}")
            };
            lost.then(text)
        });
        sources.chain(sinks).chain(untaken).collect()
    }
}

fn adds_up(whole: u64, parts: &[u64]) -> bool {
    parts.iter().copied().map(u128::from).sum::<u128>() == u128::from(whole)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
