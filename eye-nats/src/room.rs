//! How much more a stream takes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::stream::Info;
use tokio::time::Instant;

/// The part of a stream that stays free: a sixteenth.
const RESERVED: i64 = 16;

/// Bytes of a message beside its payload, at most: its subject, its headers, of which the reason of a dead letter is the
/// longest, and what the server adds.
const OVERHEAD_BYTES: i64 = 4096;

/// How long what was seen of a stream counts: others may publish to it, too.
const COUNTS_FOR: Duration = Duration::from_secs(2);

/// What may still be published to a stream that is to refuse what is too much (`discard: new`).
///
/// Its refusal alone does not do: nats-server before 2.10.6 leaves out of its reckoning what it adds to each message, takes
/// one that ends just below the bound, and throws out the oldest one for it (nats-io/nats-server#4771). So a sixteenth of
/// the stream stays free. That is also for what others publish between two looks.
#[derive(Debug, Default)]
pub struct Room(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// `None` before the first look.
    at: Option<Instant>,
    /// What was left then, less what was published since.
    left_bytes: i64,
}

impl Room {
    /// The stream was looked at just now.
    pub fn see(&self, info: &Info) {
        let left_bytes = left_bytes(info.config.max_bytes, info.state.bytes);
        *self.seen() = Seen { at: Some(Instant::now()), left_bytes };
    }

    /// Whether a message with such a payload may be published. Asks the server unless it was asked just now, and once more
    /// where it would not seem so.
    ///
    /// # Errors
    /// When the server does not say.
    pub async fn takes(&self, context: &Context, stream: &str, payload_bytes: usize) -> Result<bool, GetStreamError> {
        let bytes = payload_bytes as i64 + OVERHEAD_BYTES;
        if self.take(bytes) {
            return Ok(true);
        }
        self.see(context.get_stream(stream).await?.cached_info());
        Ok(self.take(bytes))
    }

    fn take(&self, bytes: i64) -> bool {
        let mut seen = self.seen();
        let is_left = seen.at.is_some_and(|at| at.elapsed() < COUNTS_FOR) && seen.left_bytes >= bytes;
        if is_left {
            seen.left_bytes -= bytes;
        }
        is_left
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left_bytes(max_bytes: i64, bytes: u64) -> i64 {
    match max_bytes {
        ..=0 => i64::MAX,
        _ => (max_bytes - max_bytes / RESERVED).saturating_sub_unsigned(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(max_bytes: i64, bytes: u64) -> Room {
        Room(Mutex::new(Seen { at: Some(Instant::now()), left_bytes: left_bytes(max_bytes, bytes) }))
    }

    #[test]
    fn a_sixteenth_stays_free() {
        let room = room(16_000, 10_000);
        assert!(!room.take(5001));
        assert!(room.take(3000) && room.take(2000));
        assert!(!room.take(1));
    }

    #[test]
    fn a_stream_without_a_bound_takes_all() {
        assert!(room(-1, u64::MAX).take(i64::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_counts_for_a_while() {
        let room = room(-1, 0);
        assert!(room.take(1) && !Room::default().take(1));
        tokio::time::advance(COUNTS_FOR).await;
        assert!(!room.take(1));
    }
}
