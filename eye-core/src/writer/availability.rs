//! The last known availability of a sink, and the time of the next check.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The pause between checks while nothing is written.
pub(super) const IDLE_CHECK: Duration = Duration::from_secs(2);

/// The time for which a sink is not ready after a failed batch unless a batch is stored. A sink over a full disk, for
/// example, can be prepared all the same, and its health would alternate. Doubled with each batch that fails.
pub(super) const PROBATION: Duration = Duration::from_secs(5);
const MAX_PROBATION: Duration = Duration::from_secs(60);

/// The longest pause that a sink can ask for.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A sink that cannot be written to now.
pub(super) struct Outage {
    pub(super) reason: String,
    /// The pause that the sink asks for.
    pub(super) pause: Duration,
}

impl Outage {
    pub(super) fn new(reason: String, pause: Option<Duration>) -> Self {
        Self { reason, pause: pause.unwrap_or_default().min(MAX_PAUSE) }
    }
}

/// The last known availability of a sink.
pub(super) struct Availability {
    pub(super) outage: Option<Outage>,
    /// The time of the next check.
    pub(super) check_at: Instant,
    backoff: Backoff,
    probation: Duration,
    probation_ends: Instant,
}

impl Availability {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { outage: None, check_at: now, backoff: retry_backoff(), probation: Duration::ZERO, probation_ends: now }
    }

    pub(super) fn on_probation(&self) -> bool {
        Instant::now() < self.probation_ends
    }

    /// Takes the result of a check.
    pub(super) fn checked(&mut self, outage: Option<Outage>) {
        if outage.is_some() {
            // The next successful check is news again.
            (self.probation, self.probation_ends) = (Duration::ZERO, Instant::now());
        }
        self.update(outage);
    }

    /// Takes the result of a batch.
    pub(super) fn written(&mut self, outage: Option<Outage>) {
        self.probation = match &outage {
            Some(_) => (2 * self.probation).clamp(PROBATION, MAX_PROBATION),
            None => Duration::ZERO,
        };
        self.probation_ends = Instant::now() + self.probation;
        self.update(outage);
    }

    fn update(&mut self, outage: Option<Outage>) {
        let pause = if let Some(outage) = &outage {
            self.backoff.next_pause().max(outage.pause)
        } else {
            self.backoff.reset();
            IDLE_CHECK
        };
        self.check_at = Instant::now() + pause;
        self.outage = outage;
    }
}

/// Creates the backoff between tries to reach a sink.
pub(super) fn retry_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(1))
}
