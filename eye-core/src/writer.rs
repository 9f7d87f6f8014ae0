//! Takes batches from a subscription and writes them to one sink: the only retry loop in the project.

use std::collections::VecDeque;
use std::iter::repeat_n;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::accounts::{REFUSED_BY_SINK, SinkAccount};
use crate::batch::{Batch, BatchLimits};
use crate::event::Event;
use crate::health::Health;
use crate::refusals::Refusals;
use crate::sink::{Sink, WriteError, Written};
use crate::transport::Subscription;

/// What operators write below `[writer]`: how events are batched, and how long a batch is retried.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct WriterConfig {
    /// Events in one batch, at most; a single request's events stay together even when they are more.
    #[serde(deserialize_with = "crate::config::at_least_one")]
    pub max_events: usize,
    /// Bytes of events in one batch, at most, with the same exception.
    #[serde(deserialize_with = "crate::config::at_least_one")]
    pub max_bytes: usize,
    /// How long a batch that a sink cannot take now is tried again before its producers are told.
    pub retry_for_ms: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self { max_events: 5_000, max_bytes: 4 * 1024 * 1024, retry_for_ms: 5_000 }
    }
}

/// While nothing is written, the sink is asked this often whether it is still there.
const IDLE_CHECK: Duration = Duration::from_secs(2);

/// A sink whose last batch failed, and that is prepared all the same, such as over a full disk, is not ready for so long
/// unless a batch is stored: `/readyz` would say so by turns. Doubled with each batch that fails.
const PROBATION: Duration = Duration::from_secs(5);
const MAX_PROBATION: Duration = Duration::from_secs(60);

/// A write that takes longer is a reason not to be ready: producers are about to lose patience.
const SLOW_WRITE: Duration = Duration::from_secs(5);

/// The longest that a sink is left alone because it asks for it.
const MAX_AFTER: Duration = Duration::from_secs(60);

/// How often a batch is tried when the sink cannot say what is wrong, before it is halved.
const UNKNOWN_TRIES: u32 = 3;

/// So many events from all over a batch, each alone, before an error of unknown kind is taken for an outage. Not a time:
/// over a slow link the same batch would come to the same end each time, and never get on.
const MAX_SUSPECTS: usize = 16;

/// One sink's writer.
///
/// While the sink is away a batch is tried again, with growing pauses, for `retry_for_ms`; then its producers are told,
/// and what arrives from then on fails at once instead of waiting in a queue for nothing, until the sink is back.
pub(crate) struct Writer {
    sink: Arc<dyn Sink>,
    health: Health,
    account: Arc<SinkAccount>,
    refusals: Refusals,
    config: WriterConfig,
    shutdown: CancellationToken,
}

/// The sink said that it will never be ready.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct WriterError {
    reason: String,
}

/// What became of a part of a batch.
enum Fate {
    Stored,
    Refused { reason: String, certain: bool },
    Away(Away),
}

/// A sink that cannot be written to now.
struct Away {
    reason: String,
    /// How long it asks to be left alone.
    after: Duration,
}

impl Away {
    fn new(reason: String, after: Option<Duration>) -> Self {
        Self { reason, after: after.unwrap_or_default().min(MAX_AFTER) }
    }
}

impl Writer {
    /// A writer whose pauses are cut short by `shutdown`: from then on each write is tried once.
    pub(crate) fn new(
        sink: Arc<dyn Sink>,
        health: Health,
        account: Arc<SinkAccount>,
        config: WriterConfig,
        shutdown: CancellationToken,
    ) -> Self {
        let refusals = Refusals::new(health.name());
        Self { sink, health, account, refusals, config, shutdown }
    }

    /// Writes until the subscription ends, then closes the sink. Not cancel-safe.
    pub(crate) async fn run(self, mut subscription: Box<dyn Subscription>) -> Result<(), WriterError> {
        let limits = BatchLimits { max_events: self.config.max_events, max_bytes: self.config.max_bytes };
        let mut watch = Watch::new();
        watch.prepared(self.prepare(false).await?);
        loop {
            let mut receiving = pin!(subscription.receive(limits));
            let deliveries = loop {
                tokio::select! {
                    biased;
                    () = sleep_until(watch.check_at) => {
                        let away = self.prepare(watch.on_probation()).await?;
                        watch.prepared(away);
                    }
                    deliveries = &mut receiving => break deliveries,
                }
            };
            let Some(deliveries) = deliveries else { break };
            let mut batch = Batch::collect(deliveries);
            self.account.begin(batch.events().len());
            match &watch.away {
                None => watch.written(self.write(&mut batch).await),
                Some(away) => batch.fail(0..batch.events().len(), away.reason.as_str()),
            }
            batch.settle(&self.account);
        }
        if let Err(error) = self.sink.close().await {
            tracing::error!(component = self.health.name(), %error, "not closed cleanly");
        }
        Ok(())
    }

    /// Asks the sink whether it is ready; why not, when it is not.
    async fn prepare(&self, on_probation: bool) -> Result<Option<Away>, WriterError> {
        let away = match self.sink.prepare().await {
            Ok(()) => {
                if !on_probation {
                    self.health.ready();
                }
                return Ok(None);
            }
            Err(WriteError::Retry { reason, after }) => Away::new(reason, after),
            Err(WriteError::Unknown { reason }) => Away::new(reason, None),
            Err(WriteError::Reject { reason }) => return Err(WriterError { reason }),
        };
        self.health.unavailable(&away.reason);
        Ok(Some(away))
    }

