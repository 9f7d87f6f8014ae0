//! Figures of a row, as `bench/results.json` keeps them.
//!
//! One run fills a [`RunFigures`]; [`RunFigures::of_runs`] merges the runs of a row.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::numbers::median;

/// The figures of one run, or the medians of several runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunFigures {
    /// Rate of acknowledged events; of stored events where nothing is acknowledged.
    pub(crate) events_per_s: f64,
    /// The rate as a share of the limit H.
    pub(crate) of_h: Option<f64>,
    /// The rate as a share of the limit D.
    pub(crate) of_d: Option<f64>,
    /// Rate of stored events while others arrive, where events are acknowledged before they are stored.
    pub(crate) drained_per_s: Option<f64>,
    pub(crate) drained_of_d: Option<f64>,
    /// Rate of stored events after the last one arrived.
    pub(crate) drained_after_per_s: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    /// Highest memory use of The Eye in any run.
    pub(crate) peak_mib: f64,
    /// Memory use of The Eye at 10 moments of the last run.
    pub(crate) resident_mib: Vec<f64>,
    /// CPU time of The Eye for each event, in microseconds.
    pub(crate) eye_us: f64,
    /// CPU time of the database server; `None` for SQLite, which is part of The Eye.
    pub(crate) database_us: Option<f64>,
    /// CPU time of the load generator.
    pub(crate) load_us: f64,
    /// Startup time until `/readyz` answers 200, on the database that the run left.
    pub(crate) ready_ms: f64,
    pub(crate) counts: EventCounts,
}

/// Numbers of events, as sums over all runs, including those of the warm-up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct EventCounts {
    pub(crate) acked: u64,
    pub(crate) stored: u64,
    /// Events that were acknowledged but are not stored.
    pub(crate) lost: u64,
    /// Further copies of stored events, and stored events that the run did not send.
    pub(crate) too_many: u64,
    /// Number of answers other than success, by their error.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl RunFigures {
    /// Returns the medians of all runs, the highest memory use, and the sums of all counts.
    pub(crate) fn of_runs(runs: &[Self]) -> Self {
        let optional = |get: fn(&Self) -> Option<f64>| median(runs.iter().filter_map(get).collect());
        let required = |get: fn(&Self) -> Option<f64>| optional(get).unwrap_or_default();
        let mut counts = EventCounts::default();
        runs.iter().for_each(|run| counts.add(&run.counts));
        Self {
            events_per_s: required(|it| Some(it.events_per_s)),
            of_h: optional(|it| it.of_h),
            of_d: optional(|it| it.of_d),
            drained_per_s: optional(|it| it.drained_per_s),
            drained_of_d: optional(|it| it.drained_of_d),
            drained_after_per_s: optional(|it| it.drained_after_per_s),
            p50_ms: optional(|it| it.p50_ms),
            p99_ms: optional(|it| it.p99_ms),
            max_ms: optional(|it| it.max_ms),
            peak_mib: runs.iter().map(|run| run.peak_mib).fold(0.0, f64::max),
            resident_mib: runs.last().map(|run| run.resident_mib.clone()).unwrap_or_default(),
            eye_us: required(|it| Some(it.eye_us)),
            database_us: optional(|it| it.database_us),
            load_us: required(|it| Some(it.load_us)),
            ready_ms: required(|it| Some(it.ready_ms)),
            counts,
        }
    }
}

impl EventCounts {
    fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.stored += other.stored;
        self.lost += other.lost;
        self.too_many += other.too_many;
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_to_medians_sums_and_peak_memory() {
        let run = |events_per_s, of_h, acked| RunFigures {
            events_per_s,
            of_h,
            peak_mib: events_per_s * 10.0,
            counts: EventCounts { acked, errors: BTreeMap::from([("503".to_owned(), 1)]), ..EventCounts::default() },
            ..RunFigures::default()
        };
        let figures = RunFigures::of_runs(&[run(3.0, None, 1), run(1.0, Some(0.5), 2), run(2.0, Some(0.7), 3)]);
        assert_eq!((figures.events_per_s, figures.of_h, figures.of_d), (2.0, Some(0.6), None));
        assert_eq!(figures.peak_mib, 30.0);
        assert_eq!((figures.counts.acked, figures.counts.errors["503"]), (6, 3));
    }
}
