//! How much more a stream takes.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::stream::Info;

/// The part of a stream that stays free: a sixteenth.
const RESERVED: i64 = 16;

/// Bytes of a message beside its payload, at most: its headers, and what the server adds.
const OVERHEAD_BYTES: i64 = 512;

/// What may still be published to a stream that is to refuse what is too much (`discard: new`).
///
/// Its refusal alone does not do: nats-server before 2.10.6 leaves out of its reckoning what it adds to each message, takes
/// one that ends just below the bound, and throws out the oldest one for it (nats-io/nats-server#4771). So a sixteenth of
/// the stream stays free. That is also for what others publish between two looks: near the bound each message has a look of
/// its own, else somebody is to [look](Self::see) now and then.
#[derive(Debug, Default)]
pub struct Room {
    left_bytes: AtomicI64,
}

impl Room {
    /// The stream was looked at just now.
    pub fn see(&self, info: &Info) {
        self.left_bytes.store(left_bytes(info.config.max_bytes, info.state.bytes), Relaxed);
    }

    /// Whether a message with such a payload may be published. Asks the server where it would not seem so.
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
        self.left_bytes.fetch_update(Relaxed, Relaxed, |left| (left >= bytes).then(|| left - bytes)).is_ok()
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

    #[test]
    fn a_sixteenth_stays_free() {
        let room = Room { left_bytes: left_bytes(16_000, 10_000).into() };
        assert!(!room.take(5001));
        assert!(room.take(3000) && room.take(2000));
        assert!(!room.take(1));
    }

    #[test]
    fn a_stream_without_a_bound_takes_all() {
        assert!(Room { left_bytes: left_bytes(-1, u64::MAX).into() }.take(i64::MAX));
    }
}
