//! Capacity of the disk queue: its quota, the free space of the disk, and the bytes that wait for a commit.
//!
//! Nothing here blocks. The writing thread measures the disk once a second and passes the result to [`Capacity`].

/// Bytes that may wait for a commit.
const MAX_WAITING_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Default)]
pub(super) struct Capacity {
    max_bytes: u64,
    min_free_bytes: u64,
    /// Bytes of all segments.
    on_disk: u64,
    /// Bytes that are reserved and not committed.
    waiting: u64,
    /// Free bytes of the disk at the last measurement, less the bytes that were written since.
    free: u64,
    /// The bytes of a refused request, and the reason, until [`refusing`](Self::refusing) has reported the refusal.
    refused: Option<(u64, String)>,
}

impl Capacity {
    /// Creates a capacity that refuses everything until the first measurement of the disk.
    pub(super) fn new(max_bytes: u64, min_free_bytes: u64, on_disk: u64) -> Self {
        Self { max_bytes, min_free_bytes, on_disk, ..Self::default() }
    }

    /// Reserves bytes for a write. Returns the reason for a refusal.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), String> {
        if let Some(reason) = self.shortage(bytes) {
            self.refused = Some((bytes, reason.clone()));
            return Err(reason);
        }
        self.waiting += bytes;
        Ok(())
    }

    fn shortage(&self, bytes: u64) -> Option<String> {
        let waiting = self.waiting + bytes;
        if self.on_disk + waiting > self.max_bytes {
            Some(format!("the queue holds {} bytes (transport.max_bytes = {})", self.on_disk, self.max_bytes))
        } else if self.free < waiting.saturating_add(self.min_free_bytes) {
            Some(format!("the disk has {} bytes free (transport.min_free_bytes = {})", self.free, self.min_free_bytes))
        } else if waiting > MAX_WAITING_BYTES && self.waiting > 0 {
            // A request above the limit is accepted once nothing else waits.
            Some(format!("{} bytes wait for the disk", self.waiting))
        } else {
            None
        }
    }

    /// Returns reserved bytes that were not written.
    pub(super) fn release(&mut self, reserved: u64) {
        self.waiting -= reserved;
    }

    /// Turns reserved bytes into written ones.
    pub(super) fn commit(&mut self, reserved: u64, written: u64) {
        self.release(reserved);
        self.on_disk += written;
        self.free = self.free.saturating_sub(written);
    }

    /// Returns the bytes of a removed segment. The next measurement adds them to the free ones.
    pub(super) fn remove(&mut self, bytes: u64) {
        self.on_disk -= bytes;
    }

    /// Sets the free bytes of the disk.
    pub(super) fn set_free(&mut self, bytes: u64) {
        self.free = bytes;
    }

    /// Returns the reason for which requests are refused: since the last call, or now if the refused request came
    /// again.
    pub(super) fn refusing(&mut self) -> Option<String> {
        let refused = self.refused.take();
        let bytes = refused.as_ref().map_or(1, |(bytes, _)| *bytes);
        let shortage = self.shortage(bytes);
        self.refused = shortage.clone().map(|reason| (bytes, reason));
        shortage.or(refused.map(|(_, reason)| reason))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn capacity(max_bytes: u64) -> Capacity {
        let mut capacity = Capacity::new(max_bytes, 100, 0);
        capacity.set_free(u64::MAX);
        capacity
    }

    #[test]
    fn refusal_lasts_until_the_request_would_succeed() {
        let mut capacity = capacity(1000);
        capacity.reserve(600).unwrap();
        assert_eq!(capacity.refusing(), None);
        capacity.reserve(500).unwrap_err();
        for _ in 0..3 {
            assert!(capacity.refusing().is_some_and(|reason| reason.contains("transport.max_bytes = 1000")));
        }
        capacity.release(200);
        assert!(capacity.refusing().is_some(), "requests were refused since the last call");
        assert_eq!(capacity.refusing(), None);
    }

    #[test]
    fn request_above_the_waiting_limit_is_taken_alone() {
        let mut capacity = capacity(1 << 30);
        let large = MAX_WAITING_BYTES + 1;
        capacity.reserve(1).unwrap();
        assert!(capacity.reserve(large).unwrap_err().contains("wait for the disk"));
        capacity.release(1);
        capacity.reserve(large).unwrap();
        assert!(capacity.reserve(1).unwrap_err().contains("wait for the disk"));
    }

    #[test]
    fn written_bytes_count_against_quota_and_free_space() {
        let mut capacity = capacity(1000);
        capacity.set_free(1050);
        capacity.reserve(900).unwrap();
        capacity.commit(900, 900);
        assert!(capacity.reserve(101).unwrap_err().contains("the queue holds 900 bytes"));
        capacity.remove(900);
        assert!(capacity.reserve(101).unwrap_err().contains("150 bytes free (transport.min_free_bytes = 100)"));
        capacity.set_free(1050);
        capacity.reserve(101).unwrap();
    }
}
