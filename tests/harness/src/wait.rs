//! Waiting for conditions, so that no test sleeps for a fixed time.

use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, and checks it every 10 ms. A check is never interrupted.
///
/// # Panics
/// Panics with `what`, the name of the condition, if it does not hold within `deadline`.
pub async fn eventually(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Blocks until `condition` holds, and returns false at the deadline. For code outside a runtime.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn condition_is_checked_until_it_holds() {
        let mut asked = 0;
        eventually("the third time", Duration::from_secs(10), async || {
            asked += 1;
            asked == 3
        })
        .await;
        assert_eq!(asked, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "not within 20ms: never")]
    async fn unmet_condition_panics_with_its_name() {
        eventually("never", Duration::from_millis(20), async || false).await;
    }
}
