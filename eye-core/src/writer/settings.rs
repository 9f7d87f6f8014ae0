//! The settings of writers: one set for all sinks, with overrides for each.

use std::time::Duration;

use serde::Deserialize;

use crate::transport::BatchLimits;

/// The settings that operators write below `[writer]`, for every sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct WriterConfig {
    /// The most events of one batch. The events of a single request stay together even when they are more.
    #[serde(deserialize_with = "eye_config::at_least_one")]
    pub max_events: usize,
    /// The most bytes of events of one batch, with the same exception.
    #[serde(deserialize_with = "eye_config::at_least_one")]
    pub max_bytes: usize,
    /// The longest wait for a full batch, in milliseconds. 0 takes what arrived while the last batch was written.
    /// Default: 50 with the `disk` transport, where no producer waits for the sink, else 0.
    pub max_wait_ms: Option<u32>,
    /// The time for which a batch is retried before its producers are told, in milliseconds.
    pub retry_for_ms: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { max_events: 5_000, max_bytes: 4 * 1024 * 1024, max_wait_ms: None, retry_for_ms: 5_000 }
    }
}

/// The settings that operators write below `[sinks.NAME.writer]`: those of `[writer]`, each optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WriterOverrides {
    #[serde(deserialize_with = "at_least_one")]
    max_events: Option<usize>,
    #[serde(deserialize_with = "at_least_one")]
    max_bytes: Option<usize>,
    max_wait_ms: Option<u32>,
    retry_for_ms: Option<u64>,
}

fn at_least_one<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    eye_config::at_least_one(deserializer).map(Some)
}

impl WriterConfig {
    /// Returns these settings with the overrides of one sink.
    #[must_use]
    pub fn with(&self, overrides: &WriterOverrides) -> Self {
        Self {
            max_events: overrides.max_events.unwrap_or(self.max_events),
            max_bytes: overrides.max_bytes.unwrap_or(self.max_bytes),
            max_wait_ms: overrides.max_wait_ms.or(self.max_wait_ms),
            retry_for_ms: overrides.retry_for_ms.unwrap_or(self.retry_for_ms),
        }
    }

    /// Returns the bounds of a batch; `default_max_wait` is the transport's.
    pub(crate) fn batch_limits(&self, default_max_wait: Duration) -> BatchLimits {
        let max_wait = self.max_wait_ms.map(|ms| Duration::from_millis(ms.into()));
        BatchLimits {
            max_events: self.max_events,
            max_bytes: self.max_bytes,
            max_wait: max_wait.unwrap_or(default_max_wait),
        }
    }

    /// Returns the time for which a batch is retried.
    pub(crate) fn retry_for(&self) -> Duration {
        Duration::from_millis(self.retry_for_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn override_replaces_only_its_own_setting() {
        let overrides = serde_json::from_value(json!({"max_events": 7, "max_wait_ms": 20})).unwrap();
        let config = WriterConfig::default().with(&overrides);
        let limits = config.batch_limits(Duration::from_millis(50));
        assert_eq!((limits.max_events, limits.max_wait), (7, Duration::from_millis(20)));
        assert_eq!((limits.max_bytes, config.retry_for_ms), (4 * 1024 * 1024, 5_000));
        let limits = WriterConfig::default().batch_limits(Duration::from_millis(50));
        assert_eq!(limits.max_wait, Duration::from_millis(50), "the transport's default");
    }
}
