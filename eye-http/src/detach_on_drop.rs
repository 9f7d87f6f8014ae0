//! A request handler that outlives its connection.
//!
//! [`DetachOnDrop`] runs in the connection's task, and continues in a task of its own if that task drops it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::task::TaskTracker;

/// A future that is spawned as a task when it is dropped before its end.
///
/// A task from the start would cost two more wake-ups for each request.
pub(crate) struct DetachOnDrop<F: Future<Output: Send> + Send + 'static> {
    /// `None` after the end.
    running: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
}

impl<F: Future<Output: Send> + Send + 'static> DetachOnDrop<F> {
    pub(crate) fn new(future: F, tasks: TaskTracker) -> Self {
        Self { running: Some(Box::pin(future)), tasks }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for DetachOnDrop<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let running = self.running.as_mut().expect("a future is not polled after its end");
        let polled = running.as_mut().poll(context);
        if polled.is_ready() {
            self.running = None;
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for DetachOnDrop<F> {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.tasks.spawn(running);
        }
    }
}
