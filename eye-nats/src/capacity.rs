//! The free capacity of a stream that refuses new messages when it is full (`discard: new`).
//!
//! nats-server before 2.10.6 does not count what it adds to each message. It accepts a message that ends just below the
//! limit, and removes the oldest one for it (nats-io/nats-server#4771). [`StreamCapacity`] therefore keeps a sixteenth of the
//! stream free, which also covers other publishers between two observations.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::stream::Info;
use tokio::time::Instant;

/// The share of a stream that stays free: a sixteenth.
const RESERVED: i64 = 16;

/// Upper bound of a message's bytes beside its payload: subject, headers (the longest is the reason of a dead letter) and
/// the server's own fields.
const OVERHEAD_BYTES: i64 = 4096;

/// Lifetime of an observation. Other programs publish to the same stream.
const OBSERVATION_TTL: Duration = Duration::from_secs(2);

/// Counts the bytes that may still be published to one stream.
#[derive(Debug, Default)]
pub struct StreamCapacity(Mutex<Observation>);

#[derive(Debug, Default)]
struct Observation {
    /// `None` before the first observation.
    at: Option<Instant>,
    /// Free bytes at that time, less those published since.
    free_bytes: i64,
}

impl StreamCapacity {
    /// Records the state of the stream, read just now.
    pub fn observe(&self, info: &Info) {
        let free_bytes = free_bytes(info.config.max_bytes, info.state.bytes);
        *self.observation() = Observation { at: Some(Instant::now()), free_bytes };
    }

    /// Reserves space for a message with such a payload; false when the stream is full. Asks the server when the last
    /// observation is too old or shows no space.
    ///
    /// # Errors
    /// [`GetStreamError`] when the server does not answer.
    pub async fn reserve(&self, context: &Context, stream: &str, payload_bytes: usize) -> Result<bool, GetStreamError> {
        let bytes = payload_bytes as i64 + OVERHEAD_BYTES;
        if self.try_reserve(bytes) {
            return Ok(true);
        }
        self.observe(context.get_stream(stream).await?.cached_info());
        Ok(self.try_reserve(bytes))
    }

    fn try_reserve(&self, bytes: i64) -> bool {
        let mut observation = self.observation();
        let is_recent = observation.at.is_some_and(|at| at.elapsed() < OBSERVATION_TTL);
        let fits = is_recent && observation.free_bytes >= bytes;
        if fits {
            observation.free_bytes -= bytes;
        }
        fits
    }

    fn observation(&self) -> MutexGuard<'_, Observation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free_bytes(max_bytes: i64, bytes: u64) -> i64 {
    match max_bytes {
        ..=0 => i64::MAX,
        _ => (max_bytes - max_bytes / RESERVED).saturating_sub_unsigned(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(max_bytes: i64, bytes: u64) -> StreamCapacity {
        let observation = Observation { at: Some(Instant::now()), free_bytes: free_bytes(max_bytes, bytes) };
        StreamCapacity(Mutex::new(observation))
    }

    #[test]
    fn a_sixteenth_stays_free() {
        let capacity = capacity(16_000, 10_000);
        assert!(!capacity.try_reserve(5001));
        assert!(capacity.try_reserve(3000) && capacity.try_reserve(2000));
        assert!(!capacity.try_reserve(1));
    }

    #[test]
    fn stream_without_limit_is_never_full() {
        assert!(capacity(-1, u64::MAX).try_reserve(i64::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn observation_expires() {
        let capacity = capacity(-1, 0);
        assert!(capacity.try_reserve(1) && !StreamCapacity::default().try_reserve(1));
        tokio::time::advance(OBSERVATION_TTL).await;
        assert!(!capacity.try_reserve(1));
    }
}
