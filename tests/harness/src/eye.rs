//! The built program as a process: started, queried over HTTP, stopped and killed. [`Eye`] is the type to read.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use crate::eventually;
use crate::process_guard::{GuardedProcess, temporary_folder};
use crate::wait::holds_within;

/// The time limit for the program to listen, to become ready, or to answer a request.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running program in a temporary folder, which holds its configuration and everything that it stores in relative
/// paths. Dropping it kills the program and removes the folder.
pub struct Eye {
    process: GuardedProcess,
    /// The listen address since the last start.
    address: String,
    client: Client,
}

impl Eye {
    /// Starts `program` with the configuration `config` (TOML) and blocks until it listens.
    ///
    /// The configuration should contain `[server] listen = "127.0.0.1:0"`, since the port is read from the log. A test
    /// of eye-bin passes `env!("CARGO_BIN_EXE_eye")` as `program`. `RUST_LOG` and `EYE_CONFIG` are removed from its
    /// environment.
    ///
    /// # Panics
    /// Panics with the log if the program ends or does not listen.
    pub fn start(program: impl AsRef<Path>, config: &str) -> Self {
        Self::start_with_environment(program, &[], config)
    }

    /// Starts the program as [`start`](Self::start) does, with environment variables, each as `NAME=value`.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_with_environment(program: impl AsRef<Path>, environment: &[&str], config: &str) -> Self {
        let folder = temporary_folder("program");
        let config_file = folder.join("eye.toml").display().to_string();
        let mut eye = Self::new(program.as_ref(), environment, &folder, &["run", "--config", &config_file]);
        fs::write(&config_file, config).expect("the test owns the folder");
        eye.restart();
        eye
    }

    /// Starts `program` as a new user does, without command and configuration. It listens on its default port, so only
    /// one such program can run at a time. Everything else is as with [`start`](Self::start).
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn start_without_config(program: impl AsRef<Path>) -> Self {
        let mut eye = Self::new(program.as_ref(), &[], &temporary_folder("program"), &[]);
        eye.restart();
        eye
    }

    fn new(program: &Path, environment: &[&str], folder: &Path, arguments: &[&str]) -> Self {
        let program = program.display().to_string();
        let cleared = ["env", "-u", "RUST_LOG", "-u", "EYE_CONFIG"];
        let command = [&cleared, environment, &[&program], arguments, &["--log-format", "json"]].concat();
        Self {
            process: GuardedProcess::new(folder, None, &command.into_iter().map(str::to_owned).collect::<Vec<_>>()),
            address: String::new(),
            client: Client::builder().no_proxy().timeout(DEADLINE).build().expect("the client has valid options"),
        }
    }

    /// Starts the program again after its end, with the same configuration and folder. With port 0 in `listen` it gets
    /// a new port.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub fn restart(&mut self) {
        let logged = self.process.log().len();
        self.process.start();
        let mut address = None;
        holds_within(DEADLINE, || {
            address = listening_address(&self.process.log()[logged..]);
            address.is_some() || self.process.has_ended()
        });
        self.address = address.unwrap_or_else(|| panic!("the program does not listen; its log:\n{}", self.logs()));
    }

    /// Returns the URL of `path_and_query`, which starts with a slash.
    pub fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.address)
    }

    /// Returns the working folder of the program.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns the ID of its process, for signals and `/proc`.
    ///
    /// # Panics
    /// Panics if the program does not run.
    pub fn pid(&self) -> String {
        self.process.pid()
    }

    /// Returns the peak of its resident memory in bytes.
    ///
    /// # Panics
    /// Panics if the program does not run.
    pub fn peak_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the program runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        peak.expect("Linux reports kB") * 1024
    }

    /// Returns the log of the program over all its starts.
    pub fn logs(&self) -> String {
        self.process.log()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// Panics if that takes more than 30 seconds.
    pub async fn wait_ready(&self) {
        eventually("ready", DEADLINE, async || {
            let answer = self.client.get(self.url("/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Sends a `GET` and returns status and JSON of the answer.
    ///
    /// # Panics
    /// Panics if there is no answer, or if it is not JSON.
    pub async fn get(&self, path_and_query: &str) -> (u16, Value) {
        json(self.client.get(self.url(path_and_query))).await
    }

    /// Sends a JSON text by `POST /api/event/` and returns status and JSON of the answer.
    ///
    /// # Panics
    /// Panics as [`get`](Self::get) does.
    pub async fn post(&self, body: impl ToString) -> (u16, Value) {
        let request = self.client.post(self.url("/api/event/")).header(CONTENT_TYPE, "application/json");
        json(request.body(body.to_string())).await
    }

    /// Returns the HTTP client, for other requests than [`get`](Self::get) and [`post`](Self::post), and for those that
    /// may fail.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends SIGTERM, blocks until the program ends, and returns its exit code: 128 + N after signal N, `None` if it
    /// still runs at the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.process.terminate("TERM", deadline)
    }

    /// Blocks until the program ends by itself, and returns its exit code as [`terminate`](Self::terminate) does.
    pub fn wait_end(&mut self, deadline: Duration) -> Option<i32> {
        self.process.wait(deadline)
    }

    /// Kills the program (SIGKILL) and blocks until it has ended.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl std::fmt::Debug for Eye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eye").field("folder", &self.folder()).finish_non_exhaustive()
    }
}

/// Returns the address from the log line `listening`.
fn listening_address(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut fields = lines.map(|mut line| line["fields"].take());
    let listening = fields.find(|fields| fields["message"] == "listening")?;
    listening["address"].as_str().map(str::to_owned)
}

async fn json(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.expect("the program answers");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("the answer is complete");
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}, not JSON ({error}): {text}"));
    (status, json)
}