    /// Writes a batch, halving it around events that are refused. Says so when the sink is away at the end of it.
    ///
    /// An error of unknown kind speaks against an event only where another one can be stored, before it and after. Until
    /// one is, what is tried next lies elsewhere in the batch, so that many bad events in a row do not hide the good ones.
    async fn write(&self, batch: &mut Batch) -> Option<Away> {
        let retry_for = Duration::from_millis(self.config.retry_for_ms);
        let mut give_up_at = Instant::now() + retry_for;
        let whole = 0..batch.events().len();
        let mut parts = VecDeque::from([whole]);
        let mut tries = UNKNOWN_TRIES;
        let mut stored = None;
        let mut suspects = Vec::new();
        let mut elsewhere = false;
        let mut away = None;
        while let Some(part) = if elsewhere { parts.pop_front() } else { parts.pop_back() } {
            let fate = self.write_part(batch, part.clone(), tries, give_up_at).await;
            if matches!(fate, Fate::Stored | Fate::Refused { certain: true, .. }) {
                // It is there, so what comes next has its own time.
                give_up_at = Instant::now() + retry_for;
            }
            // What an unknown error is worth was found out with the whole batch.
            tries = 1;
            elsewhere = false;
            match fate {
                Fate::Stored => {
                    if stored.is_none() {
                        // Maybe nothing could be stored until now.
                        parts.extend(suspects.drain(..).map(|(index, _)| index..index + 1));
                    }
                    stored = Some(part.start);
                }
                Fate::Refused { .. } if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Fate::Refused { reason, certain: true } => batch.reject(part.start, reason),
                Fate::Refused { reason, certain: false } => {
                    suspects.push((part.start, reason.clone()));
                    elsewhere = stored.is_none();
                    if elsewhere && suspects.len() == MAX_SUSPECTS {
                        away = Some(Away::new(reason, None));
                        break;
                    }
                }
                Fate::Away(found) => {
                    parts.push_back(part);
                    away = Some(found);
                    break;
                }
            }
        }
        // Whoever has gone since does not take again what it has, either.
        let is_there = match stored {
            Some(index) if away.is_none() && !suspects.is_empty() => {
                self.write_once(&batch.events()[index..=index]).await.is_ok()
            }
            _ => false,
        };
        for (index, reason) in suspects {
            if is_there {
                batch.reject(index, reason);
            } else {
                self.health.unavailable(&reason);
                batch.fail(index..index + 1, reason);
            }
        }
        if let Some(away) = &away {
            self.health.unavailable(&away.reason);
            parts.into_iter().for_each(|part| batch.fail(part, away.reason.as_str()));
        }
        if batch.rejected() > 0 {
            self.refusals.note(repeat_n(REFUSED_BY_SINK, batch.rejected()));
        }
        away
    }

    /// Tries one part of a batch until it is stored, refused, or the time is up for a sink that is away.
    async fn write_part(&self, batch: &Batch, part: Range<usize>, tries: u32, give_up_at: Instant) -> Fate {
        let mut backoff = Backoff::default();
        let mut unknown = 0;
        loop {
            let (away, pause) = match self.write_once(&batch.events()[part.clone()]).await {
                Ok(written) => {
                    self.health.ready();
                    self.account.note_duplicates(written);
                    return Fate::Stored;
                }
                Err(WriteError::Reject { reason }) => return Fate::Refused { reason, certain: true },
                Err(WriteError::Unknown { reason }) => {
                    unknown += 1;
                    if unknown >= tries {
                        return Fate::Refused { reason, certain: false };
                    }
                    (Away::new(reason, None), backoff.next_pause())
                }
                Err(WriteError::Retry { reason, after }) => {
                    self.health.unavailable(&reason);
                    let away = Away::new(reason, after);
                    let pause = backoff.next_pause().max(away.after);
                    if Instant::now() + pause > give_up_at {
                        return Fate::Away(away);
                    }
                    (away, pause)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Fate::Away(away),
            }
            self.account.note_retry();
        }
    }

    /// Waits as long as the sink does, but does not keep it to itself that it hangs.
    async fn write_once(&self, events: &[Event]) -> Result<Written, WriteError> {
        let mut writing = self.sink.write(events);
        tokio::select! {
            written = &mut writing => return written,
            () = tokio::time::sleep(SLOW_WRITE) => {}
        }
        self.health.unavailable(format!("no answer to a write for {} s", SLOW_WRITE.as_secs()));
        writing.await
    }
}

/// Whether the sink is there, as far as is known, and when to ask again.
struct Watch {
    away: Option<Away>,
    backoff: Backoff,
    check_at: Instant,
    probation: Duration,
    proven_at: Instant,
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self { away: None, backoff: Backoff::default(), check_at: now, probation: Duration::ZERO, proven_at: now }
    }

    fn on_probation(&self) -> bool {
        Instant::now() < self.proven_at
    }

    fn prepared(&mut self, away: Option<Away>) {
        if away.is_some() {
            // Being prepared is news again.
            (self.probation, self.proven_at) = (Duration::ZERO, Instant::now());
        }
        self.update(away);
    }

    fn written(&mut self, away: Option<Away>) {
        self.probation = match &away {
            Some(_) => (2 * self.probation).clamp(PROBATION, MAX_PROBATION),
            None => Duration::ZERO,
        };
        self.proven_at = Instant::now() + self.probation;
        self.update(away);
    }

    fn update(&mut self, away: Option<Away>) {
        let pause = if let Some(away) = &away {
            self.backoff.next_pause().max(away.after)
        } else {
            self.backoff = Backoff::default();
            IDLE_CHECK
        };
        self.check_at = Instant::now() + pause;
        self.away = away;
    }
}

/// Pauses that double from 50 ms to 1 s, less up to half of each by chance, so that several writers do not march in step.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: Duration::from_millis(50) }
    }
}

impl Backoff {
    fn next_pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(Duration::from_secs(1));
        pause
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
