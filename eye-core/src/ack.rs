//! The two ends of an outcome: the writer settles an [`Ack`], the source awaits the [`Receipt`].
//!
//! A transport creates both when events are published and hands the ack to every sink's writer. The receipt resolves
//! exactly once, to the worst outcome of all sinks. An ack that is dropped counts as a failure, so no code path can
//! leave a producer without an answer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The result for the events of one publish.
///
/// Ordered by severity: where several sinks answer for the same events, the worst outcome wins
/// (`Failed` > `Rejected` > `Delivered`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every event is in durable custody.
    Delivered,
    /// The listed events were refused for good; all others are in durable custody.
    Rejected(Vec<Rejection>),
    /// The events may be stored or not. Sending them again is safe when they carry an id.
    Failed {
        /// The cause, for the producer and the log.
        reason: Arc<str>,
    },
}

/// One event that was refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The event's index in the published list, from 0.
    pub index: usize,
    /// The reason, for the producer.
    pub reason: Arc<str>,
}

impl Outcome {
    /// Creates a failure with its reason.
    pub fn failed(reason: impl Into<Arc<str>>) -> Self {
        Self::Failed { reason: reason.into() }
    }

    /// Keeps the worse of two outcomes. Rejections of different events add up, one for each event.
    fn merge(&mut self, other: Outcome) {
        match (&mut *self, other) {
            (Self::Failed { .. }, _) | (_, Self::Delivered) => {}
            (Self::Rejected(mine), Self::Rejected(theirs)) => {
                mine.extend(theirs);
                mine.sort_by_key(|rejection| rejection.index);
                mine.dedup_by_key(|rejection| rejection.index);
            }
            (_, worse) => *self = worse,
        }
    }
}

/// The obligation to report an outcome for the events of one publish.
///
/// A transport clones it for every sink. When the last clone is settled or dropped, the worst outcome is reported,
/// exactly once. A clone that is dropped unsettled counts as [`Outcome::Failed`].
#[must_use = "an ack that is dropped unsettled fails its events"]
pub struct Ack {
    shared: Option<Arc<SharedOutcome>>,
}

type OnSettled = Box<dyn FnOnce(Outcome) + Send>;

struct SharedOutcome {
    // The callback leaves when the last clone is gone: `Drop` runs once.
    state: Mutex<(Outcome, Option<OnSettled>)>,
}

impl Ack {
    /// Creates an ack that calls `on_settled` with the worst outcome once all its clones are settled or dropped.
    ///
    /// The callback runs on the task that settles last, so it must not block.
    pub fn new(on_settled: impl FnOnce(Outcome) + Send + 'static) -> Self {
        let state = Mutex::new((Outcome::Delivered, Some(Box::new(on_settled) as OnSettled)));
        Self { shared: Some(Arc::new(SharedOutcome { state })) }
    }

    /// Reports the outcome of this clone.
    pub fn settle(mut self, outcome: Outcome) {
        if let Some(shared) = self.shared.take() {
            shared.merge(outcome);
        }
    }
}

impl Clone for Ack {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            shared.merge(Outcome::failed("the events were dropped before they were stored"));
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack").finish_non_exhaustive()
    }
}

impl SharedOutcome {
    fn merge(&self, outcome: Outcome) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.merge(outcome);
    }
}

impl Drop for SharedOutcome {
    fn drop(&mut self) {
        let (outcome, on_settled) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(on_settled) = on_settled.take() {
            on_settled(std::mem::replace(outcome, Outcome::Delivered));
        }
    }
}

/// The producer's end: resolves to the [`Outcome`] once the events are in durable custody, or will not be.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Outcome>);

impl Receipt {
    /// Creates a receipt and the callback that settles it, to be given to [`Ack::new`].
    pub fn pair() -> (impl FnOnce(Outcome) + Send + 'static, Self) {
        let (sender, outcome) = oneshot::channel();
        // A source that stopped waiting revokes nothing: its outcome is ignored.
        (move |outcome| drop(sender.send(outcome)), Self(outcome))
    }

    /// Waits for the outcome, without a bound of its own. Dropping the future cancels nothing.
    pub async fn outcome(self) -> Outcome {
        self.0.await.unwrap_or_else(|_| Outcome::failed("the transport stopped before the events were stored"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Ack, Receipt) {
        let (settle, receipt) = Receipt::pair();
        (Ack::new(settle), receipt)
    }

    fn rejected(indices: &[usize]) -> Outcome {
        Outcome::Rejected(indices.iter().map(|&index| Rejection { index, reason: "bad".into() }).collect())
    }

    #[tokio::test]
    async fn settled_ack_reaches_the_receipt() {
        let (ack, receipt) = pair();
        ack.settle(Outcome::Delivered);
        assert_eq!(receipt.outcome().await, Outcome::Delivered);
    }

    #[tokio::test]
    async fn dropped_ack_counts_as_failed() {
        let (ack, receipt) = pair();
        drop(ack);
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }

    #[tokio::test]
    async fn dropped_clone_fails_delivered_events() {
        let (ack, receipt) = pair();
        let other = ack.clone();
        ack.settle(Outcome::Delivered);
        drop(other);
        assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    }

    #[tokio::test]
    async fn worst_outcome_wins_in_any_order() {
        let failed = || Outcome::failed("unavailable");
        let cases: [(Vec<Outcome>, Outcome); 5] = [
            (vec![Outcome::Delivered, rejected(&[1])], rejected(&[1])),
            (vec![rejected(&[1]), Outcome::Delivered], rejected(&[1])),
            (vec![rejected(&[3, 1]), rejected(&[1, 2])], rejected(&[1, 2, 3])),
            (vec![rejected(&[1]), failed()], failed()),
            (vec![failed(), rejected(&[1])], failed()),
        ];
        for (outcomes, expected) in cases {
            let (ack, receipt) = pair();
            let acks: Vec<Ack> = outcomes.iter().map(|_| ack.clone()).collect();
            ack.settle(Outcome::Delivered);
            for (ack, outcome) in acks.into_iter().zip(outcomes) {
                ack.settle(outcome);
            }
            assert_eq!(receipt.outcome().await, expected);
        }
    }

    #[tokio::test]
    async fn receipt_waits_for_the_last_clone() {
        let (ack, receipt) = pair();
        let other = ack.clone();
        ack.settle(Outcome::Delivered);
        let mut waiting = tokio_test_poll(receipt.outcome());
        assert!(waiting.poll_once().is_none());
        other.settle(Outcome::Delivered);
        assert_eq!(waiting.poll_once(), Some(Outcome::Delivered));
    }

    struct Polled<F>(std::pin::Pin<Box<F>>);

    fn tokio_test_poll<F: Future>(future: F) -> Polled<F> {
        Polled(Box::pin(future))
    }

    impl<F: Future> Polled<F> {
        fn poll_once(&mut self) -> Option<F::Output> {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match self.0.as_mut().poll(&mut context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            }
        }
    }
}
