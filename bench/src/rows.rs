//! The rows of the table: what each of them runs, and how one run is measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream::{self, context::ConsumerInfoErrorKind};
use eye_harness::{Eye, NatsServer};
use serde_json::Value;
use tokio::time::{sleep, sleep_until};

use crate::database::{Db, Kind, Servers, Store};
use crate::direct::{self, Way};
use crate::events::Sessions;
use crate::figures::{Counts, Figures};
use crate::load::{Load, NatsMode, Outcome, Target, Window};
use crate::process::{self, Killed};

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) via: Via,
    /// Clients that wait for their answers, or messages that wait for theirs.
    pub(crate) connections: usize,
    /// Events in a request or message.
    pub(crate) events: usize,
    pub(crate) targets: &'static [Ratio],
}

/// How events get to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// HTTP, and the transport in memory.
    Http,
    /// HTTP, and the transport on the disk.
    Disk,
    /// NATS, each message answered.
    NatsRequest,
    /// NATS, as many messages as can be published.
    NatsCore,
    /// A stream that is full of messages when The Eye starts.
    Jetstream,
}

/// What a row is to reach, as a share of a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ratio {
    OfH(f64),
    OfD(f64),
    /// What the sink stores while events arrive, where that is not what is acknowledged.
    DrainOfD(f64),
}

const fn row(
    name: &'static str,
    kind: Kind,
    via: Via,
    [connections, events]: [usize; 2],
    targets: &'static [Ratio],
) -> Row {
    Row { name, kind, via, connections, events, targets }
}

use Kind::{Mariadb, Postgres, Sqlite};
use Ratio::{DrainOfD, OfD, OfH};

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    row("postgres-64x1", Postgres, Via::Http, [64, 1], &[OfH(0.35)]),
    row("postgres-256x1", Postgres, Via::Http, [256, 1], &[OfH(0.45)]),
    row("postgres-16x100", Postgres, Via::Http, [16, 100], &[OfD(0.85)]),
    row("sqlite-64x1", Sqlite, Via::Http, [64, 1], &[]),
    row("sqlite-256x1", Sqlite, Via::Http, [256, 1], &[OfH(0.45)]),
    row("sqlite-16x100", Sqlite, Via::Http, [16, 100], &[OfD(0.85)]),
    row("mariadb-64x1", Mariadb, Via::Http, [64, 1], &[]),
    row("mariadb-256x1", Mariadb, Via::Http, [256, 1], &[]),
    row("mariadb-16x100", Mariadb, Via::Http, [16, 100], &[OfD(0.8)]),
    row("disk-256x1", Postgres, Via::Disk, [256, 1], &[OfH(0.5), DrainOfD(0.8)]),
    row("disk-16x100", Postgres, Via::Disk, [16, 100], &[]),
    row("nats-core", Postgres, Via::NatsCore, [1, 1], &[]),
    row("nats-request", Postgres, Via::NatsRequest, [256, 1], &[]),
    row("nats-jetstream", Postgres, Via::Jetstream, [256, 1], &[OfD(0.4)]),
];

/// What holds for every run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) program: PathBuf,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) sessions: Sessions,
}

/// The limit H: events a second that a bare server takes.
pub(crate) async fn bare(connections: usize, events: usize, settings: &Settings) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bare", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut server = Killed(command.spawn()?);
    let mut address = String::new();
    let stdout = server.0.stdout.take().context("stdout is piped")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut address)?;
    let address: SocketAddr = address.trim().parse().context("the bare server does not say where it listens")?;
    let load = load(Target::Http { url: format!("http://{address}/api/event/") }, connections, events, settings);
    let outcome = load.start()?.finish().await?;
    ensure!(outcome.errors.is_empty(), "the bare server: {:?}", outcome.errors);
    Ok(outcome.events_per_s())
}

