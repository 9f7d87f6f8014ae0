//! A bounded wait for work that cannot be cancelled.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Runs `work` on a thread of its own and waits for it, but no longer than `timeout`.
pub(super) fn wait_at_most(timeout: Duration, work: impl FnOnce() + Send + 'static) {
    let (end, ended) = mpsc::channel::<()>();
    let started = thread::Builder::new().spawn(move || {
        work();
        drop(end);
    });
    if started.is_ok() {
        // An error in both cases: the work has ended, or the time is up.
        let _ = ended.recv_timeout(timeout);
    }
}
