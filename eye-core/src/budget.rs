//! A bound on bytes in memory: the one byte budget of the workspace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A number of bytes that may be in use at once.
///
/// Cloning shares the budget. A reservation is returned to the budget when it is dropped.
#[derive(Clone, Debug)]
pub struct ByteBudget {
    permits: Arc<Semaphore>,
    max_bytes: usize,
}

/// Bytes taken from a [`ByteBudget`]; dropping them gives them back.
#[derive(Debug)]
pub struct Reservation(OwnedSemaphorePermit);

impl ByteBudget {
    /// Creates a budget of `max_bytes`, at most `u32::MAX`.
    pub fn new(max_bytes: u32) -> Self {
        let max_bytes = max_bytes as usize;
        Self { permits: Arc::new(Semaphore::new(max_bytes)), max_bytes }
    }

    /// Reserves bytes if they are available now. A request for more than the whole budget takes the whole budget,
    /// so it succeeds when nothing else is reserved.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        self.permits.clone().try_acquire_many_owned(self.capped(bytes)).ok().map(Reservation)
    }

    /// Reserves bytes as [`try_reserve`](Self::try_reserve) does, and waits for them up to `max_wait`. Requests are
    /// served in order. Dropping the future reserves nothing.
    pub async fn reserve_within(&self, bytes: usize, max_wait: Duration) -> Option<Reservation> {
        timeout(max_wait, self.reserve(bytes)).await.ok()
    }

    /// Reserves bytes as [`try_reserve`](Self::try_reserve) does, and waits for them without a bound.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        let permit = self.permits.clone().acquire_many_owned(self.capped(bytes)).await;
        Reservation(permit.expect("the semaphore is never closed"))
    }

    /// Returns the bytes in use.
    pub fn used_bytes(&self) -> usize {
        self.max_bytes - self.permits.available_permits()
    }

    /// Returns the bytes that may be in use at once.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    fn capped(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.max_bytes)).expect("a budget is made of a u32")
    }
}

impl Reservation {
    /// Adds another reservation of the same budget to this one.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }

    /// Returns the reserved bytes.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_available_again_once_dropped() {
        let budget = ByteBudget::new(10);
        let first = budget.try_reserve(6).unwrap();
        assert!(budget.try_reserve(5).is_none());
        assert!(budget.reserve_within(5, Duration::from_secs(1)).await.is_none());
        drop(first);
        assert_eq!(budget.try_reserve(5).unwrap().bytes(), 5);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn oversized_request_takes_the_whole_budget_alone() {
        let budget = ByteBudget::new(10);
        let small = budget.try_reserve(1).unwrap();
        assert!(budget.try_reserve(11).is_none());
        drop(small);
        assert_eq!(budget.try_reserve(11).unwrap().bytes(), 10);
    }
}
