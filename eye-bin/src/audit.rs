//! `eye audit`: asks the running program for its event accounting and prints it as tables.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use eye_api::audit::AuditReport;
use eye_http::config::ServerConfig;

use crate::running_program::RunningProgram;

/// The time for which an unbalanced report is asked for again. While events move, no two counters are read at once.
const BALANCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks the program at `url`, else the one that listens as configured, and prints its report. Blocks.
///
/// # Errors
/// Fails if no program answers, or its report does not balance.
pub(crate) fn run(url: Option<&str>, server: &ServerConfig) -> anyhow::Result<()> {
    let program = RunningProgram::new(url, server)?;
    let started = Instant::now();
    loop {
        let report = ask(&program)?;
        if !report.balanced && started.elapsed() < BALANCE_TIMEOUT {
            thread::sleep(PAUSE);
            continue;
        }
        crate::print_line(&tables(&report))?;
        if !report.balanced {
            bail!("the ledger of {} does not balance: {}", program.url("/"), report.imbalances.join("; "));
        }
        return crate::print_line(balanced(&report));
    }
}

fn ask(program: &RunningProgram) -> anyhow::Result<AuditReport> {
    let url = program.url("/audit");
    let mut answer = program.agent().get(&url).call().with_context(|| {
        format!("{url} does not answer: start The Eye with this configuration, or name its address by --url")
    })?;
    let (status, body) = (answer.status(), answer.body_mut().read_to_string());
    let report = body.ok().filter(|_| status == 200).and_then(|body| serde_json::from_str(&body).ok());
    report.with_context(|| {
        format!("{url} answers {status} without a ledger: ask The Eye itself, of the same version as this program")
    })
}

/// Returns the last line for a balanced report.
fn balanced(report: &AuditReport) -> &'static str {
    match report.transport.shared {
        true => "Balanced: every event that this program has taken or written is accounted for.",
        false => "Balanced: every event is accounted for.",
    }
}

/// Formats a report for people.
fn tables(report: &AuditReport) -> String {
    let mut text = String::new();
    let sources = report.sources.iter().map(|(name, source)| {
        (name.as_str(), vec![source.received, source.accepted, source.rejected, source.failed, source.waiting])
    });
    table(&mut text, &["SOURCES", "received", "accepted", "rejected", "failed", "waiting"], sources.collect());
    let sinks = report.sinks.iter().map(|(name, sink)| {
        let balance =
            [sink.taken, sink.delivered, sink.rejected, sink.filtered, sink.failed, sink.missing, sink.pending];
        let further = [sink.at_start, sink.duplicates, sink.retried, sink.in_flight];
        (name.as_str(), [&balance[..], &further].concat())
    });
    let columns = ["SINKS", "taken", "delivered", "rejected", "filtered", "failed", "missing", "pending"];
    let further = ["at start", "duplicates", "retried", "in flight"];
    table(&mut text, &[&columns[..], &further].concat(), sinks.collect());
    for (name, source) in &report.sources {
        let refusals = source.refusals.iter().map(|(reason, count)| (reason.as_str(), vec![*count]));
        if !source.refusals.is_empty() {
            table(&mut text, &[&format!("REFUSED BY {name}"), "count"], refusals.collect());
        }
    }
    for (name, sink) in report.sinks.iter().filter(|(_, sink)| sink.missing > 0) {
        let missing = sink.missing;
        let _ = writeln!(text, "{missing} events for {name} were lost to damage on the disk; the log says where.\n");
    }
    for (name, sink) in report.sinks.iter().filter(|_| report.transport.shared) {
        let _ = match sink.in_stream {
            Some(messages) => {
                writeln!(text, "The stream holds {messages} messages for {name}, whichever program gets them.\n")
            }
            None => writeln!(
                text,
                "The number of messages that the stream holds for {name} is unknown: /readyz says why.\n"
            ),
        };
    }
    text.pop();
    text
}

/// Appends a table with names on the left, numbers on the right, and an empty line below.
fn table(text: &mut String, head: &[&str], rows: Vec<(&str, Vec<u64>)>) {
    let mut lines = vec![head.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.into_iter().map(|(name, numbers)| {
        let numbers = numbers.iter().map(u64::to_string);
        std::iter::once(name.to_owned()).chain(numbers).collect()
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for line in &lines {
        let _ = write!(text, "{:<1$}", line[0], widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn report(shared: bool, in_stream: Option<u64>) -> AuditReport {
        let report = serde_json::json!({
            "balanced": true,
            "imbalances": [],
            "sources": {"web": {"received": 1234, "accepted": 1230, "rejected": 4, "failed": 0, "waiting": 0,
                "refusals": {"name: missing": 4}}},
            "transport": {"durable": true, "shared": shared},
            "sinks": {"store": {"taken": 1230, "at_start": 5, "pending": 7, "missing": 3, "in_stream": in_stream,
                "delivered": 1220, "duplicates": 20, "rejected": 0, "filtered": 0, "failed": 0, "retried": 2, "in_flight": 7}},
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn tables_are_aligned() {
        let expected = "\
SOURCES  received  accepted  rejected  failed  waiting
web          1234      1230         4       0        0

SINKS  taken  delivered  rejected  filtered  failed  missing  pending  at start  duplicates  retried  in flight
store   1230       1220         0         0       0        3        7         5          20        2          7

REFUSED BY web  count
name: missing       4

3 events for store were lost to damage on the disk; the log says where.
";
        assert_eq!(tables(&report(false, None)), expected);
    }

    #[test]
    fn backlog_of_a_shared_transport_is_shown() {
        let known = report(true, Some(10_000));
        let holds = "The stream holds 10000 messages for store, whichever program gets them.\n";
        assert!(tables(&known).ends_with(holds), "{}", tables(&known));
        assert!(balanced(&known).contains("this program"), "{}", balanced(&known));
        let unknown = tables(&report(true, None));
        assert!(unknown.contains("is unknown"), "{unknown}");
    }
}
