//! One run of a row: starts The Eye, loads it, and measures it.
//!
//! [`run_row`] is the entry. At the end it compares the database with the acknowledged events.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream::{self, context::ConsumerInfoErrorKind};
use eye_harness::{Eye, NatsServer};
use serde_json::Value;
use tokio::time::{sleep, sleep_until};

use crate::client::{LoadTarget, NatsAckMode};
use crate::database::DatabaseConnection;
use crate::figures::{EventCounts, RunFigures};
use crate::load::{LoadPlan, LoadResult};
use crate::process;
use crate::rows::{BenchRow, IngestPath};
use crate::servers::BenchDatabase;
use crate::settings::{MeasurementWindow, RunSettings};

/// Measures one run of `row` into this database, which may hold events already. Leaves the ratios to the caller.
///
/// # Errors
/// Fails if The Eye, a server or the load fails. Lost events are no error; they are counted.
pub(crate) async fn run_row(
    row: &BenchRow,
    database: &BenchDatabase<'_>,
    settings: &RunSettings,
) -> Result<RunFigures> {
    let nats = match row.path {
        IngestPath::Http | IngestPath::Disk => None,
        IngestPath::NatsCore | IngestPath::NatsRequest | IngestPath::Jetstream => Some(NatsServer::start()),
    };
    let config = config(row, database, nats.as_ref());
    let connection = DatabaseConnection::open(&database.url).await?;
    let mut run = RowRun { row, settings, database, config, connection };
    let (eye, result, mut figures) = match &nats {
        Some(nats) if row.path == IngestPath::Jetstream => run.measure_backlog(nats).await?,
        _ => run.measure_live(nats.as_ref()).await?,
    };
    run.finish(eye, result, &mut figures).await?;
    Ok(figures)
}

fn config(row: &BenchRow, database: &BenchDatabase<'_>, nats: Option<&NatsServer>) -> String {
    let source = match nats {
        None => "[sources.web]\ntype = \"http\"\n".to_owned(),
        Some(nats) => {
            let mode = match row.path {
                IngestPath::Jetstream => "mode = \"jetstream\"\nstream = \"EVENTS\"\nsubjects = []\n",
                _ => "mode = \"core\"\nsubjects = [\"events.>\"]\n",
            };
            format!("[sources.bus]\ntype = \"nats\"\nurl = \"{}\"\n{mode}", nats.url())
        }
    };
    let transport = match row.path {
        IngestPath::Disk => "[transport]\ntype = \"disk\"\npath = \"queue\"\n",
        _ => "",
    };
    format!("[server]\nlisten = \"127.0.0.1:0\"\n{source}{transport}{}", database.sink_config())
}

/// A run in progress.
struct RowRun<'a> {
    row: &'a BenchRow,
    settings: &'a RunSettings,
    database: &'a BenchDatabase<'a>,
    config: String,
    connection: DatabaseConnection,
}

/// CPU times so far, in seconds.
#[derive(Clone, Copy)]
struct CpuTimes {
    eye: f64,
    database: Option<f64>,
    load: f64,
}