/// The limit D: rows a second that the driver alone writes into an empty table.
pub(crate) async fn straight(store: &Store<'_>, way: Way, settings: &Settings) -> Result<f64> {
    // sqlx sends `COPY` in pieces that wait for each other over TCP.
    let url = match way {
        Way::Insert => store.url.clone(),
        Way::Copy => store.socket_url().context("COPY is PostgreSQL's")?,
    };
    direct::measure(&url, way, settings.sessions, settings.warmup, settings.duration).await
}

fn load(target: Target, connections: usize, events: usize, settings: &Settings) -> Load {
    let Settings { sessions, warmup, duration, .. } = *settings;
    Load { target, connections, events, sessions, rate: None, threads: 1, warmup, duration }
}

impl Row {
    /// One run into a table that is empty, or as it is. The ratios are left to the caller.
    pub(crate) async fn run(&self, servers: &Servers, settings: &Settings) -> Result<Figures> {
        let store = servers.create(self.kind, &settings.program)?;
        self.run_into(&store, settings).await
    }

    /// As [`run`](Self::run), into a table that holds events already.
    pub(crate) async fn run_into(&self, store: &Store<'_>, settings: &Settings) -> Result<Figures> {
        let nats = match self.via {
            Via::Http | Via::Disk => None,
            Via::NatsCore | Via::NatsRequest | Via::Jetstream => Some(NatsServer::start()),
        };
        let config = self.config(store, nats.as_ref());
        let mut db = Db::open(&store.url).await?;
        let run = Run { row: self, settings, store, config: &config };
        let (eye, outcome, mut figures) = match &nats {
            Some(nats) if self.via == Via::Jetstream => run.backlog(nats).await?,
            _ => run.live(nats.as_ref(), &mut db).await?,
        };
        run.settle(eye, outcome, db, &mut figures).await?;
        Ok(figures)
    }

    fn config(&self, store: &Store<'_>, nats: Option<&NatsServer>) -> String {
        let source = match (self.via, nats) {
            (Via::Jetstream, Some(nats)) => {
                format!(
                    "[sources.bus]\ntype = \"nats\"\nurl = \"{}\"\nmode = \"jetstream\"\nstream = \"EVENTS\"\nsubjects = []\n",
                    nats.url()
                )
            }
            (_, Some(nats)) => {
                format!(
                    "[sources.bus]\ntype = \"nats\"\nurl = \"{}\"\nmode = \"core\"\nsubjects = [\"events.>\"]\n",
                    nats.url()
                )
            }
            (_, None) => "[sources.web]\ntype = \"http\"\n".to_owned(),
        };
        let transport = if self.via == Via::Disk { "[transport]\ntype = \"disk\"\npath = \"queue\"\n" } else { "" };
        format!("[server]\nlisten = \"127.0.0.1:0\"\n{source}{transport}{}", store.sink())
    }
}

/// One run of a row.
struct Run<'a> {
    row: &'a Row,
    settings: &'a Settings,
    store: &'a Store<'a>,
    config: &'a str,
}

/// Seconds of CPU time so far.
#[derive(Clone, Copy, Default)]
struct Cpu {
    eye: f64,
    database: Option<f64>,
    load: f64,
}

