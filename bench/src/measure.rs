//! Rounds of measurements: each row beside its limits, so that what slows the machine down slows all of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::database::{Kind, Servers};
use crate::direct::Way;
use crate::figures::{Figures, median};
use crate::origin::Origin;
use crate::report::{Measured, Results};
use crate::rows::{self, ROWS, Row, Settings, Via};

/// What the guard looks at.
const QUICK: [&str; 5] = ["postgres-256x1", "postgres-16x100", "sqlite-256x1", "sqlite-16x100", "mariadb-16x100"];

/// A limit is measured no longer than that, however long the rows are: nothing about it changes with time.
const MAX_LIMIT_DURATION: Duration = Duration::from_secs(15);

/// The rows of these names; `all` names all.
pub(crate) fn named(names: &[String]) -> Result<Vec<&'static Row>> {
    let known = |name: &str| name == "all" || ROWS.iter().any(|row| row.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        anyhow::bail!("no row `{unknown}`: all, {}", all.join(", "));
    }
    Ok(ROWS.iter().filter(|row| names.iter().any(|name| name == "all" || name == row.name)).collect())
}

/// Measures all rows and their limits once a round. `keep` keeps what there is after each round: one that fails ends it
/// all.
pub(crate) async fn measure(rows: &[&'static Row], runs: usize, settings: &Settings, keep: bool) -> Result<Results> {
    let servers = Servers::default();
    let origin = Origin::of(rows.iter().map(|row| row.kind), &servers, &settings.program).await?;
    let mut figures: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    let mut limits: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut results = Results::default();
    let of_limits = Settings { duration: settings.duration.min(MAX_LIMIT_DURATION), ..settings.clone() };
    for run in 1..=runs {
        let mut round = Round { limits: BTreeMap::new(), servers: &servers, settings, of_limits: &of_limits };
        for row in rows {
            let one = round.run(row).await.with_context(|| row.name)?;
            eprintln!("{run}/{runs} {:<16} {:>8.0} events/s", row.name, one.events_per_s);
            figures.entry(row.name).or_default().push(one);
        }
        for (name, limit) in round.limits {
            limits.entry(name).or_default().push(limit);
        }
        let measured = |figures: &Vec<Figures>| Measured {
            commit: origin.commit.clone(),
            date: origin.date.clone(),
            runs: run,
            duration_s: settings.duration.as_secs(),
            figures: Figures::of_runs(figures),
        };
        results = Results {
            machine: origin.machine.clone(),
            versions: origin.versions.clone(),
            program_mib: settings.program.metadata()?.len() as f64 / f64::from(1 << 20),
            limits: limits.iter().filter_map(|(name, values)| Some((name.clone(), median(values.clone())?))).collect(),
            rows: figures.iter().map(|(&name, figures)| (name.to_owned(), measured(figures))).collect(),
        };
        if keep {
            results.save()?;
        }
    }
    Ok(results)
}

/// Each limit is measured once a round, just before the first row that needs it.
struct Round<'a> {
    limits: BTreeMap<String, f64>,
    servers: &'a Servers,
    settings: &'a Settings,
    of_limits: &'a Settings,
}

impl Round<'_> {
    async fn run(&mut self, row: &Row) -> Result<Figures> {
        let h = match row.via {
            Via::Http | Via::Disk => Some(self.h(row.connections, row.events).await?),
            Via::NatsCore | Via::NatsRequest | Via::Jetstream => None,
        };
        let d = self.d(row.kind).await?;
        let mut figures = row.run(self.servers, self.settings).await?;
        figures.of_h = h.map(|h| figures.events_per_s / h);
        // What is acknowledged before it is stored says nothing about the database.
        figures.of_d = (row.via != Via::Disk).then_some(figures.events_per_s / d);
        figures.drained_of_d = figures.drained_per_s.map(|drained| drained / d);
        Ok(figures)
    }

    async fn h(&mut self, connections: usize, events: usize) -> Result<f64> {
        let name = format!("H {connections}x{events}");
        if !self.limits.contains_key(&name) {
            let limit = rows::bare(connections, events, self.of_limits).await?;
            self.note(&name, limit);
        }
        Ok(self.limits[&name])
    }

    /// `COPY` is a further limit of PostgreSQL, beside the one that ratios are of.
    async fn d(&mut self, kind: Kind) -> Result<f64> {
        let name = format!("D {kind}");
        if !self.limits.contains_key(&name) {
            for way in [Way::Insert, Way::Copy] {
                let name = match way {
                    Way::Insert => name.clone(),
                    Way::Copy if kind == Kind::Postgres => format!("{name}, COPY over the Unix socket"),
                    Way::Copy => continue,
                };
                let store = self.servers.create(kind, &self.settings.program)?;
                let limit = rows::straight(&store, way, self.of_limits).await?;
                drop(store);
                self.note(&name, limit);
            }
        }
        Ok(self.limits[&name])
    }

    fn note(&mut self, name: &str, limit: f64) {
        eprintln!("    {name:<16} {limit:>8.0} events/s");
        self.limits.insert(name.to_owned(), limit);
    }
}

/// Fails when something that was acknowledged is not stored, or stored twice.
pub(crate) fn losses(results: &Results) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, row) in &results.rows {
        // Core NATS promises nothing.
        let may_lose = ROWS.iter().any(|row| row.name == *name && row.via == Via::NatsCore);
        let counts = &row.figures.counts;
        if (counts.lost > 0 && !may_lose) || counts.too_many > 0 {
            eprintln!("{name}: {} acknowledged events are not stored, {} too many are", counts.lost, counts.too_many);
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// The guard: a few rows beside the committed results.
pub(crate) async fn quick(runs: usize, settings: &Settings) -> Result<ExitCode> {
    let saved = Results::saved()?.context("there is no bench/results.json: `scripts/bench` makes it")?;
    let names = QUICK.map(str::to_owned);
    let results = measure(&named(&names)?, runs, settings, false).await?;
    println!("{}", results.markdown());
    let falls = saved.falls(&results)?;
    for fall in &falls {
        println!("fell by more than 20 %: {fall}");
    }
    Ok(if falls.is_empty() { losses(&results) } else { ExitCode::FAILURE })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_their_names() {
        assert_eq!(named(&["all".to_owned()]).unwrap().len(), ROWS.len());
        assert_eq!(named(&QUICK.map(str::to_owned)).unwrap().len(), QUICK.len());
        let error = named(&["postgres".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no row `postgres`: all, postgres-64x1"), "{error}");
    }
}