impl RowRun<'_> {
    /// Measures while the load sends.
    async fn measure_live(&mut self, nats: Option<&NatsServer>) -> Result<(Eye, LoadResult, RunFigures)> {
        let eye = Eye::start(&self.settings.program, &self.config);
        eye.wait_ready().await;
        let target = match (self.row.path, nats) {
            (IngestPath::NatsCore, Some(nats)) => subject(nats, NatsAckMode::Publish),
            (IngestPath::NatsRequest, Some(nats)) => subject(nats, NatsAckMode::Request),
            _ => LoadTarget::Http { url: eye.url("/api/event/") },
        };
        let load = LoadPlan::of_row(self.row, target, self.settings).start()?;
        let (window, since_us) = (load.window, load.since_us);
        sleep_until(window.start.into()).await;
        let cpu_before = self.cpu_times(Some(&eye))?;
        let stored_before = self.stored(since_us).await?;
        let resident_mib = watch_memory(&eye, window).await?;
        let cpu_after = self.cpu_times(Some(&eye))?;
        let stored_after = self.stored(since_us).await?;
        let result = load.finish().await?;

        let mut figures = RunFigures { events_per_s: result.events_per_s(), resident_mib, ..RunFigures::default() };
        if let (Some(before), Some(after)) = (stored_before, stored_after) {
            let stored_per_s = after.rate_since(before);
            if self.row.path == IngestPath::Disk {
                figures.drained_per_s = stored_per_s;
                wait_until_drained(&eye).await?;
                figures.drained_after_per_s = self.stored(since_us).await?.and_then(|last| last.rate_since(after));
            } else {
                figures.events_per_s = stored_per_s.unwrap_or_default();
                wait_until_quiet(&eye).await?;
            }
        }
        if self.row.path != IngestPath::NatsCore {
            figures.p50_ms = Some(result.quantile_ms(0.5));
            figures.p99_ms = Some(result.quantile_ms(0.99));
            figures.max_ms = Some(result.quantile_ms(1.0));
        }
        let events = figures.events_per_s * window.seconds();
        set_cpu(&mut figures, cpu_before, cpu_after, events);
        Ok((eye, result, figures))
    }

    /// Fills a stream, then starts The Eye and measures until the stream is consumed.
    async fn measure_backlog(&self, nats: &NatsServer) -> Result<(Eye, LoadResult, RunFigures)> {
        let client = async_nats::connect(nats.url()).await?;
        let stream = jetstream::stream::Config {
            name: "EVENTS".to_owned(),
            subjects: vec!["events.>".to_owned()],
            ..jetstream::stream::Config::default()
        };
        let stream = jetstream::new(client).create_stream(stream).await?;
        // Publishing is faster than storing. So consuming takes at least the other half of the duration.
        let duration = self.settings.duration / 2;
        let settings = RunSettings { warmup: Duration::ZERO, duration, ..self.settings.clone() };
        let load = LoadPlan::of_row(self.row, subject(nats, NatsAckMode::Jetstream), &settings);
        let result = load.start()?.finish().await?;

        let cpu_before = self.cpu_times(None)?;
        let started = Instant::now();
        let eye = Eye::start(&self.settings.program, &self.config);
        let resident_mib = wait_until_consumed(&eye, &stream).await?;
        let elapsed = started.elapsed();
        let cpu_after = self.cpu_times(Some(&eye))?;
        let acked = result.sent.acked() as f64;
        let events_per_s = acked / elapsed.as_secs_f64();
        let mut figures = RunFigures { events_per_s, resident_mib, ..RunFigures::default() };
        set_cpu(&mut figures, cpu_before, cpu_after, acked);
        figures.load_us = 0.0;
        Ok((eye, result, figures))
    }

    /// Returns the CPU times of all processes. Without `eye`, The Eye has not started and counts as 0.
    fn cpu_times(&self, eye: Option<&Eye>) -> Result<CpuTimes> {
        Ok(CpuTimes {
            eye: eye.map_or(Ok(0.0), |eye| process::cpu_s(&eye.pid()))?,
            database: self.database.pid().map(|pid| process::cpu_s(&pid)).transpose()?,
            load: process::own_cpu_s("self")?,
        })
    }

    /// Returns the number of stored events on a path that does not acknowledge after storing; else `None`.
    async fn stored(&mut self, since_us: i64) -> Result<Option<StoredCount>> {
        if !matches!(self.row.path, IngestPath::NatsCore | IngestPath::Disk) {
            return Ok(None);
        }
        // The count sees the events that were stored when its statement began.
        let at = Instant::now();
        Ok(Some(StoredCount { at, events: self.connection.count(since_us).await? }))
    }

    /// Stops The Eye, checks the stored events, and measures a restart.
    async fn finish(mut self, mut eye: Eye, result: LoadResult, figures: &mut RunFigures) -> Result<()> {
        figures.peak_mib = process::peak_mib(&eye.pid())?;
        let deadline = Duration::from_secs(60);
        ensure!(eye.terminate(deadline) == Some(0), "The Eye did not stop within 60 s; its log:\n{}", eye.logs());
        let stored = self.connection.check(&result.sent).await?;
        figures.counts = EventCounts {
            acked: result.sent.acked(),
            stored: stored.stored,
            lost: stored.lost,
            too_many: stored.duplicated + stored.foreign,
            errors: result.errors,
        };
        // The restart must find the database as The Eye left it, so the connection closes first.
        self.connection.close().await?;
        figures.ready_ms = process::ready_ms(&self.settings.program, eye.folder(), &self.config).await?;
        Ok(())
    }
}

