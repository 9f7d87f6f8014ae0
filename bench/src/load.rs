//! A closed loop of clients: each sends, waits for the answer, and sends again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::client::Client;
use crate::events::{Body, Ledger, Maker, Sessions, now_us};

/// How long the last answers may take after the end.
const GRACE: Duration = Duration::from_secs(30);
/// How long a client waits after an error, so that it cannot spin.
const PAUSE: Duration = Duration::from_millis(10);

/// What is sent, and where.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) connections: usize,
    /// Events in one request or message.
    pub(crate) events: usize,
    pub(crate) sessions: Sessions,
    /// Events a second at most, all together; without it as fast as the answers come.
    pub(crate) rate: Option<u32>,
    pub(crate) threads: usize,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

/// Who takes the events.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Http { url: String },
    Nats { url: String, subject: String, mode: NatsMode },
}

/// How messages are sent to NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NatsMode {
    /// Published; nobody answers, so all count as acknowledged.
    Publish,
    /// Published with a reply subject, and the answer awaited.
    Request,
    /// Published to a stream, and its `PubAck` awaited.
    Jetstream,
}

/// What is measured lies between these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

impl Window {
    /// From now on, less the time to get warm.
    pub(crate) fn after(warmup: Duration, duration: Duration) -> Self {
        let start = Instant::now() + warmup;
        Self { start, end: start + duration }
    }

    pub(crate) fn has(self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }

    pub(crate) fn seconds(self) -> f64 {
        (self.end - self.start).as_secs_f64()
    }
}

/// What a load has shown.
pub(crate) struct Outcome {
    /// What was sent, warm-up included.
    pub(crate) ledger: Ledger,
    /// Events acknowledged within the window.
    pub(crate) events: u64,
    /// Microseconds from request to answer within the window; with a rate, from when the request was due.
    pub(crate) latency: Histogram<u64>,
    /// How often something else than success came, warm-up included.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) window: Window,
}

impl Outcome {
    pub(crate) fn events_per_s(&self) -> f64 {
        self.events as f64 / self.window.seconds()
    }

    /// Of the latencies, in milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// A load under way, on threads of its own.
pub(crate) struct Running {
    pub(crate) window: Window,
    run: u32,
    /// When it began, in microseconds since 1970.
    pub(crate) since_us: i64,
    threads: Vec<JoinHandle<Result<Vec<Sent>>>>,
    tally: Arc<Mutex<Tally>>,
}

struct Tally {
    events: u64,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

/// What one connection has sent.
struct Sent {
    connection: u16,
    events: u64,
    failed: Vec<Range<u64>>,
}

impl Load {
    /// Starts sending.
    pub(crate) fn start(&self) -> Result<Running> {
        let (run, since_us) = (fastrand::u32(..), now_us());
        let window = Window::after(self.warmup, self.duration);
        // One second longer than the longest wait, three digits.
        let latency = Histogram::new_with_max((self.duration + GRACE).as_micros() as u64 + 1_000_000, 3)?;
        let tally = Arc::new(Mutex::new(Tally { events: 0, latency, errors: BTreeMap::new() }));
        let thread = |number: usize| {
            let (load, tally) = (self.clone(), tally.clone());
            thread::spawn(move || load.run_thread(number, run, window, &tally))
        };
        Ok(Running { window, run, since_us, threads: (0..self.threads).map(thread).collect(), tally })
    }

    fn run_thread(&self, number: usize, run: u32, window: Window, tally: &Arc<Mutex<Tally>>) -> Result<Vec<Sent>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let shared = Client::connect(&self.target).await?;
            let connections = (number..self.connections).step_by(self.threads);
            let loops: Vec<_> = connections
                .map(|connection| {
                    let (load, tally) = (self.clone(), tally.clone());
                    let client = shared.another();
                    let maker = Maker::new(run, connection as u16, self.connections, self.sessions);
                    tokio::spawn(async move { load.drive(connection as u16, client, maker, window, &tally).await })
                })
                .collect();
            let mut all = Vec::new();
            for one in loops {
                all.push(one.await.context("a client panicked")?);
            }
            shared.flush().await?;
            Ok(all)
        })
    }

    /// One client, from the first request to the last answer.
    async fn drive(
        &self,
        connection: u16,
        mut client: Client,
        mut maker: Maker,
        window: Window,
        tally: &Mutex<Tally>,
    ) -> Sent {
        let mut body = Body::new(self.events);
        let mut failed: Vec<Range<u64>> = Vec::new();
        let mut waiting = None;
        let mut due = self.first_due(connection);
        let to_the_end = async {
            while Instant::now() < window.end {
                let mut asked = None;
                if let Some((due, interval)) = &mut due {
                    sleep_until((*due).into()).await;
                    asked = Some(*due);
                    *due += *interval;
                }
                let numbers = body.fill(&mut maker);
                waiting = Some(numbers.clone());
                // One that is late has waited, too: for the answer to the one before.
                let asked = asked.unwrap_or_else(Instant::now);
                let answer = client.send(body.bytes()).await;
                let answered = Instant::now();
                waiting = None;
                if let Err(error) = &answer {
                    failed.push(numbers);
                    *lock(tally).errors.entry(error.clone()).or_default() += 1;
                    sleep(PAUSE).await;
                } else if window.has(answered) {
                    let mut tally = lock(tally);
                    tally.events += self.events as u64;
                    tally.latency.saturating_record((answered - asked).as_micros() as u64);
                }
            }
        };
        if timeout_at((window.end + GRACE).into(), to_the_end).await.is_err() {
            *lock(tally).errors.entry("no answer".to_owned()).or_default() += 1;
        }
        failed.extend(waiting);
        Sent { connection, events: maker.next_number(), failed }
    }

    /// With a rate: when the first request is due, and how long it is from one to the next.
    fn first_due(&self, connection: u16) -> Option<(Instant, Duration)> {
        let requests_per_s = f64::from(self.rate?) / self.events as f64;
        let gap = Duration::from_secs_f64(1.0 / requests_per_s);
        Some((Instant::now() + gap * u32::from(connection), gap * self.connections as u32))
    }
}

impl Running {
    /// Waits for the last answers.
    pub(crate) async fn finish(self) -> Result<Outcome> {
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().map(JoinHandle::join).collect::<Vec<_>>());
        let mut sent = Vec::new();
        for thread in joined.await? {
            sent.extend(thread.map_err(|_| anyhow!("a thread of the load panicked"))??);
        }
        sent.sort_by_key(|sent: &Sent| sent.connection);
        let connections = sent.into_iter().map(|sent| (sent.events, sent.failed)).collect();
        let ledger = Ledger { run: self.run, since_us: self.since_us, connections };
        let tally = Arc::into_inner(self.tally).expect("the threads have ended");
        let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Tally { events, latency, errors } = tally;
        Ok(Outcome { ledger, events, latency, errors, window: self.window })
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
