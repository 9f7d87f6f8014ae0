//! A closed loop of clients: each client sends, waits for the acknowledgement, and sends again.
//!
//! [`LoadPlan::start`] starts the load on its own threads and returns at once with a [`RunningLoad`]. Its
//! [`finish`](RunningLoad::finish) waits for the last acknowledgements and returns the [`LoadResult`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::client::{LoadClient, LoadTarget};
use crate::events::{EventGenerator, SessionPattern, now_us};
use crate::json::JsonBuffer;
use crate::rows::BenchRow;
use crate::sent::{ConnectionLog, SentEvents};
use crate::settings::{MeasurementWindow, RunSettings};

/// Time for the last acknowledgements after the end of the window.
const GRACE: Duration = Duration::from_secs(30);
/// Pause of a client after an error, which keeps it from spinning.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The size, rate and duration of a load, and its target.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    pub(crate) target: LoadTarget,
    pub(crate) connections: usize,
    /// Events in one request or message.
    pub(crate) events: usize,
    pub(crate) sessions: SessionPattern,
    /// Highest rate of all connections together, in events/s. `None` sends as fast as acknowledgements arrive.
    pub(crate) rate: Option<u32>,
    pub(crate) threads: usize,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

/// The outcome of a load.
pub(crate) struct LoadResult {
    /// All sent events, including those of the warm-up.
    pub(crate) sent: SentEvents,
    /// Number of events acknowledged within the window.
    pub(crate) events: u64,
    /// Microseconds from request to answer, of answers within the window. With a rate they count from the moment at
    /// which the request was due.
    pub(crate) latency: Histogram<u64>,
    /// Number of answers other than success by their error, including those of the warm-up.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) window: MeasurementWindow,
}

impl LoadResult {
    pub(crate) fn events_per_s(&self) -> f64 {
        self.events as f64 / self.window.seconds()
    }

    /// Returns a quantile of the latency in milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// A thread that returns the log of each of its connections.
type LoadThread = JoinHandle<Result<Vec<(u16, ConnectionLog)>>>;

/// A load in progress.
pub(crate) struct RunningLoad {
    pub(crate) window: MeasurementWindow,
    run: u32,
    /// Start of the load in microseconds since 1970.
    pub(crate) since_us: i64,
    threads: Vec<LoadThread>,
    totals: Arc<Mutex<LoadTotals>>,
}

/// Totals of all connections.
struct LoadTotals {
    events: u64,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl LoadPlan {
    /// Returns the load of a row.
    pub(crate) fn of_row(row: &BenchRow, target: LoadTarget, settings: &RunSettings) -> Self {
        let &BenchRow { connections, events, .. } = row;
        let &RunSettings { sessions, warmup, duration, .. } = settings;
        Self { target, connections, events, sessions, rate: None, threads: 1, warmup, duration }
    }

    /// Starts the load and returns at once.
    pub(crate) fn start(&self) -> Result<RunningLoad> {
        let (run, since_us) = (fastrand::u32(..), now_us());
        let window = MeasurementWindow::after(self.warmup, self.duration);
        // The upper bound is one second more than the longest wait. Values keep three digits.
        let latency = Histogram::new_with_max((self.duration + GRACE).as_micros() as u64 + 1_000_000, 3)?;
        let totals = Arc::new(Mutex::new(LoadTotals { events: 0, latency, errors: BTreeMap::new() }));
        let start_thread = |number: usize| {
            let (plan, totals) = (self.clone(), totals.clone());
            thread::spawn(move || plan.run_thread(number, run, window, &totals))
        };
        Ok(RunningLoad { window, run, since_us, threads: (0..self.threads).map(start_thread).collect(), totals })
    }

    /// Runs every `threads`th connection, beginning with connection `number`.
    fn run_thread(
        &self,
        number: usize,
        run: u32,
        window: MeasurementWindow,
        totals: &Arc<Mutex<LoadTotals>>,
    ) -> Result<Vec<(u16, ConnectionLog)>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let first = LoadClient::connect(&self.target).await?;
            let connections = (number..self.connections).step_by(self.threads).map(|connection| connection as u16);
            let start_client = |connection: u16| {
                let (plan, totals, client) = (self.clone(), totals.clone(), first.another());
                tokio::spawn(
                    async move { (connection, plan.run_client(connection, client, run, window, &totals).await) },
                )
            };
            let clients: Vec<_> = connections.map(start_client).collect();
            let mut logs = Vec::new();
            for client in clients {
                logs.push(client.await.context("a client panicked")?);
            }
            first.flush().await?;
            Ok(logs)
        })
    }

    /// Runs one client from its first request to its last answer.
    async fn run_client(
        &self,
        connection: u16,
        mut client: LoadClient,
        run: u32,
        window: MeasurementWindow,
        totals: &Mutex<LoadTotals>,
    ) -> ConnectionLog {
        let mut generator = EventGenerator::new(run, connection, self.connections, self.sessions);
        let mut body = JsonBuffer::new(self.events);
        let mut failed = Vec::new();
        let mut in_flight = None;
        let mut due = self.first_due(connection);
        let requests = async {
            while Instant::now() < window.end {
                let mut due_at = None;
                if let Some((next, interval)) = &mut due {
                    sleep_until((*next).into()).await;
                    due_at = Some(*next);
                    *next += *interval;
                }
                let numbers = body.fill(&mut generator);
                in_flight = Some(numbers.clone());
                // A request that is late because the one before took long counts that delay as latency.
                let sent_at = due_at.unwrap_or_else(Instant::now);
                let answer = client.send(body.bytes()).await;
                let answered_at = Instant::now();
                in_flight = None;
                if let Err(error) = answer {
                    failed.push(numbers);
                    *lock(totals).errors.entry(error).or_default() += 1;
                    sleep(ERROR_PAUSE).await;
                } else if window.contains(answered_at) {
                    let mut totals = lock(totals);
                    totals.events += self.events as u64;
                    totals.latency.saturating_record((answered_at - sent_at).as_micros() as u64);
                }
            }
        };
        if timeout_at((window.end + GRACE).into(), requests).await.is_err() {
            *lock(totals).errors.entry("no answer".to_owned()).or_default() += 1;
        }
        failed.extend(in_flight);
        ConnectionLog { sent: generator.next_number(), failed }
    }

    /// Returns the moment of the first request and the interval between requests; `None` without a rate.
    fn first_due(&self, connection: u16) -> Option<(Instant, Duration)> {
        let requests_per_s = f64::from(self.rate?) / self.events as f64;
        let gap = Duration::from_secs_f64(1.0 / requests_per_s);
        Some((Instant::now() + gap * u32::from(connection), gap * self.connections as u32))
    }
}

impl RunningLoad {
    /// Waits for the last acknowledgements and returns the result.
    pub(crate) async fn finish(self) -> Result<LoadResult> {
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().map(JoinHandle::join).collect::<Vec<_>>());
        let mut logs = BTreeMap::new();
        for thread in joined.await? {
            logs.extend(thread.map_err(|_| anyhow!("a thread of the load panicked"))??);
        }
        let sent = SentEvents { run: self.run, since_us: self.since_us, connections: logs.into_values().collect() };
        let totals = Arc::into_inner(self.totals).expect("the threads have ended");
        let LoadTotals { events, latency, errors } = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(LoadResult { sent, events, latency, errors, window: self.window })
    }
}

fn lock(totals: &Mutex<LoadTotals>) -> MutexGuard<'_, LoadTotals> {
    totals.lock().unwrap_or_else(PoisonError::into_inner)
}
