//! A record of the events that a load sent, and its comparison with the stored ids.
//!
//! [`SentEvents`] keeps only counts and the ranges that were not acknowledged, so a run of millions of events is small.
//! [`StoredCheck`] reads each stored id once and finds lost, duplicated and foreign events.

use std::ops::Range;

use uuid::Uuid;

use crate::events::NumberedId;

/// The events of one run by their numbers. Every sent event counts as acknowledged unless it is in a failed range.
#[derive(Clone, Debug, Default)]
pub(crate) struct SentEvents {
    pub(crate) run: u32,
    /// Start of the run in microseconds since 1970. No event of the run is older.
    pub(crate) since_us: i64,
    /// One entry for each connection, in their order.
    pub(crate) connections: Vec<ConnectionLog>,
}

/// The events that one connection sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionLog {
    /// Number of events sent.
    pub(crate) sent: u64,
    /// Numbers of the events that were not acknowledged.
    pub(crate) failed: Vec<Range<u64>>,
}

impl SentEvents {
    /// Returns the number of acknowledged events.
    pub(crate) fn acked(&self) -> u64 {
        let failed = |log: &ConnectionLog| log.failed.iter().map(|range| range.end - range.start).sum::<u64>();
        self.connections.iter().map(|log| log.sent - failed(log)).sum()
    }

    /// Starts a comparison with the stored ids.
    pub(crate) fn check(&self) -> StoredCheck<'_> {
        let seen = self.connections.iter().map(|log| vec![false; log.sent as usize]).collect();
        StoredCheck { expected: self, seen, duplicated: 0, foreign: 0 }
    }
}

/// A comparison in progress.
pub(crate) struct StoredCheck<'a> {
    expected: &'a SentEvents,
    /// For each connection and number: is the event stored?
    seen: Vec<Vec<bool>>,
    duplicated: u64,
    foreign: u64,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredResult {
    /// Events of this run that are stored.
    pub(crate) stored: u64,
    /// Events that were acknowledged but are not stored.
    pub(crate) lost: u64,
    /// Further copies of stored events.
    pub(crate) duplicated: u64,
    /// Stored events that this run did not send.
    pub(crate) foreign: u64,
}

impl StoredCheck<'_> {
    /// Adds a stored id.
    pub(crate) fn add(&mut self, id: Uuid) {
        let NumberedId { run, connection, number } = NumberedId::from_uuid(id);
        let numbers = self.seen.get_mut(usize::from(connection)).filter(|_| run == self.expected.run);
        match numbers.and_then(|numbers| numbers.get_mut(number as usize)) {
            None => self.foreign += 1,
            Some(seen) if *seen => self.duplicated += 1,
            Some(seen) => *seen = true,
        }
    }

    /// Returns the result after the last id.
    pub(crate) fn finish(self) -> StoredResult {
        let mut result = StoredResult { duplicated: self.duplicated, foreign: self.foreign, ..StoredResult::default() };
        for (mut seen, log) in self.seen.into_iter().zip(&self.expected.connections) {
            result.stored += seen.iter().filter(|&&seen| seen).count() as u64;
            // An event without acknowledgement may be stored or not.
            log.failed.iter().for_each(|range| seen[range.start as usize..range.end as usize].fill(true));
            result.lost += seen.iter().filter(|&&seen| !seen).count() as u64;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EventGenerator, SessionPattern};

    #[test]
    fn check_finds_lost_duplicated_and_foreign_events() {
        let mut generator = EventGenerator::new(7, 0, 1, SessionPattern::ComeAndGo);
        let ids: Vec<Uuid> = (0..10).map(|_| generator.next_event(0).id).collect();
        let log = ConnectionLog { sent: 10, failed: vec![1..2, 4..6] };
        let sent = SentEvents { run: 7, since_us: 0, connections: vec![log] };
        assert_eq!(sent.acked(), 7);
        let mut check = sent.check();
        // 3 is lost; 4 was not acknowledged, so its absence is no loss.
        ids.iter().filter(|&&id| id != ids[3] && id != ids[4]).for_each(|&id| check.add(id));
        check.add(ids[9]);
        check.add(Uuid::nil());
        assert_eq!(check.finish(), StoredResult { stored: 8, lost: 1, duplicated: 1, foreign: 1 });
    }
}
