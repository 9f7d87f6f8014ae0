//! The effect of stored events on the ingest rate.
//!
//! [`measure`] measures each row into an empty table and into a filled table, in turns.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::database::DatabaseConnection;
use crate::direct::FillArgs;
use crate::environment::MeasurementEnvironment;
use crate::json::JSON_BYTES;
use crate::numbers::{median, target_note, thousands};
use crate::queries::{self, QueryOptions};
use crate::row_run::run_row;
use crate::rows::{self, BenchRow};
use crate::servers::{BenchDatabase, DatabaseServers, ServersArgs};
use crate::settings::{RunArgs, RunSettings};

/// Target for the rate into the filled table as a share of the rate into an empty one.
const MIN_OF_EMPTY: f64 = 0.7;

const HEADER: &str = "\
| row | empty, events/s | filled, events/s | of empty | filled, ready ms | stored before | bytes on the disk/event | bytes of JSON/event |
|---|---:|---:|---:|---:|---:|---:|---:|
";

/// Arguments of the command `growth`.
#[derive(Args)]
pub(crate) struct GrowthArgs {
    /// `all`, or names of rows such as sqlite-16x100
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    servers: ServersArgs,
    #[command(flatten)]
    fill: FillArgs,
    /// Also measures queries on each filled database, before any row
    #[arg(long)]
    queries: bool,
    #[command(flatten)]
    options: QueryOptions,
}

/// Runs the command `growth`. Fills one database of each kind, and uses it for all of its rows.
pub(crate) async fn measure(args: &GrowthArgs) -> Result<()> {
    let rows = rows::named(&args.names)?;
    let settings = args.run.settings()?;
    let RunSettings { program, sessions, duration, .. } = &settings;
    let kinds: BTreeSet<_> = rows.iter().map(|row| row.kind).collect();
    let servers = DatabaseServers::new(&args.servers.innodb_buffer_pool_size);
    let environment = MeasurementEnvironment::with_databases(kinds.iter().copied(), &servers, program).await?;
    println!("{environment}. Sessions: {sessions}; {} runs of {} s.\n", args.run.runs, duration.as_secs());
    let mut table = HEADER.to_owned();
    for kind in kinds {
        let filled = servers.create(kind, program)?;
        filled.fill(&args.fill, *sessions, program).await?;
        let stored = DatabaseConnection::open(&filled.url).await?.count(0).await? as f64;
        let bytes = filled.size_bytes().await? as f64 / stored;
        if args.queries {
            queries::measure_database(&filled, program, &args.options, args.fill.days).await?;
        }
        for row in rows.iter().filter(|row| row.kind == kind) {
            let figures = measure_row(row, args.run.runs, &servers, &filled, &settings).await;
            let figures = figures.with_context(|| row.name)?;
            table += &format!("| {} | {figures} | {} | {bytes:.0} | {JSON_BYTES} |\n", row.name, thousands(stored));
        }
    }
    println!("{table}");
    Ok(())
}

/// Measures a row into an empty table and into the filled one, in turns. Returns the medians as cells of the table.
async fn measure_row(
    row: &BenchRow,
    runs: u16,
    servers: &DatabaseServers,
    filled: &BenchDatabase<'_>,
    settings: &RunSettings,
) -> Result<String> {
    let [mut empty_rates, mut filled_rates, mut ratios, mut ready_ms] = [const { Vec::new() }; 4];
    for run in 1..=runs {
        let empty = servers.create(row.kind, &settings.program)?;
        let first = run_row(row, &empty, settings).await?;
        drop(empty);
        let second = run_row(row, filled, settings).await?;
        for counts in [&first.counts, &second.counts] {
            ensure!(counts.lost == 0 && counts.too_many == 0, "events are lost or stored too many: {counts:?}");
        }
        let (before, after) = (first.events_per_s, second.events_per_s);
        eprintln!("{run}/{runs} {:<16} {before:>8.0} events/s, filled {after:>8.0}", row.name);
        empty_rates.push(before);
        filled_rates.push(after);
        ratios.push(after / before);
        ready_ms.push(second.ready_ms);
    }
    let medians = [empty_rates, filled_rates, ratios, ready_ms].map(|values| median(values).unwrap_or_default());
    let [empty_rate, filled_rate, ratio, ready_ms] = medians;
    let note = target_note("≥", MIN_OF_EMPTY, ratio >= MIN_OF_EMPTY);
    Ok(format!("{} | {} | {ratio:.2}{note} | {ready_ms:.0}", thousands(empty_rate), thousands(filled_rate)))
}
