//! Collecting deliveries into a batch, and mapping what became of its events back to their acks. Pure: nothing here waits.

/// How much one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Events at most.
    pub max_events: usize,
    /// Bytes of events at most.
    pub max_bytes: usize,
}
