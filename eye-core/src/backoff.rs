//! Growing pauses between tries: the one backoff of the workspace.

use std::time::Duration;

/// Pauses that double from a first to a longest one.
///
/// Each pause is shortened by up to half at random, so that several components that failed together do not try
/// again together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Creates a backoff whose first pause is at most `first` and whose later ones are at most `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// Returns the next pause and doubles the one after it.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.max);
        pause
    }

    /// Starts again with the first pause, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let (first, max) = (Duration::from_millis(50), Duration::from_millis(300));
        let mut backoff = Backoff::new(first, max);
        for bound_ms in [50, 100, 200, 300, 300] {
            let (pause, bound) = (backoff.next_pause(), Duration::from_millis(bound_ms));
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} for {bound:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= first);
    }
}
