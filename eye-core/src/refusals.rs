//! Refused events: counted by kind for the operator, never shown.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

/// The `tracing` target of the reports, all at level WARN. Sentry gets these and errors.
pub const TARGET: &str = "eye_core::refusals";

/// How often a kind of refusal is reported at most.
const INTERVAL: Duration = Duration::from_secs(60);

/// A kind of refusal. It consists of the program's own words, so nothing of an event can get into a report, and there
/// are only so many kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// What was wrong: a field of the event, the whole event, or the body.
    pub part: &'static str,
    /// What was wrong with it.
    pub problem: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.problem)
    }
}

/// One component's refusals. The first of a kind is reported at once, further ones together once a minute, and what is
/// left by [`report_rest`](Self::report_rest) or when this is dropped.
#[derive(Debug)]
pub struct Refusals(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    component: String,
    kinds: Mutex<HashMap<Refusal, Kind>>,
}

/// What there is to say of one kind.
#[derive(Debug, Default)]
struct Kind {
    total: u64,
    /// How many came since the last report.
    unreported: usize,
    /// It was reported within the last minute, and will be when that is over, where there is something to report.
    recent: bool,
}

impl Refusals {
    /// For the component of this name, such as `sources.web`.
    pub fn new(component: impl Into<String>) -> Self {
        Self(Arc::new(Counts { component: component.into(), kinds: Mutex::default() }))
    }

    /// Counts refusals. Does not block; must be called within a Tokio runtime, which waits for the next report.
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

    /// Reports what was not reported yet. For the end of the program, which may come before the last owner drops this.
    pub fn report_rest(&self) {
        self.0.report_rest();
    }

    /// How many there were of each kind so far.
    pub fn totals(&self) -> Vec<(Refusal, u64)> {
        self.0.lock().iter().map(|(refusal, kind)| (*refusal, kind.total)).collect()
    }
}

/// Until there is nothing to report for once.
async fn report_each_interval(counts: Weak<Counts>, refusal: Refusal) {
    loop {
        sleep(INTERVAL).await;
        let Some(counts) = counts.upgrade() else { return };
        if !counts.report(refusal) {
            return;
        }
    }
}

impl Counts {
    /// Whether there was anything to report; the kind is new again where there was not.
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Refusal, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counts {
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

    /// The reports of this thread while it lives: the fields of each.
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
    async fn the_first_of_a_kind_is_reported_at_once_and_further_ones_together() {
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
    async fn after_a_quiet_minute_the_next_is_reported_at_once_again() {
        let (logged, _guard) = Logged::start();
        let refusals = Refusals::new("sources.web");
        refusals.note([NO_TIME]);
        sleep(Duration::from_secs(61)).await;
        refusals.note([NO_TIME]);
        assert_eq!(logged.take().len(), 2);
        assert_eq!(refusals.totals(), [(NO_TIME, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_at_the_end_is_reported() {
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
    async fn the_rest_is_reported_once() {
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
