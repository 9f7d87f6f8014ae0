//! The oracle's process: it reads one command per line from stdin and writes one answer per line to stdout.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use uuid::Uuid;

use crate::load::{Clients, LoadProfile};

/// A command of a test.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OracleCommand {
    /// Starts the clients. This is the first command.
    Start { ledger: PathBuf, load: LoadProfile },
    /// Makes the clients send to this URL.
    Send { url: String },
    /// Pauses the clients, and answers when no request is in flight.
    Pause,
    /// Answers with the counts, as the commands above do.
    Count,
    /// Sends one new event.
    SendFresh { url: String, deadline_ms: u64 },
}

/// The result of [`Oracle::send_fresh`](crate::Oracle::send_fresh).
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct FreshEvent {
    /// The id of the event; `None` if it was not acknowledged in time.
    pub id: Option<Uuid>,
    /// The time until the acknowledgement, in milliseconds.
    pub took_ms: u64,
}

/// Runs the oracle until stdin ends.
///
/// An ignored `#[tokio::test(flavor = "multi_thread")]` calls this function and nothing else. [`Oracle::start`] starts
/// it.
///
/// [`Oracle::start`]: crate::Oracle::start
///
/// # Panics
/// Panics if stdin has other content than the commands of an `Oracle`, or if the ledger cannot be written.
pub async fn serve() {
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut clients = None;
    while let Some(line) = commands.next_line().await.expect("stdin can be read") {
        let command = serde_json::from_str(&line).unwrap_or_else(|error| panic!("not a command ({error}): {line}"));
        if let OracleCommand::Start { ledger, load } = command {
            clients = Some(Clients::start(load, &ledger).expect("the ledger can be created"));
            continue;
        }
        let clients = clients.as_ref().expect("the first command is Start");
        match command {
            OracleCommand::Send { url } => clients.retarget(url),
            OracleCommand::Pause => clients.pause().await,
            OracleCommand::SendFresh { url, deadline_ms } => {
                let started = Instant::now();
                let sent = timeout(Duration::from_millis(deadline_ms), clients.send_fresh(&url)).await;
                let took_ms = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
                answer(&FreshEvent { id: sent.ok(), took_ms });
                continue;
            }
            OracleCommand::Start { .. } | OracleCommand::Count => {}
        }
        answer(&clients.counts());
    }
    // The clients run without end.
    std::process::exit(0);
}

/// Writes an answer to a line of its own, beside the output of the test harness.
fn answer(answer: &impl Serialize) {
    let json = serde_json::to_string(answer).expect("all keys are texts");
    let mut stdout = io::stdout().lock();
    // A test that has ended reads no answer.
    let _ = stdout.write_all(format!("\n{json}\n").as_bytes()).and_then(|()| stdout.flush());
}
