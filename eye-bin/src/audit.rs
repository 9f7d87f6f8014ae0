//! Whether everything is accounted for: `GET /audit` of the running program, and `eye audit`, which asks it.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eye_core::accounting::{Accounting, Ledger};
use serde::Serialize;

use crate::metrics;
use crate::running::Running;
use crate::server::{ServerConfig, json_response};

/// How long books that do not balance are asked for again: while events move, two counters are never read at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two looks at them.
const PAUSE: Duration = Duration::from_millis(100);

/// What `GET /audit` answers.
#[derive(Serialize)]
struct Audit {
    balanced: bool,
    imbalances: Vec<String>,
    #[serde(flatten)]
    books: Ledger,
}

/// `GET /audit` and `GET /metrics`.
pub(crate) fn router(accounts: Accounting) -> Router {
    Router::new().route("/audit", get(audit)).route("/metrics", get(show_metrics)).with_state(accounts)
}

async fn audit(State(accounts): State<Accounting>) -> Response {
    let books = accounts.books();
    let imbalances = books.imbalances();
    json_response(StatusCode::OK, &Audit { balanced: imbalances.is_empty(), imbalances, books })
}

async fn show_metrics(State(accounts): State<Accounting>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&accounts.books())).into_response()
}

/// Asks the program at `url`, else the one that listens as configured, for its books, and prints them. Blocks.
///
/// # Errors
/// When nobody answers, or the books do not balance.
pub(crate) fn run(url: Option<&str>, server: &ServerConfig) -> anyhow::Result<()> {
    let running = Running::new(url, server)?;
    let asked = Instant::now();
    loop {
        let books = ask(&running)?;
        let imbalances = books.imbalances();
        if !imbalances.is_empty() && asked.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
            continue;
        }
        crate::say(&tables(&books))?;
        if !imbalances.is_empty() {
            bail!("the books of {} do not balance: {}", running.url("/"), imbalances.join("; "));
        }
        return crate::say(balanced(&books));
    }
}

fn ask(running: &Running) -> anyhow::Result<Ledger> {
    let url = running.url("/audit");
    let mut answer = running.agent().get(&url).call().with_context(|| {
        format!("{url} does not answer: start The Eye with this configuration, or say with --url where it listens")
    })?;
    let (status, body) = (answer.status(), answer.body_mut().read_to_string());
    let books = body.ok().filter(|_| status == StatusCode::OK).and_then(|body| serde_json::from_str(&body).ok());
    books.with_context(|| {
        format!("{url} answers {status} without any books: ask The Eye itself, of the same version as this program")
    })
}

/// What books say that balance.
fn balanced(books: &Ledger) -> &'static str {
    match books.transport.shared {
        true => "Balanced: every event that this program has taken or had at hand is accounted for.",
        false => "Balanced: every event is accounted for.",
    }
}

/// The books for people.
fn tables(books: &Ledger) -> String {
    let mut text = String::new();
    let sources = books.sources.iter().map(|(name, book)| {
        (name.as_str(), vec![book.received, book.accepted, book.rejected, book.failed, book.waiting])
    });
    table(&mut text, &["SOURCES", "received", "accepted", "rejected", "failed", "waiting"], sources.collect());
    let sinks = books.sinks.iter().map(|(name, book)| {
        let custody = book.custody;
        let balance = [custody.taken, book.delivered, book.rejected, book.failed, custody.missing, custody.pending];
        let further = [custody.at_start, book.duplicates, book.retried, book.in_flight];
        (name.as_str(), [&balance[..], &further].concat())
    });
    let columns = ["SINKS", "taken", "delivered", "rejected", "failed", "missing", "pending"];
    let further = ["at start", "duplicates", "retried", "in flight"];
    table(&mut text, &[&columns[..], &further].concat(), sinks.collect());
    for (name, source) in &books.sources {
        let refusals = source.refusals.iter().map(|(reason, count)| (reason.as_str(), vec![*count]));
        if !source.refusals.is_empty() {
            table(&mut text, &[&format!("REFUSED BY {name}"), "count"], refusals.collect());
        }
    }
    for (name, sink) in books.sinks.iter().filter(|(_, sink)| sink.custody.missing > 0) {
        let missing = sink.custody.missing;
        let _ = writeln!(text, "{missing} events for {name} were lost to damage on the disk; the log says where.\n");
    }
    for (name, sink) in books.sinks.iter().filter(|_| books.transport.shared) {
        let _ = match sink.custody.shared_backlog {
            Some(messages) => {
                writeln!(text, "The stream holds {messages} messages for {name}, whichever program gets them.\n")
            }
            None => writeln!(text, "What the stream holds for {name} is not known now: /readyz says why.\n"),
        };
    }
    text.pop();
    text
}

/// Names on the left, numbers on the right, and an empty line.
fn table(text: &mut String, head: &[&str], rows: Vec<(&str, Vec<u64>)>) {
    let mut lines = vec![head.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()];
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
    use eye_core::accounts::{SinkCounts, TransportTraits};

    use super::*;

    #[test]
    fn the_tables_are_aligned() {
        let books = serde_json::from_str(
            r#"{"sources": {"web": {"received": 1234, "accepted": 1230, "rejected": 4, "failed": 0, "waiting": 0,
                    "refusals": {"name: missing": 4}}},
                "transport": {"durable": true, "shared": false},
                "sinks": {"store": {"taken": 1230, "at_start": 5, "pending": 7, "missing": 3, "delivered": 1220, "duplicates": 20,
                    "rejected": 0, "failed": 0, "retried": 2, "in_flight": 7}}}"#,
        );
        let expected = "\
SOURCES  received  accepted  rejected  failed  waiting
web          1234      1230         4       0        0

SINKS  taken  delivered  rejected  failed  missing  pending  at start  duplicates  retried  in flight
store   1230       1220         0       0        3        7         5          20        2          7

REFUSED BY web  count
name: missing       4

3 events for store were lost to damage on the disk; the log says where.
";
        assert_eq!(tables(&books.unwrap()), expected);
    }

    #[test]
    fn what_a_shared_transport_holds_is_told_and_not_claimed_to_be_accounted_for() {
        let mut sink = SinkCounts::default();
        sink.custody.shared_backlog = Some(10_000);
        let mut books = Ledger {
            sources: Default::default(),
            transport: TransportTraits { durable: true, shared: true },
            sinks: [("store".to_owned(), sink)].into(),
        };
        let holds = "The stream holds 10000 messages for store, whichever program gets them.\n";
        assert!(tables(&books).ends_with(holds), "{}", tables(&books));
        assert!(balanced(&books).contains("this program"), "{}", balanced(&books));
        books.sinks.values_mut().for_each(|sink| sink.custody.shared_backlog = None);
        assert!(tables(&books).contains("is not known now"), "{}", tables(&books));
    }
}