impl Run<'_> {
    /// Events arrive while it is measured.
    async fn live(&self, nats: Option<&NatsServer>, db: &mut Db) -> Result<(Eye, Outcome, Figures)> {
        let eye = Eye::start(&self.settings.program, self.config);
        eye.wait_ready().await;
        let target = match (self.row.via, nats) {
            (Via::NatsCore, Some(nats)) => subject(nats, NatsMode::Publish),
            (Via::NatsRequest, Some(nats)) => subject(nats, NatsMode::Request),
            _ => Target::Http { url: eye.url("/api/event/") },
        };
        let running = load(target, self.row.connections, self.row.events, self.settings).start()?;
        let window = running.window;
        sleep_until(window.start.into()).await;
        let cpu = self.cpu(Some(&eye))?;
        let is_counted = matches!(self.row.via, Via::NatsCore | Via::Disk);
        let mut counted = Vec::new();
        if is_counted {
            counted.push(Counted::now(db, running.since_us).await?);
        }
        let resident_mib = watch_memory(&eye, window).await?;
        let cpu_after = self.cpu(Some(&eye))?;
        if is_counted {
            counted.push(Counted::now(db, running.since_us).await?);
        }
        let outcome = running.finish().await?;

        let mut figures = Figures { events_per_s: outcome.events_per_s(), resident_mib, ..Figures::default() };
        if let [before, after] = counted[..] {
            let stored_per_s = after.per_s_since(before);
            match self.row.via {
                Via::Disk => {
                    figures.drained_per_s = stored_per_s;
                    wait_until_drained(&eye).await?;
                    figures.drained_after_per_s = Counted::now(db, outcome.ledger.since_us).await?.per_s_since(after);
                }
                _ => {
                    figures.events_per_s = stored_per_s.unwrap_or_default();
                    wait_until_quiet(&eye).await?;
                }
            }
        }
        if self.row.via != Via::NatsCore {
            figures.p50_ms = Some(outcome.quantile_ms(0.5));
            figures.p99_ms = Some(outcome.quantile_ms(0.99));
            figures.max_ms = Some(outcome.quantile_ms(1.0));
        }
        let events = figures.events_per_s * window.seconds();
        self.set_cpu(&mut figures, cpu, cpu_after, events);
        Ok((eye, outcome, figures))
    }

    /// Events wait in a stream before The Eye starts.
    async fn backlog(&self, nats: &NatsServer) -> Result<(Eye, Outcome, Figures)> {
        let client = async_nats::connect(nats.url()).await?;
        let stream = jetstream::stream::Config {
            name: "EVENTS".to_owned(),
            subjects: vec!["events.>".to_owned()],
            ..jetstream::stream::Config::default()
        };
        let stream = jetstream::new(client).create_stream(stream).await?;
        // Publishing is faster than storing, so that what comes now takes as long as the rest of the time, or longer.
        let settings =
            Settings { warmup: Duration::ZERO, duration: self.settings.duration / 2, ..self.settings.clone() };
        let publish = load(subject(nats, NatsMode::Jetstream), self.row.connections, self.row.events, &settings);
        let outcome = publish.start()?.finish().await?;

        let before = Cpu { eye: 0.0, ..self.cpu(None)? };
        let started = Instant::now();
        let eye = Eye::start(&self.settings.program, self.config);
        let resident_mib = wait_until_taken(&eye, &stream).await?;
        let elapsed = started.elapsed();
        let after = self.cpu(Some(&eye))?;
        let acked = outcome.ledger.acked();
        let events_per_s = acked as f64 / elapsed.as_secs_f64();
        let mut figures = Figures { events_per_s, resident_mib, ..Figures::default() };
        self.set_cpu(&mut figures, before, after, acked as f64);
        figures.load_us = 0.0;
        Ok((eye, outcome, figures))
    }

    fn cpu(&self, eye: Option<&Eye>) -> Result<Cpu> {
        Ok(Cpu {
            eye: eye.map_or(Ok(0.0), |eye| process::cpu_s(&eye.pid()))?,
            database: self.store.pid().map(|pid| process::cpu_s(&pid)).transpose()?,
            load: process::own_cpu_s("self")?,
        })
    }

    fn set_cpu(&self, figures: &mut Figures, before: Cpu, after: Cpu, events: f64) {
        let us = |before: f64, after: f64| (after - before) * 1e6 / events.max(1.0);
        figures.eye_us = us(before.eye, after.eye);
        figures.database_us = before.database.zip(after.database).map(|(before, after)| us(before, after));
        figures.load_us = us(before.load, after.load);
    }

    /// What is found out once all is over: whether all is stored, memory, and how fast it starts again.
    async fn settle(&self, mut eye: Eye, outcome: Outcome, mut db: Db, figures: &mut Figures) -> Result<()> {
        figures.peak_mib = process::peak_mib(&eye.pid())?;
        let deadline = Duration::from_secs(60);
        ensure!(eye.terminate(deadline) == Some(0), "The Eye does not stop; its log:\n{}", eye.logs());
        let verdict = db.verdict(&outcome.ledger).await?;
        figures.counts = Counts {
            acked: outcome.ledger.acked(),
            stored: verdict.stored,
            lost: verdict.lost,
            too_many: verdict.twice + verdict.foreign,
            errors: outcome.errors,
        };
        // The next start is to find the database as the last stop left it.
        db.close().await?;
        figures.ready_ms = process::ready_ms(&self.settings.program, eye.folder(), self.config)?;
        Ok(())
    }
}

