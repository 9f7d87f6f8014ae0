//! The process's side of the talk: a command a line on stdin, an answer a line on stdout.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use uuid::Uuid;

use crate::load::{Clients, Load};

/// What a test may ask for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// First of all.
    Start { ledger: PathBuf, load: Load },
    /// Send to this URL from now on.
    Send { url: String },
    /// Send no more, and answer when nothing is on its way.
    Pause,
    /// Only answer with the counts, as all of the above do.
    Count,
    /// Send one event of its own.
    Fresh { url: String, deadline_ms: u64 },
}

/// An event that was sent on request.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Fresh {
    /// `None`: it was not acknowledged in time.
    pub id: Option<Uuid>,
    /// Milliseconds until it was.
    pub took_ms: u64,
}

/// Is the oracle until stdin ends.
///
/// For a `#[tokio::test(flavor = "multi_thread")]` that is ignored and does nothing else: [`Oracle::start`] starts it.
///
/// [`Oracle::start`]: crate::Oracle::start
///
/// # Panics
/// When stdin does not have the commands of an `Oracle`, or the ledger cannot be written.
pub async fn serve() {
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut clients = None;
    while let Some(line) = commands.next_line().await.expect("stdin can be read") {
        let command = serde_json::from_str(&line).unwrap_or_else(|error| panic!("no command ({error}): {line}"));
        if let Command::Start { ledger, load } = command {
            clients = Some(Clients::start(load, &ledger).expect("the ledger can be made"));
            continue;
        }
        let clients = clients.as_ref().expect("the first command is to start");
        match command {
            Command::Send { url } => clients.retarget(url),
            Command::Pause => clients.pause().await,
            Command::Fresh { url, deadline_ms } => {
                let started = Instant::now();
                let sent = timeout(Duration::from_millis(deadline_ms), clients.send_fresh(&url)).await;
                let took_ms = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
                answer(&Fresh { id: sent.ok(), took_ms });
                continue;
            }
            Command::Start { .. } | Command::Count => {}
        }
        answer(&clients.counts());
    }
    // The clients do not end by themselves.
    std::process::exit(0);
}

/// On a line of its own, whatever the test's program writes there itself.
fn answer(answer: &impl Serialize) {
    let json = serde_json::to_string(answer).expect("it has no keys but texts");
    let mut stdout = io::stdout().lock();
    // Who asks no more needs no answer.
    let _ = stdout.write_all(format!("\n{json}\n").as_bytes()).and_then(|()| stdout.flush());
}
