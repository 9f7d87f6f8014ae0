//! Measures The Eye beside the limits of the machine. `bench/README.md` says how to use it.

mod bare;
mod client;
mod database;
mod direct;
mod events;
mod figures;
mod growth;
mod load;
mod measure;
mod origin;
mod process;
mod queries;
mod report;
mod rows;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use mimalloc::MiMalloc;
use tokio::time::sleep_until;

use crate::database::Db;
use crate::direct::{FillWith, Way};
use crate::events::Sessions;
use crate::load::{Load, NatsMode, Target, Window};
use crate::rows::Settings;

/// The Eye's, so that the limits are limits of what it does, and not of their allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
#[command(name = "eye-bench", about = "Measures The Eye beside the limits of the machine", args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends events to any HTTP endpoint or NATS server, as fast as they are acknowledged
    Load(LoadArgs),
    /// Measures rows of the table beside their limits: the named ones, or all
    Row(RowArgs),
    /// Compares a few rows, measured for a short time, with bench/results.json; exits with 1 when a ratio fell by more
    /// than 20 %
    Quick(RunArgs),
    /// Fills the table `event` of a database straight by its driver
    Fill(FillArgs),
    /// Measures queries on a database that it makes and fills, or on a running program
    Queries(queries::QueriesArgs),
    /// Measures rows into an empty table and into one that was filled before, in turns
    Growth(growth::GrowthArgs),
    /// The limit H: a server that parses, queues and answers, and does nothing else
    Bare {
        /// Address and port
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct LoadArgs {
    /// Where to POST
    #[arg(long, required_unless_present = "nats")]
    url: Option<String>,
    /// The NATS server to publish to instead
    #[arg(long, conflicts_with = "url")]
    nats: Option<String>,
    #[arg(long, default_value = "events.web")]
    subject: String,
    /// How messages are sent to NATS
    #[arg(long, value_enum, default_value = "jetstream")]
    mode: NatsMode,
    /// Requests or messages under way at once
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Events in one request or message
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    events: u16,
    /// Events a second, all together; without it as fast as answers come
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Threads that send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Checks in this database of The Eye (postgres:, mysql:, sqlite:) that all that was acknowledged is stored
    #[arg(long)]
    check: Option<String>,
    /// A process whose peak memory and CPU time an event are told, such as the one that takes the events
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    time: TimeArgs,
}

#[derive(Args)]
struct TimeArgs {
    /// Seconds that are measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: u64,
    /// Seconds before that
    #[arg(long, default_value_t = 2)]
    warmup_s: u64,
    #[arg(long, value_enum, default_value = "come-and-go")]
    sessions: Sessions,
}

#[derive(Args)]
struct ProgramArg {
    /// The program to measure. Without it the one beside this one
    #[arg(long)]
    program: Option<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    program: ProgramArg,
    /// How often everything is measured; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    #[command(flatten)]
    time: TimeArgs,
}

#[derive(Args)]
struct RowArgs {
    /// `all`, or names such as postgres-256x1; a wrong one is answered with a list
    #[arg(required = true)]
    names: Vec<String>,
    /// Keeps the results in bench/results.json and bench/README.md
    #[arg(long)]
    save: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args)]
struct FillArgs {
    /// The database, with the table as `eye migrate` makes it
    #[arg(long)]
    url: String,
    #[command(flatten)]
    fill: FillWith,
    #[arg(long, value_enum, default_value = "come-and-go")]
    sessions: Sessions,
}

impl ProgramArg {
    fn path(&self) -> Result<PathBuf> {
        let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("eye"));
        let program = self.program.clone().map_or_else(beside, Ok)?;
        program.canonicalize().with_context(|| {
            format!("{} is missing: build it by `cargo build --release -p eye-bin`", program.display())
        })
    }
}

impl RunArgs {
    fn settings(&self) -> Result<Settings> {
        let time = &self.time;
        Ok(Settings {
            program: self.program.path()?,
            warmup: Duration::from_secs(time.warmup_s),
            duration: Duration::from_secs(time.duration_s),
            sessions: time.sessions,
        })
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Bare { listen } => bare::serve(listen).await?,
        Command::Load(args) => send(args).await?,
        Command::Row(args) => {
            let rows = measure::named(&args.names)?;
            let results = measure::measure(&rows, args.run.runs.into(), &args.run.settings()?, args.save).await?;
            println!("{}", results.markdown());
            return Ok(measure::losses(&results));
        }
        Command::Quick(args) => return measure::quick(args.runs.into(), &args.settings()?).await,
        Command::Fill(args) => args.fill.fill(&args.url, Way::Insert, args.sessions).await?,
        Command::Queries(args) => queries::measure(&args).await?,
        Command::Growth(args) => growth::measure(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(args: LoadArgs) -> Result<()> {
    let LoadArgs { url, nats, subject, mode, connections, events, rate, threads, check, pid, time } = args;
    let target = match (nats, url) {
        (Some(url), _) => Target::Nats { url, subject, mode },
        (None, url) => Target::Http { url: url.context("--url or --nats")? },
    };
    let load = Load {
        target,
        connections: connections.into(),
        events: events.into(),
        sessions: time.sessions,
        rate,
        threads: threads.into(),
        warmup: Duration::from_secs(time.warmup_s),
        duration: Duration::from_secs(time.duration_s),
    };
    let running = load.start()?;
    let used = match &pid {
        Some(pid) => Some(used_within(running.window, &pid.to_string()).await?),
        None => None,
    };
    let outcome = running.finish().await?;
    println!("{:.0} events/s acknowledged", outcome.events_per_s());
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| outcome.quantile_ms(quantile));
    println!("p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms");
    println!("{} events acknowledged in all, warm-up included", outcome.ledger.acked());
    if let Some((cpu_s, peak_mib)) = used {
        let cpu_us = cpu_s * 1e6 / outcome.events.max(1) as f64;
        println!("its peak memory {peak_mib:.0} MiB, its CPU time {cpu_us:.1} µs/event");
    }
    for (error, count) in &outcome.errors {
        println!("{count} × {error}");
    }
    if let Some(url) = check {
        let verdict = Db::open(&url).await?.verdict(&outcome.ledger).await?;
        println!("{verdict:?}");
        anyhow::ensure!(verdict.lost == 0 && verdict.twice == 0, "acknowledged events are not stored, or twice");
    }
    Ok(())
}

/// Seconds of CPU time that a process uses within the window, and MiB of memory that it has used at most by its end.
async fn used_within(window: Window, pid: &str) -> Result<(f64, f64)> {
    sleep_until(window.start.into()).await;
    let before = process::cpu_s(pid)?;
    sleep_until(window.end.into()).await;
    Ok((process::cpu_s(pid)? - before, process::peak_mib(pid)?))
}
