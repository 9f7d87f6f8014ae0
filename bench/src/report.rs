//! Results: as JSON, as a table, and beside the ones that were committed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figures::Figures;
use crate::origin::{Machine, setting};
use crate::rows::{ROWS, Ratio, Row};

/// What a ratio may fall by before it is named.
const TOLERANCE: f64 = 0.2;

/// Peak memory of each row, in MiB.
const MAX_PEAK_MIB: f64 = 100.0;
/// How many times the median the 99th percentile may be, where 256 clients send one event each.
const MAX_P99: f64 = 4.0;
/// From the start to `/readyz`.
const MAX_READY_MS: f64 = 150.0;
/// The size of the program.
const MAX_PROGRAM_MIB: f64 = 30.0;

/// Everything that is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    /// Of what took part, by name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) program_mib: f64,
    /// Events a second, by name.
    pub(crate) limits: BTreeMap<String, f64>,
    pub(crate) rows: BTreeMap<String, Measured>,
}

/// A row, as it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) runs: usize,
    pub(crate) duration_s: u64,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// Where this crate and its results lie.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file() -> PathBuf {
    folder().join("results.json")
}

impl Results {
    /// The results that were saved last; none at all when there is no file.
    pub(crate) fn saved() -> Result<Option<Self>> {
        match fs::read(file()) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json).context("bench/results.json is not what was saved")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps these and, of what was saved before, the rows that were not measured again.
    pub(crate) fn save(&self) -> Result<()> {
        let mut all = self.clone();
        if let Some(mut before) = Self::saved()? {
            before.rows.append(&mut all.rows);
            before.limits.append(&mut all.limits);
            before.versions.append(&mut all.versions);
            all = Self { rows: before.rows, limits: before.limits, versions: before.versions, ..all };
        }
        let mut json = serde_json::to_string_pretty(&all)?;
        json.push('\n');
        fs::write(file(), json)?;
        let readme = folder().join("README.md");
        let text = fs::read_to_string(&readme)?;
        fs::write(readme, with_section(&text, &all.markdown()).context("bench/README.md has no place for results")?)?;
        Ok(())
    }

