//! Waiting on conditions: a test never sleeps for a fixed time and hopes.

use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; asks it again every 10 ms.
///
/// # Panics
/// When it still does not hold at `deadline`; `what` says what was waited for. A condition that never returns is not
/// interrupted.
pub async fn eventually(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// As [`eventually`], blocking, for what happens outside a runtime. False at the deadline.
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
    async fn a_condition_is_asked_until_it_holds() {
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
    async fn a_condition_that_never_holds_panics_with_its_name() {
        eventually("never", Duration::from_millis(20), async || false).await;
    }
}