fn set_cpu(figures: &mut RunFigures, before: CpuTimes, after: CpuTimes, events: f64) {
    let us_per_event = |before: f64, after: f64| (after - before) * 1e6 / events.max(1.0);
    figures.eye_us = us_per_event(before.eye, after.eye);
    figures.database_us = before.database.zip(after.database).map(|(before, after)| us_per_event(before, after));
    figures.load_us = us_per_event(before.load, after.load);
}

fn subject(nats: &NatsServer, mode: NatsAckMode) -> LoadTarget {
    LoadTarget::Nats { url: nats.url(), subject: "events.web".to_owned(), mode }
}

/// Returns The Eye's memory at 10 moments of the window, the last of them its end.
async fn watch_memory(eye: &Eye, window: MeasurementWindow) -> Result<Vec<f64>> {
    let mut resident_mib = Vec::new();
    for moment in 1..=10 {
        sleep_until((window.start + (window.end - window.start) * moment / 10).into()).await;
        resident_mib.push(process::resident_mib(&eye.pid())?);
    }
    Ok(resident_mib)
}

/// The number of stored events of a run at one moment.
#[derive(Clone, Copy)]
struct StoredCount {
    at: Instant,
    events: u64,
}

impl StoredCount {
    /// Returns the rate in events/s; `None` for less than a second, which is too short to tell.
    fn rate_since(self, before: Self) -> Option<f64> {
        let seconds = (self.at - before.at).as_secs_f64();
        (seconds >= 1.0).then(|| (self.events - before.events) as f64 / seconds)
    }
}

/// Polls `remaining` every 20 ms until it is 0.
///
/// # Errors
/// Fails if the number has not changed for a minute.
async fn wait_for_none(subject: &str, mut remaining: impl AsyncFnMut() -> Result<u64>) -> Result<()> {
    let mut last = (Instant::now(), u64::MAX);
    loop {
        let now = remaining().await?;
        match now {
            0 => return Ok(()),
            _ if now != last.1 => last = (Instant::now(), now),
            _ if last.0.elapsed() > Duration::from_secs(60) => bail!("{now} {subject}, unchanged for a minute"),
            _ => {}
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the disk queue is empty.
async fn wait_until_drained(eye: &Eye) -> Result<()> {
    wait_for_none("events are in the queue", async || audit_figure(eye, "/sinks/store/pending").await).await
}

/// Waits until all messages of the stream are acknowledged. Returns The Eye's memory at 10 moments of that time.
async fn wait_until_consumed(eye: &Eye, stream: &jetstream::stream::Stream) -> Result<Vec<f64>> {
    let mut resident_mib = Vec::new();
    let remaining = async || {
        resident_mib.push(process::resident_mib(&eye.pid())?);
        // `eye` is the default name of the consumer. The source creates it once it is connected.
        match stream.consumer_info("eye").await {
            Ok(consumer) => Ok(consumer.num_pending + consumer.num_ack_pending as u64),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(u64::MAX),
            Err(error) => Err(error.into()),
        }
    };
    wait_for_none("messages are in the stream", remaining).await?;
    Ok((1..=10).map(|moment| resident_mib[(resident_mib.len() * moment).div_ceil(10) - 1]).collect())
}

/// Waits until no message has arrived for 2 seconds. Messages that the NATS server still held are then not lost.
async fn wait_until_quiet(eye: &Eye) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = (Instant::now(), 0);
    while last.0.elapsed() < Duration::from_secs(2) {
        ensure!(Instant::now() < deadline, "messages still arrive a minute after the last one was sent");
        let received = audit_figure(eye, "/sources/bus/received").await?;
        if received != last.1 {
            last = (Instant::now(), received);
        }
        sleep(Duration::from_millis(100)).await;
    }
    wait_for_none("events wait", async || audit_figure(eye, "/sources/bus/waiting").await).await
}

/// Returns one number of the accounting at `GET /audit`.
async fn audit_figure(eye: &Eye, pointer: &str) -> Result<u64> {
    let (_, audit) = eye.get("/audit").await;
    audit.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("/audit has no number {pointer}: {audit}"))
}
