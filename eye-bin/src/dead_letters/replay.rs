//! A dead letter on its way back: through the front door, as any other event.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use eye_core::dead_letter::DeadLetter;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};

use super::Keeper;
use crate::running_program::RunningProgram;

/// How often one is sent while the program has no room, before replaying ends.
const TRIES: u32 = 5;

/// The wait before the next try: what the program asks for, within bounds.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Bytes of an answer that are read, and characters of it that are told.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
const MAX_DETAIL_CHARS: usize = 1000;

const NEEDS_A_SOURCE: &str = "replaying needs the program to run with an HTTP source (`[sources.web] type = \"http\"`); \
                              --url says where it is";

/// Sends dead letters to the running program.
pub(super) struct Replay(Arc<RunningProgram>);

/// What the program said.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    body: String,
}

impl Replay {
    pub(super) fn new(program: RunningProgram) -> Self {
        Self(Arc::new(program))
    }

    /// Sends a dead letter, and removes it once all of it was taken; false when the program refuses it, so that it stays.
    ///
    /// # Errors
    /// When the program takes nothing at all, or the letter cannot be removed: others would fare no better.
    pub(super) async fn one(&self, keeper: &Keeper, letter: DeadLetter) -> anyhow::Result<bool> {
        let id = keeper.full_id(&letter.id);
        let payload: Arc<[u8]> = letter.payload.into();
        let mut tries = 1;
        let answer = loop {
            let answer = self.post(payload.clone()).await?;
            if answer.status != 503 || tries == TRIES {
                break answer;
            }
            let wait = answer.retry_after.unwrap_or(DEFAULT_RETRY_AFTER).min(MAX_RETRY_AFTER);
            tracing::info!(id, detail = answer.detail(), wait_s = wait.as_secs(), "no room now, trying again");
            sleep(wait).await;
            tries += 1;
        };
        match answer.status {
            201 if answer.is_success() => {
                keeper.delete(&letter.id).await.context("sent, but not removed; it may be replayed again")
            }
            503 => bail!("{id}: the program has no room ({}); replay again later", answer.detail()),
            status @ (404 | 405) => bail!("{id}: answered {status} ({}); {NEEDS_A_SOURCE}", answer.detail()),
            status => {
                tracing::warn!(id, status, detail = answer.detail(), "not taken, so it stays");
                Ok(false)
            }
        }
    }

    async fn post(&self, payload: Arc<[u8]>) -> anyhow::Result<Answer> {
        let url = self.0.url("/api/event/");
        let program = self.0.clone();
        let sent = spawn_blocking(move || {
            let request = program.agent().post(program.url("/api/event/")).header(CONTENT_TYPE, "application/json");
            let mut response = request.send(&*payload)?;
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).lossy_utf8(true).read_to_string();
            Ok(Answer {
                status: response.status().as_u16(),
                retry_after: seconds.map(Duration::from_secs),
                body: body.unwrap_or_else(|error| format!("its body cannot be read: {error}")),
            })
        });
        let answer: Result<Answer, ureq::Error> = sent.await.expect("it does not panic, and is not cancelled");
        answer.map_err(|error| anyhow::anyhow!("no answer from {url}: {error}; {NEEDS_A_SOURCE}"))
    }
}

impl Answer {
    /// Whether it says what The Eye says: on a wrong port, anybody may answer 201.
    fn is_success(&self) -> bool {
        #[derive(Deserialize)]
        struct Body {
            success: bool,
        }
        serde_json::from_str(&self.body).is_ok_and(|Body { success }| success)
    }

    fn detail(&self) -> String {
        self.body.trim().chars().take(MAX_DETAIL_CHARS).collect()
    }
}
