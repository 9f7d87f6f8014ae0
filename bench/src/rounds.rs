//! Rounds of measurements: each row is measured beside its limits.
//!
//! A slow moment of the machine slows a row and its limits alike, so their ratio is comparable. [`measure`] runs the
//! rounds, and [`quick`] compares a few rows with the committed results.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::environment::MeasurementEnvironment;
use crate::figures::RunFigures;
use crate::limits::RoundLimits;
use crate::numbers::median;
use crate::report::{MeasuredRow, SavedResults};
use crate::row_run::run_row;
use crate::rows::{self, BenchRow, IngestPath, ROWS};
use crate::servers::{DEFAULT_BUFFER_POOL, DatabaseServers};
use crate::settings::RunSettings;

/// The rows of [`quick`].
const QUICK_ROWS: [&str; 5] = ["postgres-256x1", "postgres-16x100", "sqlite-256x1", "sqlite-16x100", "mariadb-16x100"];

/// Longest measurement of a limit. A limit does not change over time, so a long run of a row needs no longer one.
const MAX_LIMIT_DURATION: Duration = Duration::from_secs(15);

/// Measures all rows once a round, and their limits with them. With `save`, each round updates the saved results, so
/// that a failing round does not lose the earlier ones.
pub(crate) async fn measure(
    rows: &[&'static BenchRow],
    runs: usize,
    settings: &RunSettings,
    save: bool,
) -> Result<SavedResults> {
    let servers = DatabaseServers::new(DEFAULT_BUFFER_POOL);
    let kinds = rows.iter().map(|row| row.kind);
    let environment = MeasurementEnvironment::with_databases(kinds, &servers, &settings.program).await?;
    let mut figures: BTreeMap<&str, Vec<RunFigures>> = BTreeMap::new();
    let mut limits: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut results = SavedResults::default();
    let limit_settings = RunSettings { duration: settings.duration.min(MAX_LIMIT_DURATION), ..settings.clone() };
    for run in 1..=runs {
        let mut round = RoundLimits::new(&servers, &limit_settings);
        for row in rows {
            let one = measure_row(row, &mut round, &servers, settings).await.with_context(|| row.name)?;
            eprintln!("{run}/{runs} {:<16} {:>8.0} events/s", row.name, one.events_per_s);
            figures.entry(row.name).or_default().push(one);
        }
        for (name, limit) in round.into_measured() {
            limits.entry(name).or_default().push(limit);
        }
        let measured = |figures: &Vec<RunFigures>| MeasuredRow {
            commit: environment.commit.clone(),
            date: environment.date.clone(),
            runs: run,
            duration_s: settings.duration.as_secs(),
            figures: RunFigures::of_runs(figures),
        };
        results = SavedResults {
            machine: environment.machine.clone(),
            versions: environment.versions.clone(),
            program_mib: settings.program.metadata()?.len() as f64 / f64::from(1 << 20),
            limits: limits.iter().filter_map(|(name, values)| Some((name.clone(), median(values.clone())?))).collect(),
            rows: figures.iter().map(|(&name, figures)| (name.to_owned(), measured(figures))).collect(),
        };
        if save {
            results.save()?;
        }
    }
    Ok(results)
}

/// Measures the limits of a row if the round has not, then the row, into an empty table.
async fn measure_row(
    row: &BenchRow,
    limits: &mut RoundLimits<'_>,
    servers: &DatabaseServers,
    settings: &RunSettings,
) -> Result<RunFigures> {
    let h = match row.path {
        IngestPath::Http | IngestPath::Disk => Some(limits.h(row).await?),
        IngestPath::NatsCore | IngestPath::NatsRequest | IngestPath::Jetstream => None,
    };
    let d = limits.d(row.kind).await?;
    let database = servers.create(row.kind, &settings.program)?;
    let mut figures = run_row(row, &database, settings).await?;
    figures.of_h = h.map(|h| figures.events_per_s / h);
    // An event that is acknowledged before it is stored says nothing about the database.
    figures.of_d = (row.path != IngestPath::Disk).then_some(figures.events_per_s / d);
    figures.drained_of_d = figures.drained_per_s.map(|drained| drained / d);
    Ok(figures)
}

/// Prints rows with lost, duplicated or foreign events. Returns failure if there are any.
pub(crate) fn report_losses(results: &SavedResults) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, row) in &results.rows {
        // Core NATS does not guarantee delivery.
        let may_lose = ROWS.iter().any(|row| row.name == *name && row.path == IngestPath::NatsCore);
        let counts = &row.figures.counts;
        if (counts.lost > 0 && !may_lose) || counts.too_many > 0 {
            eprintln!(
                "{name}: {} acknowledged events are lost, {} events are stored too many",
                counts.lost, counts.too_many
            );
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Measures a few rows and compares their ratios with the committed results. Returns failure if one fell.
pub(crate) async fn quick(runs: usize, settings: &RunSettings) -> Result<ExitCode> {
    let saved = SavedResults::load()?.context("bench/results.json is missing: run `scripts/bench` to create it")?;
    let results = measure(&rows::named(&QUICK_ROWS)?, runs, settings, false).await?;
    println!("{}", results.markdown());
    let falls = saved.falls(&results)?;
    for fall in &falls {
        println!("fell by more than 20 %: {fall}");
    }
    Ok(if falls.is_empty() { report_losses(&results) } else { ExitCode::FAILURE })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn quick_rows_exist() {
        assert_eq!(rows::named(&QUICK_ROWS).unwrap().len(), QUICK_ROWS.len());
    }
}
