//! The test's side of the talk.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use uuid::Uuid;

use crate::event::Row;
use crate::ledger::Ledger;
use crate::load::{Counts, Load};
use crate::process::{Command, Fresh};
use crate::verify::{Verdict, verify};

/// The oracle's process. Dropping it kills it and removes the ledger.
///
/// # Panics
/// Every method does when the process is gone.
#[derive(Debug)]
pub struct Oracle {
    /// Killed when it is dropped.
    _process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    folder: TempDir,
}

impl Oracle {
    /// Starts the process, with clients that wait for [`send_to`](Self::send_to).
    ///
    /// `test` is the full name of the ignored test, in this very program, that calls [`serve`](crate::serve).
    pub async fn start(test: &str, load: Load) -> Self {
        let program = std::env::current_exe().expect("a program knows where it is");
        let mut command = tokio::process::Command::new(program);
        command.args(["--ignored", "--exact", test, "--nocapture"]).kill_on_drop(true);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it can be started again");
        let commands = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut oracle = Self { _process: process, commands, answers, folder };
        let ledger = oracle.ledger();
        oracle.tell(&Command::Start { ledger, load }).await;
        oracle
    }

    /// Where the ledger is.
    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Lets the clients send to `url`, such as `http://127.0.0.1:8000/api/event/`, from now on.
    pub async fn send_to(&mut self, url: &str) {
        let _: Counts = self.ask(&Command::Send { url: url.to_owned() }).await;
    }

    /// Stops the clients until the next [`send_to`](Self::send_to); returns when nothing is on its way any more, which
    /// takes as long as the program takes to answer, and the ledger knows all.
    pub async fn pause(&mut self) -> Counts {
        self.ask(&Command::Pause).await
    }

    /// How far the load is.
    pub async fn counts(&mut self) -> Counts {
        self.ask(&Command::Count).await
    }

    /// Sends one event of its own, as often as need be, until it is acknowledged or the deadline is over.
    pub async fn send_fresh(&mut self, url: &str, deadline: Duration) -> Fresh {
        let deadline_ms = deadline.as_millis().try_into().expect("no deadline is so long");
        self.ask(&Command::Fresh { url: url.to_owned(), deadline_ms }).await
    }

    /// Compares the ledger with `rows`, all that the database has; `dead` are the ids of the dead letters. While the
    /// load is paused: else the rows are older than what the ledger knows.
    ///
    /// # Panics
    /// When the ledger cannot be read.
    pub fn verify(&self, rows: &[Row], dead: &HashSet<Uuid>) -> Verdict {
        verify(&Ledger::read(&self.ledger()).expect("it was written by the process"), rows, dead)
    }

    async fn tell(&mut self, command: &Command) {
        let line = serde_json::to_string(command).expect("it has no keys but texts") + "\n";
        self.commands.write_all(line.as_bytes()).await.expect("the oracle is gone");
    }

    async fn ask<T: DeserializeOwned>(&mut self, command: &Command) -> T {
        self.tell(command).await;
        loop {
            let line = self.answers.next_line().await.expect("a pipe can be read").expect("the oracle is gone");
            // The others are the test program's own.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|error| panic!("no answer ({error}): {line}"));
            }
        }
    }
}
