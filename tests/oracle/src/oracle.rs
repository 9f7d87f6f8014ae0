//! The test's end of the connection to the oracle's process: [`Oracle`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::load::{LoadCounts, LoadProfile};
use crate::process::{FreshEvent, OracleCommand};
use crate::reconcile::{Reconciliation, reconcile};

/// A running oracle. Dropping it kills its process and removes the ledger.
///
/// # Panics
/// Every method panics if the process has ended.
#[derive(Debug)]
pub struct Oracle {
    /// The drop kills the process.
    _process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    folder: TempDir,
}

impl Oracle {
    /// Starts the process, with clients that wait for [`send_to`](Self::send_to).
    ///
    /// `test` is the full name of the ignored test of this test program that calls [`serve`](crate::serve).
    pub async fn start(test: &str, load: LoadProfile) -> Self {
        let program = std::env::current_exe().expect("a program knows its path");
        let mut command = tokio::process::Command::new(program);
        command.args(["--ignored", "--exact", test, "--nocapture"]).kill_on_drop(true);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program can be started again");
        let commands = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut oracle = Self { _process: process, commands, answers, folder };
        let ledger = oracle.ledger();
        oracle.send_command(&OracleCommand::Start { ledger, load }).await;
        oracle
    }

    /// Returns the path of the ledger.
    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Makes the clients send to `url`, such as `http://127.0.0.1:8000/api/event/`.
    pub async fn send_to(&mut self, url: &str) {
        let _: LoadCounts = self.ask(&OracleCommand::Send { url: url.to_owned() }).await;
    }

    /// Pauses the clients until the next [`send_to`](Self::send_to). Returns when the program has answered all requests
    /// and the ledger has their outcomes.
    pub async fn pause(&mut self) -> LoadCounts {
        self.ask(&OracleCommand::Pause).await
    }

    /// Returns the progress of the load.
    pub async fn counts(&mut self) -> LoadCounts {
        self.ask(&OracleCommand::Count).await
    }

    /// Sends one new event, repeatedly, until it is acknowledged or the deadline expires.
    pub async fn send_fresh(&mut self, url: &str, deadline: Duration) -> FreshEvent {
        let deadline_ms = deadline.as_millis().try_into().expect("the deadline fits into 64 bits");
        self.ask(&OracleCommand::SendFresh { url: url.to_owned(), deadline_ms }).await
    }

    /// Compares the ledger with the database; see [`reconcile`]. Pause the load first: the ledger must not be newer
    /// than the rows.
    ///
    /// # Panics
    /// Panics if the ledger cannot be read.
    pub fn reconcile(&self, stored: &[(Uuid, u64)], dead_letters: &HashSet<Uuid>) -> Reconciliation {
        reconcile(&Ledger::read(&self.ledger()).expect("the process writes the ledger"), stored, dead_letters)
    }

    async fn send_command(&mut self, command: &OracleCommand) {
        let line = serde_json::to_string(command).expect("all keys are texts") + "\n";
        self.commands.write_all(line.as_bytes()).await.expect("the oracle has ended");
    }

    async fn ask<T: DeserializeOwned>(&mut self, command: &OracleCommand) -> T {
        self.send_command(command).await;
        loop {
            let line = self.answers.next_line().await.expect("a pipe can be read").expect("the oracle has ended");
            // The test harness prints the other lines.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|error| panic!("not an answer ({error}): {line}"));
            }
        }
    }
}
