//! Whether what producers were told is true of the database.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::BuildHasher;

use uuid::Uuid;

use crate::event::Row;
use crate::ledger::{Fate, Ledger};

/// What a ledger and a database say together, in numbers of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be sent at least once.
    pub issued: usize,
    /// Taken for good, as producers were told.
    pub acked: usize,
    /// Of which producers know nothing.
    pub unknown: usize,
    /// Refused for good, as producers were told.
    pub refused: usize,
    /// Different events in the database.
    pub stored: usize,
    /// Acknowledged, then refused, and kept as dead letters.
    pub dead: usize,
    /// A fault: acknowledged, and neither stored nor a dead letter.
    pub lost: usize,
    /// A fault: rows beyond the first of an event.
    pub duplicated: usize,
    /// A fault: stored otherwise than they were sent.
    pub corrupt: usize,
    /// A fault: stored, and never sent.
    pub foreign: usize,
    /// A fault: stored, although producers were told that they never will be.
    pub stored_though_refused: usize,
}

impl Verdict {
    /// Whether there is no fault.
    pub fn holds(&self) -> bool {
        let faults = [self.lost, self.duplicated, self.corrupt, self.foreign, self.stored_though_refused];
        faults == [0; 5]
    }

    /// # Panics
    /// When there is a fault, or nothing was acknowledged and so nothing was tried.
    #[track_caller]
    pub fn assert(&self) {
        assert!(self.holds(), "{self}");
        assert!(self.acked > 0, "nothing was tried: {self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, acked, unknown, refused, stored, dead, lost, duplicated, corrupt, .. } = self;
        write!(f, "issued {issued}, acked {acked}, unknown {unknown}, refused {refused}, stored {stored}")?;
        write!(f, ", dead letters {dead}; lost {lost}, duplicated {duplicated}, corrupt {corrupt}")?;
        write!(f, ", foreign {}, stored though refused {}", self.foreign, self.stored_though_refused)
    }
}

/// Compares `rows`, all that the database has, with `ledger`; `dead` are the ids of the dead letters. Nothing may be
/// on its way meanwhile: see [`Oracle::pause`](crate::Oracle::pause).
pub fn verify<S: BuildHasher>(ledger: &Ledger, rows: &[Row], dead: &HashSet<Uuid, S>) -> Verdict {
    let mut copies: HashMap<Uuid, usize> = HashMap::with_capacity(rows.len());
    let mut verdict = Verdict {
        issued: ledger.entries.len(),
        acked: ledger.count(Fate::Acked),
        unknown: ledger.count(Fate::Unknown),
        refused: ledger.count(Fate::Refused),
        ..Verdict::default()
    };
    for row in rows {
        *copies.entry(row.id).or_default() += 1;
        match ledger.entries.get(&row.id) {
            None => verdict.foreign += 1,
            Some((hash, fate)) => {
                verdict.corrupt += usize::from(row.hash() != *hash);
                verdict.stored_though_refused += usize::from(*fate == Fate::Refused);
            }
        }
    }
    verdict.stored = copies.len();
    verdict.duplicated = rows.len() - copies.len();
    for (id, (_, fate)) in &ledger.entries {
        if *fate == Fate::Acked && !copies.contains_key(id) {
            verdict.dead += usize::from(dead.contains(id));
            verdict.lost += usize::from(!dead.contains(id));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// An acknowledged, a refused, an unknown that is stored and one that is not, and a dead letter.
    fn honest() -> (Ledger, Vec<Row>, HashSet<Uuid>) {
        let mut rng = Rng::with_seed(7);
        let rows: Vec<Row> = (0..5).map(|_| Row::random(&mut rng, None)).collect();
        let mut ledger = Ledger::default();
        for (row, fate) in rows.iter().zip([Fate::Acked, Fate::Refused, Fate::Unknown, Fate::Unknown, Fate::Acked]) {
            ledger.issue(row.id, row.hash()).expect("no two are the same");
            ledger.settle(row.id, fate).expect("it was issued");
        }
        (ledger, vec![rows[0].clone(), rows[2].clone()], HashSet::from([rows[4].id]))
    }

    #[test]
    fn the_truth_is_no_fault() {
        let (ledger, rows, dead) = honest();
        let verdict = verify(&ledger, &rows, &dead);
        let expected =
            Verdict { issued: 5, acked: 2, unknown: 2, refused: 1, stored: 2, dead: 1, ..Verdict::default() };
        assert_eq!(verdict, expected);
        assert!(verdict.holds());
    }

    /// Finds `count` faults of one kind, and none else, after `lie`.
    fn finds(lie: impl FnOnce(&mut Ledger, &mut Vec<Row>, &mut HashSet<Uuid>), fault: fn(&Verdict) -> usize) {
        let (mut ledger, mut rows, mut dead) = honest();
        lie(&mut ledger, &mut rows, &mut dead);
        let verdict = verify(&ledger, &rows, &dead);
        assert!(!verdict.holds(), "{verdict}");
        assert_eq!(fault(&verdict), 1, "{verdict}");
        let Verdict { lost, duplicated, corrupt, foreign, stored_though_refused, .. } = verdict;
        assert_eq!(lost + duplicated + corrupt + foreign + stored_though_refused, 1, "{verdict}");
    }

    #[test]
    fn acknowledged_and_not_stored_is_lost() {
        finds(|_, rows, _| drop(rows.remove(0)), |verdict| verdict.lost);
        finds(|_, _, dead| dead.clear(), |verdict| verdict.lost);
    }

    #[test]
    fn stored_twice_is_duplicated() {
        finds(|_, rows, _| rows.push(rows[1].clone()), |verdict| verdict.duplicated);
    }

    #[test]
    fn stored_otherwise_is_corrupt() {
        finds(|_, rows, _| rows[0].data.push(' '), |verdict| verdict.corrupt);
        finds(|_, rows, _| rows[1].timestamp_micros += 1, |verdict| verdict.corrupt);
        finds(|_, rows, _| rows[1].name = rows[1].name.to_uppercase(), |verdict| verdict.corrupt);
    }

    #[test]
    fn stored_and_never_sent_is_foreign() {
        finds(|_, rows, _| rows.push(Row::random(&mut Rng::with_seed(8), None)), |verdict| verdict.foreign);
    }

    #[test]
    fn stored_after_a_refusal_is_a_fault() {
        let add_refused = |_: &mut Ledger, rows: &mut Vec<Row>, _: &mut HashSet<Uuid>| {
            let mut rng = Rng::with_seed(7);
            let _first = Row::random(&mut rng, None);
            rows.push(Row::random(&mut rng, None));
        };
        finds(add_refused, |verdict| verdict.stored_though_refused);
    }
}
