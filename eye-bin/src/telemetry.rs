//! Log lines on stderr, and reports to Sentry.
//!
//! [`start_logs`] comes first, then [`start_sentry`]. Neither a slow reader of stderr nor a slow Sentry server blocks a
//! caller; at the end, the guards wait for each for a bounded time.

mod bounded_wait;
mod logs;
mod sentry;
mod stderr;
#[cfg(test)]
mod tests;

pub use self::logs::{LogFormat, LogGuard, flush_logs, start_logs};
pub use self::sentry::{SentryConfig, SentryGuard, start_sentry};
