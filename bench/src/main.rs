//! Benchmarks of The Eye beside the limits of the machine.
//!
//! `bench/README.md` explains the measurements and how to repeat them. `rounds` measures the rows of the result table;
//! `growth`, `queries` and `load` are commands of their own.

mod bare_server;
mod client;
mod database;
mod direct;
mod environment;
mod events;
mod figures;
mod growth;
mod json;
mod limits;
mod load;
mod numbers;
mod process;
mod queries;
mod report;
mod rounds;
mod row_run;
mod rows;
mod sent;
mod servers;
mod settings;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use mimalloc::MiMalloc;
use tokio::time::sleep_until;

use crate::client::{LoadTarget, NatsAckMode};
use crate::database::DatabaseConnection;
use crate::direct::{FillArgs, WriteMethod};
use crate::events::SessionPattern;
use crate::load::LoadPlan;
use crate::settings::{MeasurementWindow, RunArgs, TimeArgs};

/// The allocator of The Eye. With another one the limits would measure the allocator, too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
#[command(name = "eye-bench", about = "Measures The Eye beside the limits of the machine", args_override_self = true)]
struct BenchCli {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Sends events to an HTTP endpoint or a NATS server, as fast as they are acknowledged
    Load(LoadArgs),
    /// Measures rows of the table beside their limits
    Row(RowArgs),
    /// Compares a few rows, measured for a short time, with bench/results.json; exits with 1 when a ratio fell by more
    /// than 20 %
    Quick(RunArgs),
    /// Fills the table `event` of a database directly through its driver
    Fill(FillCommandArgs),
    /// Measures queries on a database that it creates and fills, or on a running program
    Queries(queries::QueriesArgs),
    /// Measures rows into an empty table and into a filled one, in turns
    Growth(growth::GrowthArgs),
    /// Runs the server of the limit H, which parses, queues and answers, and does nothing else
    Bare {
        /// Address and port
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct LoadArgs {
    /// URL to POST to
    #[arg(long, required_unless_present = "nats")]
    url: Option<String>,
    /// URL of a NATS server to publish to instead
    #[arg(long, conflicts_with = "url")]
    nats: Option<String>,
    /// Subject of NATS messages
    #[arg(long, default_value = "events.web")]
    subject: String,
    /// Acknowledgement of NATS messages
    #[arg(long, value_enum, default_value = "jetstream")]
    mode: NatsAckMode,
    /// Requests or messages in flight
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Events in one request or message
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    events: u16,
    /// Highest rate of all connections together, in events/s [default: as fast as acknowledgements arrive]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Threads that send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// URL of a database of The Eye (postgres:, mysql:, sqlite:), to check that all acknowledged events are stored
    #[arg(long)]
    check: Option<String>,
    /// Id of a process, such as the receiver, whose peak memory and CPU time are printed
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    time: TimeArgs,
}

#[derive(Args)]
struct RowArgs {
    /// `all`, or names of rows such as postgres-256x1; an unknown name prints the list
    #[arg(required = true)]
    names: Vec<String>,
    /// Saves the results in bench/results.json and bench/README.md
    #[arg(long)]
    save: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args)]
struct FillCommandArgs {
    /// URL of the database, with the schema of `eye migrate`
    #[arg(long)]
    url: String,
    #[command(flatten)]
    fill: FillArgs,
    /// Sessions of the events
    #[arg(long, value_enum, default_value = "come-and-go")]
    sessions: SessionPattern,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match BenchCli::parse().command {
        BenchCommand::Bare { listen } => bare_server::serve(listen).await?,
        BenchCommand::Load(args) => load(args).await?,
        BenchCommand::Row(args) => {
            let rows = rows::named(&args.names)?;
            let results = rounds::measure(&rows, args.run.runs.into(), &args.run.settings()?, args.save).await?;
            println!("{}", results.markdown());
            return Ok(rounds::report_losses(&results));
        }
        BenchCommand::Quick(args) => return rounds::quick(args.runs.into(), &args.settings()?).await,
        BenchCommand::Fill(args) => args.fill.fill(&args.url, WriteMethod::Insert, args.sessions).await?,
        BenchCommand::Queries(args) => queries::measure(&args).await?,
        BenchCommand::Growth(args) => growth::measure(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command `load` and prints its result.
async fn load(args: LoadArgs) -> Result<()> {
    let target = match (args.nats, args.url) {
        (Some(url), _) => LoadTarget::Nats { url, subject: args.subject, mode: args.mode },
        (None, url) => LoadTarget::Http { url: url.context("name --url or --nats")? },
    };
    let plan = LoadPlan {
        target,
        connections: args.connections.into(),
        events: args.events.into(),
        sessions: args.time.sessions,
        rate: args.rate,
        threads: args.threads.into(),
        warmup: args.time.warmup(),
        duration: args.time.duration(),
    };
    let load = plan.start()?;
    let usage = match args.pid {
        Some(pid) => Some(usage_within(load.window, &pid.to_string()).await?),
        None => None,
    };
    let result = load.finish().await?;
    println!("{:.0} events/s acknowledged", result.events_per_s());
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|quantile| result.quantile_ms(quantile));
    println!("p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms");
    println!("{} events acknowledged in total, including the warm-up", result.sent.acked());
    if let Some((cpu_s, peak_mib)) = usage {
        let cpu_us = cpu_s * 1e6 / result.events.max(1) as f64;
        println!("process: peak memory {peak_mib:.0} MiB, CPU time {cpu_us:.1} µs/event");
    }
    for (error, count) in &result.errors {
        println!("{count} × {error}");
    }
    if let Some(url) = args.check {
        let stored = DatabaseConnection::open(&url).await?.check(&result.sent).await?;
        println!("{stored:?}");
        ensure!(stored.lost == 0 && stored.duplicated == 0, "acknowledged events are lost or duplicated");
    }
    Ok(())
}

/// Returns the CPU time that a process uses within the window, in seconds, and its peak memory at the end, in MiB.
async fn usage_within(window: MeasurementWindow, pid: &str) -> Result<(f64, f64)> {
    sleep_until(window.start.into()).await;
    let before = process::cpu_s(pid)?;
    sleep_until(window.end.into()).await;
    Ok((process::cpu_s(pid)? - before, process::peak_mib(pid)?))
}
