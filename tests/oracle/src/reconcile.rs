//! The comparison of ledger and database: [`reconcile`] counts events by outcome and finds lost, duplicated, corrupt
//! and foreign ones.

use std::collections::HashSet;
use std::fmt;

use uuid::Uuid;

use crate::ledger::{Ledger, ReportedOutcome};

/// The result of a comparison of ledger and database, in numbers of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Events with a recorded intent.
    pub issued: usize,
    /// Events acknowledged to their producers.
    pub acked: usize,
    /// Events with unknown outcome.
    pub unknown: usize,
    /// Events refused to their producers.
    pub refused: usize,
    /// Different events in the database.
    pub stored: usize,
    /// Acknowledged events that are dead letters.
    pub dead_letters: usize,
    /// A fault: acknowledged events that are neither stored nor dead letters.
    pub lost: usize,
    /// A fault: rows beyond the first of an event.
    pub duplicated: usize,
    /// A fault: stored events that differ from the sent ones.
    pub corrupt: usize,
    /// A fault: stored events without a recorded intent.
    pub foreign: usize,
    /// A fault: stored events that were refused to their producers.
    pub stored_though_refused: usize,
}

impl Reconciliation {
    /// Returns true if there is no fault.
    pub fn is_consistent(&self) -> bool {
        let faults = [self.lost, self.duplicated, self.corrupt, self.foreign, self.stored_though_refused];
        faults == [0; 5]
    }

    /// Checks that there is no fault and that something was acknowledged.
    ///
    /// # Panics
    /// Panics with all numbers otherwise.
    #[track_caller]
    pub fn assert_consistent(&self) {
        assert!(self.is_consistent(), "{self}");
        assert!(self.acked > 0, "nothing was acknowledged: {self}");
    }
}

impl fmt::Display for Reconciliation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, acked, unknown, refused, stored, dead_letters, lost, duplicated, corrupt, .. } = self;
        write!(f, "issued {issued}, acked {acked}, unknown {unknown}, refused {refused}, stored {stored}")?;
        write!(f, ", dead letters {dead_letters}; lost {lost}, duplicated {duplicated}, corrupt {corrupt}")?;
        write!(f, ", foreign {}, stored though refused {}", self.foreign, self.stored_though_refused)
    }
}

/// Compares `ledger` with all events of the database, given as ids and fingerprints, and with the ids of the dead
/// letters. No request may be in flight; see [`Oracle::pause`](crate::Oracle::pause).
pub fn reconcile(ledger: &Ledger, stored: &[(Uuid, u64)], dead_letters: &HashSet<Uuid>) -> Reconciliation {
    let mut report = Reconciliation {
        issued: ledger.entries.len(),
        acked: ledger.count(ReportedOutcome::Acked),
        unknown: ledger.count(ReportedOutcome::Unknown),
        refused: ledger.count(ReportedOutcome::Refused),
        ..Reconciliation::default()
    };
    let mut ids = HashSet::with_capacity(stored.len());
    for (id, fingerprint) in stored {
        ids.insert(*id);
        match ledger.entries.get(id) {
            None => report.foreign += 1,
            Some((sent, outcome)) => {
                report.corrupt += usize::from(fingerprint != sent);
                report.stored_though_refused += usize::from(*outcome == ReportedOutcome::Refused);
            }
        }
    }
    report.stored = ids.len();
    report.duplicated = stored.len() - ids.len();
    for id in ledger.acked().filter(|id| !ids.contains(id)) {
        let is_dead_letter = dead_letters.contains(&id);
        report.dead_letters += usize::from(is_dead_letter);
        report.lost += usize::from(!is_dead_letter);
    }
    report
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::event::EventRow;

    /// Creates a consistent state: an acknowledged event, a refused one, two with unknown outcome of which one is
    /// stored, and a dead letter.
    fn consistent() -> (Ledger, Vec<EventRow>, HashSet<Uuid>) {
        let mut rng = Rng::with_seed(7);
        let rows: Vec<EventRow> = (0..5).map(|_| EventRow::random(&mut rng, None)).collect();
        let mut ledger = Ledger::default();
        for (row, outcome) in rows.iter().zip([
            ReportedOutcome::Acked,
            ReportedOutcome::Refused,
            ReportedOutcome::Unknown,
            ReportedOutcome::Unknown,
            ReportedOutcome::Acked,
        ]) {
            ledger.record_intent(row.id, row.fingerprint()).expect("ids are unique");
            ledger.record_outcome(row.id, outcome).expect("the intent was recorded");
        }
        (ledger, vec![rows[0].clone(), rows[2].clone()], HashSet::from([rows[4].id]))
    }

    fn stored(rows: &[EventRow]) -> Vec<(Uuid, u64)> {
        rows.iter().map(|row| (row.id, row.fingerprint())).collect()
    }

    #[test]
    fn consistent_state_has_no_fault() {
        let (ledger, rows, dead) = consistent();
        let report = reconcile(&ledger, &stored(&rows), &dead);
        let expected = Reconciliation {
            issued: 5,
            acked: 2,
            unknown: 2,
            refused: 1,
            stored: 2,
            dead_letters: 1,
            ..Reconciliation::default()
        };
        assert_eq!(report, expected);
        assert!(report.is_consistent());
    }

    /// Checks that `change` makes one fault of this kind and no other.
    fn assert_found(
        change: impl FnOnce(&mut Ledger, &mut Vec<EventRow>, &mut HashSet<Uuid>),
        fault: fn(&Reconciliation) -> usize,
    ) {
        let (mut ledger, mut rows, mut dead) = consistent();
        change(&mut ledger, &mut rows, &mut dead);
        let report = reconcile(&ledger, &stored(&rows), &dead);
        assert!(!report.is_consistent(), "{report}");
        assert_eq!(fault(&report), 1, "{report}");
        let Reconciliation { lost, duplicated, corrupt, foreign, stored_though_refused, .. } = report;
        assert_eq!(lost + duplicated + corrupt + foreign + stored_though_refused, 1, "{report}");
    }

    #[test]
    fn missing_acknowledged_event_is_lost() {
        assert_found(|_, rows, _| drop(rows.remove(0)), |report| report.lost);
        assert_found(|_, _, dead| dead.clear(), |report| report.lost);
    }

    #[test]
    fn second_row_of_an_event_is_duplicated() {
        assert_found(|_, rows, _| rows.push(rows[1].clone()), |report| report.duplicated);
    }

    #[test]
    fn changed_event_is_corrupt() {
        assert_found(|_, rows, _| rows[0].data.push(' '), |report| report.corrupt);
        assert_found(|_, rows, _| rows[1].timestamp_micros += 1, |report| report.corrupt);
        assert_found(|_, rows, _| rows[1].name = rows[1].name.to_uppercase(), |report| report.corrupt);
    }

    #[test]
    fn unknown_row_is_foreign() {
        assert_found(|_, rows, _| rows.push(EventRow::random(&mut Rng::with_seed(8), None)), |report| report.foreign);
    }

    #[test]
    fn stored_refused_event_is_a_fault() {
        let add_refused = |_: &mut Ledger, rows: &mut Vec<EventRow>, _: &mut HashSet<Uuid>| {
            let mut rng = Rng::with_seed(7);
            let _first = EventRow::random(&mut rng, None);
            rows.push(EventRow::random(&mut rng, None));
        };
        assert_found(add_refused, |report| report.stored_though_refused);
    }
}
