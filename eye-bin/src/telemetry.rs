//! What operators see of the program: log lines on stderr, and reports to Sentry.

mod logs;
mod sentry;
mod stderr;
#[cfg(test)]
mod tests;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub use self::logs::{LogFormat, LogGuard, flush_logs, start_logs};
pub use self::sentry::{SentryConfig, SentryGuard, start_sentry};

/// Waits for `work`, which a thread of its own does, but no longer than `at_most`.
fn wait_at_most(at_most: Duration, work: impl FnOnce() + Send + 'static) {
    let (end, ended) = mpsc::channel::<()>();
    let started = thread::Builder::new().spawn(move || {
        work();
        drop(end);
    });
    if started.is_ok() {
        // An error either way: the work has ended, or the time is up.
        let _ = ended.recv_timeout(at_most);
    }
}
