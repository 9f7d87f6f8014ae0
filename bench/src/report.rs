//! Saved results: read and written as JSON, compared, and printed as tables.
//!
//! [`SavedResults`] is the content of `bench/results.json`. [`SavedResults::markdown`] prints it as bench/README.md
//! shows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::environment::{Machine, describe};
use crate::figures::RunFigures;
use crate::numbers::{target_note, thousands};
use crate::rows::{BenchRow, ROWS};

/// Fall of a ratio that [`SavedResults::falls`] tolerates.
const TOLERANCE: f64 = 0.2;

/// Target for the peak memory in each row, in MiB.
const MAX_PEAK_MIB: f64 = 100.0;
/// Target for the 99th percentile as a multiple of the median, for 256 clients with one event a request.
const MAX_P99_OF_MEDIAN: f64 = 4.0;
/// Target for the startup time until `/readyz` answers 200.
const MAX_READY_MS: f64 = 150.0;
/// Target for the size of the program.
const MAX_PROGRAM_MIB: f64 = 30.0;

/// All results of a measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SavedResults {
    pub(crate) machine: Machine,
    /// Versions of the compiler and the servers, by name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) program_mib: f64,
    /// Limits in events/s, by name.
    pub(crate) limits: BTreeMap<String, f64>,
    pub(crate) rows: BTreeMap<String, MeasuredRow>,
}

/// The result of one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MeasuredRow {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) runs: usize,
    pub(crate) duration_s: u64,
    #[serde(flatten)]
    pub(crate) figures: RunFigures,
}

/// Returns the folder of this crate, which holds the results.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn results_file() -> PathBuf {
    folder().join("results.json")
}

impl SavedResults {
    /// Reads the saved results; `None` without a file.
    pub(crate) fn load() -> Result<Option<Self>> {
        match fs::read(results_file()) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json).context("bench/results.json cannot be read")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Saves these results as JSON and as tables in bench/README.md. Saved rows and limits that were not measured again
    /// stay.
    pub(crate) fn save(&self) -> Result<()> {
        let mut all = self.clone();
        if let Some(mut before) = Self::load()? {
            before.rows.append(&mut all.rows);
            before.limits.append(&mut all.limits);
            before.versions.append(&mut all.versions);
            all = Self { rows: before.rows, limits: before.limits, versions: before.versions, ..all };
        }
        let mut json = serde_json::to_string_pretty(&all)?;
        json.push('\n');
        fs::write(results_file(), json)?;
        let readme = folder().join("README.md");
        let text = fs::read_to_string(&readme)?;
        fs::write(readme, with_section(&text, &all.markdown()).context("bench/README.md has no section for results")?)?;
        Ok(())
    }

    /// Prints machine, rows, memory and limits as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "{}. The program has {:.1} MiB{}.\n\n{HEADER}",
            describe(&self.machine, &self.versions),
            self.program_mib,
            target_note("≤", MAX_PROGRAM_MIB, self.program_mib <= MAX_PROGRAM_MIB)
        );
        for row in ROWS {
            if let Some(measured) = self.rows.get(row.name) {
                write_row(&mut text, row, measured);
            }
        }
        text.push_str("\n| row | The Eye's memory at ten moments of the last run, MiB |\n|---|---|\n");
        for row in ROWS {
            if let Some(MeasuredRow { figures, duration_s, .. }) = self.rows.get(row.name) {
                let moments: Vec<String> = figures.resident_mib.iter().map(|mib| format!("{mib:.0}")).collect();
                let _ = writeln!(text, "| {}, {duration_s} s | {} |", row.name, moments.join(", "));
            }
        }
        text.push_str("\n| limit | events/s |\n|---|---:|\n");
        for (name, limit) in &self.limits {
            let _ = writeln!(text, "| {name} | {} |", thousands(*limit));
        }
        text
    }

    /// Returns a line for each ratio in `measured` that is more than 20 % below these results.
    ///
    /// # Errors
    /// Fails if a measured row is missing in these results.
    pub(crate) fn falls(&self, measured: &Self) -> Result<Vec<String>> {
        let mut falls = Vec::new();
        for (name, now) in &measured.rows {
            let before = self.rows.get(name).with_context(|| {
                format!("bench/results.json has no {name}: run `scripts/bench row {name} --save` to add it")
            })?;
            let (before, now) = (&before.figures, &now.figures);
            let ratios = [
                ("H", before.of_h, now.of_h),
                ("D", before.of_d, now.of_d),
                ("D (drained)", before.drained_of_d, now.drained_of_d),
            ];
            for (limit, before, now) in ratios {
                let (Some(before), Some(now)) = (before, now) else { continue };
                if now < before * (1.0 - TOLERANCE) {
                    falls.push(format!("{name}: {now:.3} {limit}, was {before:.3} {limit}"));
                }
            }
        }
        Ok(falls)
    }
}

const HEADER: &str = "\
| row | events/s | of H | of D | p50 ms | p99 ms | max ms | peak MiB | CPU µs/event: Eye, database, load | ready ms | acked | lost | too many | errors | commit |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|
";