    /// Tables of rows and limits.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "{}. The program has {:.1} MiB{}.\n\n{HEADER}",
            setting(&self.machine, &self.versions),
            self.program_mib,
            against("≤", MAX_PROGRAM_MIB, self.program_mib <= MAX_PROGRAM_MIB)
        );
        for row in ROWS {
            if let Some(measured) = self.rows.get(row.name) {
                line(&mut text, row, measured);
            }
        }
        text.push_str("\n| row | The Eye's memory at ten moments of the last run, MiB |\n|---|---|\n");
        for row in ROWS {
            if let Some(Measured { figures, duration_s, .. }) = self.rows.get(row.name) {
                let moments: Vec<String> = figures.resident_mib.iter().map(|mib| format!("{mib:.0}")).collect();
                let _ = writeln!(text, "| {}, {duration_s} s | {} |", row.name, moments.join(", "));
            }
        }
        text.push_str("\n| limit | events/s |\n|---|---:|\n");
        for (name, limit) in &self.limits {
            let _ = writeln!(text, "| {name} | {} |", whole(*limit));
        }
        text
    }

    /// Names every ratio that fell by more than a fifth.
    ///
    /// # Errors
    /// When there is nothing to compare a row with.
    pub(crate) fn falls(&self, measured: &Self) -> Result<Vec<String>> {
        let mut falls = Vec::new();
        for (name, now) in &measured.rows {
            let before = self.rows.get(name).with_context(|| {
                format!("bench/results.json has no {name}: `scripts/bench row {name} --save` measures it")
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

fn line(text: &mut String, row: &Row, measured: &Measured) {
    let it = &measured.figures;
    let target = |wanted: fn(&Ratio) -> Option<f64>| row.targets.iter().find_map(wanted);
    let ratio = |value: Option<f64>, target: Option<f64>| match (value, target) {
        (None, _) => "–".to_owned(),
        (Some(value), None) => format!("{value:.2}"),
        (Some(value), Some(target)) => format!("{value:.2}{}", against("≥", target, value >= target)),
    };
    let of_h = ratio(it.of_h, target(|ratio| if let Ratio::OfH(target) = ratio { Some(*target) } else { None }));
    let mut of_d = ratio(it.of_d, target(|ratio| if let Ratio::OfD(target) = ratio { Some(*target) } else { None }));
    let mut events = whole(it.events_per_s);
    if let Some(drained) = it.drained_per_s {
        let target = target(|ratio| if let Ratio::DrainOfD(target) = ratio { Some(*target) } else { None });
        let _ = write!(of_d, "; drained {}", ratio(it.drained_of_d, target));
        let _ = write!(events, "; drained {}", whole(drained));
        if let Some(after) = it.drained_after_per_s {
            let _ = write!(events, ", then {}", whole(after));
        }
    }
    let is_tail_bounded = row.connections == 256 && it.p50_ms.is_some();
    let p99 = it.p99_ms.map_or("–".to_owned(), |p99| {
        let bound = it.p50_ms.unwrap_or_default() * MAX_P99;
        let bound = if is_tail_bounded { against("≤", bound, p99 <= bound) } else { String::new() };
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
        against("≤", MAX_PEAK_MIB, it.peak_mib <= MAX_PEAK_MIB),
        it.eye_us,
        ms(it.database_us),
        it.load_us,
        it.ready_ms,
        against("≤", MAX_READY_MS, it.ready_ms <= MAX_READY_MS),
        whole(it.counts.acked as f64),
        it.counts.lost,
        it.counts.too_many,
        errors.join(", "),
        measured.commit,
    );
}

/// What was wanted, and whether it is so.
pub(crate) fn against(sign: &str, target: f64, holds: bool) -> String {
    let target = if target < 1.0 { format!("{target:.2}") } else { format!("{target:.0}") };
    format!(" ({sign} {target}{})", if holds { "" } else { ", **missed**" })
}

/// A whole number, its thousands apart.
pub(crate) fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits are ASCII")).collect();
    groups.join(",")
}

const SECTION: [&str; 2] = ["<!-- results: written by `scripts/bench` -->\n", "<!-- /results -->"];

/// The text with this in its section; `None` when it has none.
fn with_section(text: &str, section: &str) -> Option<String> {
    let start = text.find(SECTION[0])? + SECTION[0].len();
    let end = start + text[start..].find(SECTION[1])?;
    Some(format!("{}{section}{}", &text[..start], &text[end..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn results(of_h: f64, of_d: f64) -> Results {
        let figures = Figures { of_h: Some(of_h), of_d: Some(of_d), ..Figures::default() };
        let measured =
            Measured { commit: "abc".to_owned(), date: "2026-01-01".to_owned(), runs: 5, duration_s: 15, figures };
        Results { rows: BTreeMap::from([("postgres-256x1".to_owned(), measured)]), ..Results::default() }
    }

    #[test]
    fn a_fall_by_more_than_a_fifth_is_named() {
        let falls = results(0.50, 0.40).falls(&results(0.39, 0.40)).unwrap();
        assert_eq!(falls, ["postgres-256x1: 0.390 H, was 0.500 H"]);
        let falls = results(0.50, 0.40).falls(&results(0.50, 0.10)).unwrap();
        assert_eq!(falls, ["postgres-256x1: 0.100 D, was 0.400 D"]);
    }

    #[test]
    fn a_fall_by_19_percent_is_not() {
        assert_eq!(results(0.50, 0.40).falls(&results(0.50 * 0.81, 0.40 * 0.81)).unwrap(), [""; 0]);
        assert_eq!(results(0.50, 0.40).falls(&results(0.9, 0.9)).unwrap(), [""; 0]);
    }

    #[test]
    fn a_row_without_results_is_an_error() {
        let error = Results::default().falls(&results(0.5, 0.5)).unwrap_err();
        assert!(error.to_string().contains("has no postgres-256x1"), "{error}");
    }

    #[test]
    fn what_was_saved_can_be_read() {
        let json = serde_json::to_string(&results(0.5, 0.4)).unwrap();
        let read: Results = serde_json::from_str(&json).unwrap();
        assert_eq!(read.rows["postgres-256x1"].figures.of_h, Some(0.5));
    }

    #[test]
    fn the_table_says_what_was_missed() {
        let table = results(0.44, 0.4).markdown();
        let row = table.lines().find(|line| line.contains("postgres-256x1")).unwrap();
        assert!(row.contains("| 0.44 (≥ 0.45, **missed**) | 0.40 |"), "{row}");
        assert_eq!(row.matches('|').count(), HEADER.lines().next().unwrap().matches('|').count());
    }

    #[test]
    fn the_table_says_whether_memory_is_flat() {
        let mut results = results(0.5, 0.4);
        results.rows.values_mut().for_each(|row| row.figures.resident_mib = vec![20.4, 31.0, 30.6]);
        assert!(results.markdown().contains("\n| postgres-256x1, 15 s | 20, 31, 31 |\n"));
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!([0.0, 999.0, 1000.4, 1_234_567.0].map(whole), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn the_readme_has_a_section_for_results() {
        let text = fs::read_to_string(folder().join("README.md")).unwrap();
        let new = with_section(&text, "new\n").unwrap();
        assert!(new.contains("-->\nnew\n<!-- /results"), "{new}");
    }
}
