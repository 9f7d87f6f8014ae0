//! What runs have shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one run has shown, or the medians of several; of memory the worst.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Acknowledged; where nobody waits for an answer, stored.
    pub(crate) events_per_s: f64,
    pub(crate) of_h: Option<f64>,
    pub(crate) of_d: Option<f64>,
    /// Stored, where that is not what is acknowledged: while events arrive, and after.
    pub(crate) drained_per_s: Option<f64>,
    pub(crate) drained_of_d: Option<f64>,
    pub(crate) drained_after_per_s: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    /// The Eye's, at its highest in any run.
    pub(crate) peak_mib: f64,
    /// The Eye's memory at ten moments of the last run.
    pub(crate) resident_mib: Vec<f64>,
    /// Microseconds of CPU time an event.
    pub(crate) eye_us: f64,
    pub(crate) database_us: Option<f64>,
    pub(crate) load_us: f64,
    /// From the start to `/readyz`, on the database as the run left it.
    pub(crate) ready_ms: f64,
    pub(crate) counts: Counts,
}

/// Sums over all runs, warm-up included.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) acked: u64,
    pub(crate) stored: u64,
    /// Acknowledged, but not stored.
    pub(crate) lost: u64,
    /// Stored more than once, or not sent at all.
    pub(crate) too_many: u64,
    /// Answers other than success, and how often.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Figures {
    pub(crate) fn of_runs(runs: &[Self]) -> Self {
        let all = |get: fn(&Self) -> Option<f64>| median(runs.iter().filter_map(get).collect());
        let of = |get: fn(&Self) -> Option<f64>| all(get).unwrap_or_default();
        let mut counts = Counts::default();
        runs.iter().for_each(|run| counts.add(&run.counts));
        Self {
            events_per_s: of(|it| Some(it.events_per_s)),
            of_h: all(|it| it.of_h),
            of_d: all(|it| it.of_d),
            drained_per_s: all(|it| it.drained_per_s),
            drained_of_d: all(|it| it.drained_of_d),
            drained_after_per_s: all(|it| it.drained_after_per_s),
            p50_ms: all(|it| it.p50_ms),
            p99_ms: all(|it| it.p99_ms),
            max_ms: all(|it| it.max_ms),
            peak_mib: runs.iter().map(|run| run.peak_mib).fold(0.0, f64::max),
            resident_mib: runs.last().map(|run| run.resident_mib.clone()).unwrap_or_default(),
            eye_us: of(|it| Some(it.eye_us)),
            database_us: all(|it| it.database_us),
            load_us: of(|it| Some(it.load_us)),
            ready_ms: of(|it| Some(it.ready_ms)),
            counts,
        }
    }
}

impl Counts {
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

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (middle, is_odd) = (values.len() / 2, values.len() % 2 == 1);
    if values.is_empty() {
        return None;
    }
    Some(if is_odd { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn figures_are_medians_counts_are_sums_and_memory_is_the_worst() {
        let run = |events_per_s, of_h, acked| Figures {
            events_per_s,
            of_h,
            peak_mib: events_per_s * 10.0,
            counts: Counts { acked, errors: BTreeMap::from([("503".to_owned(), 1)]), ..Counts::default() },
            ..Figures::default()
        };
        let figures = Figures::of_runs(&[run(3.0, None, 1), run(1.0, Some(0.5), 2), run(2.0, Some(0.7), 3)]);
        assert_eq!((figures.events_per_s, figures.of_h, figures.of_d), (2.0, Some(0.6), None));
        assert_eq!(figures.peak_mib, 30.0);
        assert_eq!((figures.counts.acked, figures.counts.errors["503"]), (6, 3));
    }
}