fn write_row(text: &mut String, row: &BenchRow, measured: &MeasuredRow) {
    let it = &measured.figures;
    let ratio = |value: Option<f64>, target: Option<f64>| {
        let Some(value) = value else { return "–".to_owned() };
        let note = target.map(|target| target_note("≥", target, value >= target));
        format!("{value:.2}{}", note.unwrap_or_default())
    };
    let of_h = ratio(it.of_h, row.targets.of_h);
    let mut of_d = ratio(it.of_d, row.targets.of_d);
    let mut events = thousands(it.events_per_s);
    if let Some(drained) = it.drained_per_s {
        let _ = write!(of_d, "; drained {}", ratio(it.drained_of_d, row.targets.drained_of_d));
        let _ = write!(events, "; drained {}", thousands(drained));
        if let Some(after) = it.drained_after_per_s {
            let _ = write!(events, ", then {}", thousands(after));
        }
    }
    let has_p99_target = row.connections == 256 && it.p50_ms.is_some();
    let p99 = it.p99_ms.map_or("–".to_owned(), |p99| {
        let bound = it.p50_ms.unwrap_or_default() * MAX_P99_OF_MEDIAN;
        let bound = if has_p99_target { target_note("≤", bound, p99 <= bound) } else { String::new() };
        format!("{p99:.1}{bound}")
    });
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let errors: Vec<String> = it.counts.errors.iter().map(|(error, count)| format!("{count} × {error}")).collect();
    let _ = writeln!(
        text,
        "| {} | {events} | {of_h} | {of_d} | {} | {p99} | {} | {:.0}{} | {:.1}, {}, {:.1} | {:.0}{} | {} | {} | {} | {} | {} |",
        row.name,
        ms(it.p50_ms),
        ms(it.max_ms),
        it.peak_mib,
        target_note("≤", MAX_PEAK_MIB, it.peak_mib <= MAX_PEAK_MIB),
        it.eye_us,
        ms(it.database_us),
        it.load_us,
        it.ready_ms,
        target_note("≤", MAX_READY_MS, it.ready_ms <= MAX_READY_MS),
        thousands(it.counts.acked as f64),
        it.counts.lost,
        it.counts.too_many,
        errors.join(", "),
        measured.commit,
    );
}

/// Start and end of the section for results in bench/README.md.
const SECTION: [&str; 2] = ["<!-- results: written by `scripts/bench` -->\n", "<!-- /results -->"];

/// Returns the text with a new content of its section; `None` for a text without the section.
fn with_section(text: &str, section: &str) -> Option<String> {
    let start = text.find(SECTION[0])? + SECTION[0].len();
    let end = start + text[start..].find(SECTION[1])?;
    Some(format!("{}{section}{}", &text[..start], &text[end..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn results(of_h: f64, of_d: f64) -> SavedResults {
        let figures = RunFigures { of_h: Some(of_h), of_d: Some(of_d), ..RunFigures::default() };
        let measured =
            MeasuredRow { commit: "abc".to_owned(), date: "2026-01-01".to_owned(), runs: 5, duration_s: 15, figures };
        SavedResults { rows: BTreeMap::from([("postgres-256x1".to_owned(), measured)]), ..SavedResults::default() }
    }

    #[test]
    fn fall_by_more_than_20_percent_is_reported() {
        let falls = results(0.50, 0.40).falls(&results(0.39, 0.40)).unwrap();
        assert_eq!(falls, ["postgres-256x1: 0.390 H, was 0.500 H"]);
        let falls = results(0.50, 0.40).falls(&results(0.50, 0.10)).unwrap();
        assert_eq!(falls, ["postgres-256x1: 0.100 D, was 0.400 D"]);
    }

    #[test]
    fn fall_by_19_percent_is_tolerated() {
        assert_eq!(results(0.50, 0.40).falls(&results(0.50 * 0.81, 0.40 * 0.81)).unwrap(), [""; 0]);
        assert_eq!(results(0.50, 0.40).falls(&results(0.9, 0.9)).unwrap(), [""; 0]);
    }

    #[test]
    fn row_without_saved_results_is_an_error() {
        let error = SavedResults::default().falls(&results(0.5, 0.5)).unwrap_err();
        assert!(error.to_string().contains("has no postgres-256x1"), "{error}");
    }

    #[test]
    fn saved_results_survive_a_round_trip() {
        let json = serde_json::to_string(&results(0.5, 0.4)).unwrap();
        let read: SavedResults = serde_json::from_str(&json).unwrap();
        assert_eq!(read.rows["postgres-256x1"].figures.of_h, Some(0.5));
    }

    #[test]
    fn table_marks_missed_targets() {
        let table = results(0.44, 0.4).markdown();
        let row = table.lines().find(|line| line.contains("postgres-256x1")).unwrap();
        assert!(row.contains("| 0.44 (≥ 0.45, **missed**) | 0.40 |"), "{row}");
        assert_eq!(row.matches('|').count(), HEADER.lines().next().unwrap().matches('|').count());
    }

    #[test]
    fn table_shows_memory_over_time() {
        let mut results = results(0.5, 0.4);
        results.rows.values_mut().for_each(|row| row.figures.resident_mib = vec![20.4, 31.0, 30.6]);
        assert!(results.markdown().contains("\n| postgres-256x1, 15 s | 20, 31, 31 |\n"));
    }

    #[test]
    fn section_of_the_readme_can_be_replaced() {
        let text = fs::read_to_string(folder().join("README.md")).unwrap();
        let new = with_section(&text, "new\n").unwrap();
        assert!(new.contains("-->\nnew\n<!-- /results"), "{new}");
    }

    #[test]
    fn readme_shows_the_saved_results() {
        let readme = fs::read_to_string(folder().join("README.md")).unwrap();
        let saved = SavedResults::load().unwrap().unwrap();
        assert_eq!(with_section(&readme, &saved.markdown()).unwrap(), readme);
    }
}
