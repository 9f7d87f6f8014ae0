//! Event accounting: whether every event that was taken is accounted for.
//!
//! [`Accounting`] reads the counters of all components into a [`Ledger`], and [`Ledger::imbalances`] checks three
//! equations:
//!
//! 1. A source: `received = accepted + rejected + failed + waiting`.
//! 2. A sink: `taken = delivered + rejected + filtered + missing + pending`, and `+ failed` where the transport is not
//!    durable: there the producer was told, while a durable transport keeps failed events pending. The writer counts
//!    delivered, rejected, filtered and failed events. The transport counts taken, pending and missing ones. So an
//!    event that is lost between the two, or delivered twice, shows.
//! 3. All sources together: `accepted ≤ taken - at_start` of each sink, unless programs share the transport: no
//!    producer was told "ok" for an event that no sink will get.
//!
//! If programs share the transport, equation 2 covers the events that this program has had in flight. Nobody counts the
//! events of the others, so a loss within the transport does not show; `shared_backlog` tells what it still holds.
//!
//! The equations hold at every quiet moment. Between two counters that change one after the other they may not: the
//! ledger is read while the program works.
//!
//! `taken` includes the events that were pending when the program started. A crash may leave events pending that their
//! sink has stored already; they are delivered a second time and count as duplicates. Earlier programs accepted them,
//! so equation 3 leaves them out. Two more cases make its two sides differ: events that a sink rejected without a
//! durable transport, and events that were taken although their producer heard of a failure, because the receipt came
//! too late or another sink failed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::counters::{SinkCounters, SinkCounts, SourceCounters, SourceCounts};
use crate::transport::{Custody, Transport};

/// The counters of a whole pipeline.
#[derive(Clone)]
pub struct Accounting {
    /// By name, below `[sources]`.
    pub(crate) sources: Vec<(String, Arc<SourceCounters>)>,
    transport: Arc<dyn Transport>,
    /// By name, below `[sinks]`.
    pub(crate) sinks: Vec<(String, Arc<SinkCounters>)>,
}

impl Accounting {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { sources: Vec::new(), transport, sinks: Vec::new() }
    }

    /// Reports the refusals of the sources that are not reported yet. Connections and tasks that have not ended share
    /// the counters, so their last owner may be dropped too late, or never.
    pub(crate) fn report_refusals(&self) {
        for (_, counters) in &self.sources {
            counters.refusals().report_rest();
        }
    }

    /// Returns the numbers now. Accepted events are read before taken ones, so that equation 3 is not broken by a
    /// read in between.
    pub fn ledger(&self) -> Ledger {
        let sources = self.sources.iter().map(|(name, counters)| (name.clone(), counters.counts())).collect();
        let sinks = self.sinks.iter().map(|(name, counters)| {
            let custody = self.transport.custody(name);
            (name.clone(), SinkLedger { custody, counts: counters.counts() })
        });
        Ledger {
            sources,
            durable: self.transport.is_durable(),
            shared: self.transport.is_shared(),
            sinks: sinks.collect(),
        }
    }
}

/// The numbers of all components since the program started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By name.
    pub sources: BTreeMap<String, SourceCounts>,
    /// See [`Transport::is_durable`].
    pub durable: bool,
    /// See [`Transport::is_shared`].
    pub shared: bool,
    /// By name.
    pub sinks: BTreeMap<String, SinkLedger>,
}

/// The events of one sink: as the transport counts them, and as the writer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkLedger {
    /// The transport's numbers.
    pub custody: Custody,
    /// The writer's numbers.
    pub counts: SinkCounts,
}

impl Ledger {
    /// Returns the equations that do not hold, with their numbers. See [the module](self).
    pub fn imbalances(&self) -> Vec<String> {
        let sources = self.sources.iter().filter_map(|(name, source)| {
            let SourceCounts { received, accepted, rejected, failed, waiting, .. } = *source;
            let text = format!(
                "sources.{name}: {received} received, but {accepted} accepted + {rejected} rejected + {failed} failed + \
                 {waiting} waiting"
            );
            (!adds_up(received, &[accepted, rejected, failed, waiting])).then_some(text)
        });
        let sinks = self.sinks.iter().filter_map(|(name, sink)| {
            let Custody { taken, pending, missing, .. } = sink.custody;
            let SinkCounts { delivered, rejected, filtered, failed, .. } = sink.counts;
            let (failed, and_failed) = match self.durable {
                true => (0, String::new()),
                false => (failed, format!(" + {failed} failed")),
            };
            let text = format!(
                "sinks.{name}: {taken} taken, but {delivered} delivered + {rejected} rejected + {filtered} \
                 filtered{and_failed} + {missing} missing + {pending} pending"
            );
            (!adds_up(taken, &[delivered, rejected, filtered, failed, missing, pending])).then_some(text)
        });
        let accepted: u128 = self.sources.values().map(|source| u128::from(source.accepted)).sum();
        let untaken = self.sinks.iter().filter_map(|(name, sink)| {
            let Custody { taken, at_start, .. } = sink.custody;
            let lost = !self.shared && accepted + u128::from(at_start) > u128::from(taken);
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