fn subject(nats: &NatsServer, mode: NatsMode) -> Target {
    Target::Nats { url: nats.url(), subject: "events.web".to_owned(), mode }
}

/// The Eye's memory at ten moments; returns at the end of the window.
async fn watch_memory(eye: &Eye, window: Window) -> Result<Vec<f64>> {
    let mut resident_mib = Vec::new();
    for moment in 1..=10 {
        sleep_until((window.start + (window.end - window.start) * moment / 10).into()).await;
        resident_mib.push(process::resident_mib(&eye.pid())?);
    }
    Ok(resident_mib)
}

/// How many events of a run were stored, and when.
#[derive(Clone, Copy)]
struct Counted {
    at: Instant,
    events: u64,
}

impl Counted {
    async fn now(db: &mut Db, since_us: i64) -> Result<Self> {
        // What a count sees is what was stored when it began.
        let at = Instant::now();
        Ok(Self { at, events: db.count(since_us).await? })
    }

    /// `None` when it was too short to tell.
    fn per_s_since(self, before: Self) -> Option<f64> {
        let seconds = (self.at - before.at).as_secs_f64();
        (seconds >= 1.0).then(|| (self.events - before.events) as f64 / seconds)
    }
}

/// Waits until `left` says that nothing is left, which it is asked often enough for its end to be the time. It fails
/// when nothing has changed for a minute.
async fn wait_for_none(what: &str, mut left: impl AsyncFnMut() -> Result<u64>) -> Result<()> {
    let mut last = (Instant::now(), u64::MAX);
    loop {
        let now_left = left().await?;
        match now_left {
            0 => return Ok(()),
            _ if now_left != last.1 => last = (Instant::now(), now_left),
            _ if last.0.elapsed() > Duration::from_secs(60) => bail!("{now_left} {what}, and nothing moves"),
            _ => {}
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the queue on the disk is empty.
async fn wait_until_drained(eye: &Eye) -> Result<()> {
    wait_for_none("events are in the queue", async || book(eye, "/sinks/store/pending").await).await
}

/// Waits until the server has all messages of the stream acknowledged. Returns The Eye's memory at ten moments meanwhile.
async fn wait_until_taken(eye: &Eye, stream: &jetstream::stream::Stream) -> Result<Vec<f64>> {
    let mut resident_mib = Vec::new();
    let left = async || {
        resident_mib.push(process::resident_mib(&eye.pid())?);
        // The source's default `durable`. It is made when the source has connected.
        match stream.consumer_info("eye").await {
            Ok(consumer) => Ok(consumer.num_pending + consumer.num_ack_pending as u64),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(u64::MAX),
            Err(error) => Err(error.into()),
        }
    };
    wait_for_none("messages are in the stream", left).await?;
    Ok((1..=10).map(|moment| resident_mib[(resident_mib.len() * moment).div_ceil(10) - 1]).collect())
}

/// Waits until nothing has come for two seconds: what the server still had is no loss.
async fn wait_until_quiet(eye: &Eye) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = (Instant::now(), 0);
    while last.0.elapsed() < Duration::from_secs(2) {
        ensure!(Instant::now() < deadline, "messages still come a minute after the last was sent");
        let received = book(eye, "/sources/bus/received").await?;
        if received != last.1 {
            last = (Instant::now(), received);
        }
        sleep(Duration::from_millis(100)).await;
    }
    wait_for_none("events wait", async || book(eye, "/sources/bus/waiting").await).await
}

/// One number of what `GET /audit` answers.
async fn book(eye: &Eye, pointer: &str) -> Result<u64> {
    let (_, audit) = eye.get("/audit").await;
    audit.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in /audit: {audit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}
