//! The built program, started as its users start it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;

use crate::eventually;
use crate::keeper::{Kept, temporary_folder};
use crate::wait::holds_within;

/// How long the program may take to listen, to become ready, or to answer a request.
const DEADLINE: Duration = Duration::from_secs(30);

/// The program, below a temporary folder that holds its configuration and, as its working folder, what it stores in
/// relative paths. Dropping it kills it and removes the folder.
pub struct Eye {
    process: Kept,
    /// Where the program listens since its last start.
    address: String,
    client: Client,
}

impl Eye {
    /// Starts `program` with the configuration `config` (TOML) and waits until it listens.
    ///
    /// The configuration should say `[server] listen = "127.0.0.1:0"`: the port is read from the log. `program` is
    /// `env!("CARGO_BIN_EXE_eye")` in a test of eye-bin. Blocks until the program listens; of the environment,
    /// `RUST_LOG` and `EYE_CONFIG` are not passed on.
    ///
    /// # Panics
    /// With the log when the program ends or does not listen.
    pub fn start(program: impl AsRef<Path>, config: &str) -> Self {
        Self::start_with_environment(program, &[], config)
    }

    /// As [`start`](Self::start), with environment variables, each as `NAME=value`.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with_environment(program: impl AsRef<Path>, environment: &[&str], config: &str) -> Self {
        let folder = temporary_folder("program");
        let config_file = folder.join("eye.toml").display().to_string();
        let mut eye = Self::new(program.as_ref(), environment, &folder, &["run", "--config", &config_file]);
        fs::write(&config_file, config).expect("the folder is ours");
        eye.restart();
        eye
    }

    /// Starts `program` as somebody does who knows nothing of it: without a command and without a configuration. It
    /// listens on its default port, so only one can run at a time; otherwise as [`start`](Self::start).
    ///
    /// # Panics
    /// As [`start`](Self::start).
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
            process: Kept::new(folder, None, &command.into_iter().map(str::to_owned).collect::<Vec<_>>()),
            address: String::new(),
            client: Client::builder().no_proxy().timeout(DEADLINE).build().expect("the client needs nothing"),
        }
    }

    /// Starts the program again after it ended, with the same configuration and folder. With `listen` on port 0 it has
    /// another port than before.
    ///
    /// # Panics
    /// As [`start`](Self::start).
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

    /// The URL of `path_and_query`, which starts with a slash.
    pub fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.address)
    }

    /// The folder the program runs in.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// The number of its process, to signal it or to look at it in `/proc`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> String {
        self.process.pid()
    }

    /// Everything the program has logged, over all starts.
    pub fn logs(&self) -> String {
        self.process.log()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// When it does not within 30 seconds.
    pub async fn wait_ready(&self) {
        eventually("ready", DEADLINE, async || {
            let answer = self.client.get(self.url("/readyz")).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// `GET`: the status and the JSON of the answer.
    ///
    /// # Panics
    /// When there is no answer, or one that is not JSON.
    pub async fn get(&self, path_and_query: &str) -> (u16, Value) {
        json(self.client.get(self.url(path_and_query))).await
    }

    /// `POST /api/event/` of a JSON text: the status and the JSON of the answer.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    pub async fn post(&self, body: impl ToString) -> (u16, Value) {
        let request = self.client.post(self.url("/api/event/")).header(CONTENT_TYPE, "application/json");
        json(request.body(body.to_string())).await
    }

    /// The client behind [`get`](Self::get) and [`post`](Self::post), for other requests and for those that may fail.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the program to end (SIGTERM), waits for it, and returns its exit code: 128 + N when a signal N ended it,
    /// `None` when it still runs at the deadline. Blocks.
    pub fn terminate(&mut self, deadline: Duration) -> Option<i32> {
        self.process.terminate("TERM", deadline)
    }

    /// Waits until the program has ended by itself; otherwise as [`terminate`](Self::terminate). Blocks.
    pub fn wait_end(&mut self, deadline: Duration) -> Option<i32> {
        self.process.wait(deadline)
    }

    /// Kills the program (SIGKILL) and waits until it is gone. Blocks.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl std::fmt::Debug for Eye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eye").field("folder", &self.folder()).finish_non_exhaustive()
    }
}

/// The address in the log line that says where the program listens.
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
