//! Reports of refused events: counted by kind, without anything from an event.
//!
//! [`Refusals`] logs the first refusal of a kind at once and later ones together, once a minute.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

/// The `tracing` target of the reports, all at level WARN. Sentry gets these and errors.
pub const TARGET: &str = "eye_core::refusals";

/// The shortest time between two reports of one kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// A kind of refusal. It consists of constant texts, so no report can contain anything from an event, and the number of
/// kinds is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// The part at fault: a field of the event, the whole event, or the body.
    pub part: &'static str,
    /// Its fault.
    pub problem: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.problem)
    }
}

/// One component's refusals. The first of a kind is reported at once, and further ones together once a minute. The rest
/// is reported by [`report_rest`](Self::report_rest) or on drop.
#[derive(Debug)]
pub struct Refusals(Arc<RefusalCounts>);

#[derive(Debug)]
struct RefusalCounts {
    component: String,
    kinds: Mutex<HashMap<Refusal, KindCount>>,
}

/// The refusals of one kind.
#[derive(Debug, Default)]
struct KindCount {
    total: u64,
    /// The number since the last report.
    unreported: usize,
    /// True while the last report is less than a minute old and a task waits to report again.
    recent: bool,
}

impl Refusals {
    /// Creates the refusals of a component, such as `sources.web`.
    pub fn new(component: impl Into<String>) -> Self {
        Self(Arc::new(RefusalCounts { component: component.into(), kinds: Mutex::default() }))
    }

    /// Counts refusals. Does not block. Must be called within a Tokio runtime, on which a task waits for the next report.
    pub fn note(&self, refusals: impl IntoIterator<Item = Refusal>) {
        let mut new = Vec::new();
        let mut kinds = self.0.lock();
        for refusal in refusals {
            let kind = kinds.entry(refusal).or_default();
            kind.total += 1;
            kind.unreported += 1;
            if !std::mem::replace(&mut kind.recent, true) {
                new.push(refusal);
            }
        }
        drop(kinds);
        for refusal in new {
            self.0.report(refusal);
            tokio::spawn(report_each_interval(Arc::downgrade(&self.0), refusal));
        }
    }

    /// Reports the refusals that are not reported yet: for a shutdown, which may come before the last owner is dropped.
    pub fn report_rest(&self) {
        self.0.report_rest();
    }

    /// Returns the number of each kind so far.
    pub fn totals(&self) -> Vec<(Refusal, u64)> {
        self.0.lock().iter().map(|(refusal, kind)| (*refusal, kind.total)).collect()
    }
}

/// Reports once a minute, until there is nothing to report.
async fn report_each_interval(counts: Weak<RefusalCounts>, refusal: Refusal) {
    loop {
        sleep(INTERVAL).await;
        let Some(counts) = counts.upgrade() else { return };
        if !counts.report(refusal) {
            return;
        }
    }
}

impl RefusalCounts {
    /// Reports one kind. Returns false, and treats the kind as new again, if there was nothing to report.
    fn report(&self, refusal: Refusal) -> bool {
        let count = self.lock().get_mut(&refusal).map_or(0, |kind| {
            kind.recent = kind.unreported > 0;
            std::mem::take(&mut kind.unreported)
        });
        if count > 0 {
            tracing::warn!(target: TARGET, component = self.component, count, "refused: {refusal}");
        }
        count > 0
    }

    fn report_rest(&self) {
        let refusals: Vec<Refusal> = self.lock().keys().copied().collect();
        for refusal in refusals {
            self.report(refusal);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Refusal, KindCount>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RefusalCounts {
    fn drop(&mut self) {
        self.report_rest();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod tests {
    use std::iter::repeat_n;

    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing::subscriber::{DefaultGuard, set_default};

    use super::*;

    const NO_TIME: Refusal = Refusal { part: "timestamp", problem: "missing" };
    const NO_JSON: Refusal = Refusal { part: "body", problem: "not JSON" };

    /// The reports of this thread, as their fields.
    #[derive(Clone, Default)]
    pub(crate) struct Logged(Arc<Mutex<Vec<String>>>);

    impl Logged {
        pub(crate) fn start() -> (Self, DefaultGuard) {
            let logged = Self::default();
            (logged.clone(), set_default(logged))
        }

        pub(crate) fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl tracing::Subscriber for Logged {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target() == TARGET
        }

        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0.trim_end().to_owned());
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0 += &format!("{}={value:?} ", field.name());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn first_refusal_is_reported_at_once_and_later_ones_together() {
        let (logged, _guard) = Logged::start();
        let refusals = Refusals::new("sources.web");
        refusals.note([NO_TIME, NO_JSON, NO_TIME]);
        let mut first = logged.take();
        first.sort();
        assert_eq!(
            first,
            [
                r#"message=refused: body: not JSON component="sources.web" count=1"#,
                r#"message=refused: timestamp: missing component="sources.web" count=2"#,
            ]
        );
        for _ in 0..59 {
            refusals.note(repeat_n(NO_TIME, 100));
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(logged.take(), [""; 0]);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(logged.take(), [r#"message=refused: timestamp: missing component="sources.web" count=5900"#]);
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_after_a_quiet_minute_is_reported_at_once() {
        let (logged, _guard) = Logged::start();
        let refusals = Refusals::new("sources.web");
        refusals.note([NO_TIME]);
        sleep(Duration::from_secs(61)).await;
        refusals.note([NO_TIME]);
        assert_eq!(logged.take().len(), 2);
        assert_eq!(refusals.totals(), [(NO_TIME, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn unreported_rest_is_reported_on_drop() {
        let (logged, _guard) = Logged::start();
        let refusals = Refusals::new("sources.web");
        refusals.note([NO_TIME]);
        refusals.note([NO_TIME, NO_TIME]);
        logged.take();
        drop(refusals);
        assert_eq!(logged.take(), [r#"message=refused: timestamp: missing component="sources.web" count=2"#]);
        sleep(Duration::from_secs(120)).await;
        assert_eq!(logged.take(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn rest_is_reported_once() {
        let (logged, _guard) = Logged::start();
        let refusals = Refusals::new("sources.web");
        refusals.note([NO_TIME]);
        refusals.note([NO_TIME, NO_TIME]);
        logged.take();
        refusals.report_rest();
        assert_eq!(logged.take(), [r#"message=refused: timestamp: missing component="sources.web" count=2"#]);
        drop(refusals);
        assert_eq!(logged.take(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_refused_reports_nothing() {
        let (logged, _guard) = Logged::start();
        Refusals::new("sources.web").note([]);
        assert_eq!(logged.take(), [""; 0]);
    }
}
