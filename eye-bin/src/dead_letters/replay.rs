//! Replay of dead letters through `POST /api/event/` of the running program.
//!
//! [`Replay::one`] sends one dead letter like any event, and deletes it once the program has accepted it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use eye_core::dead_letter::DeadLetter;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};

use super::NamedStore;
use crate::running_program::RunningProgram;

/// Attempts for one dead letter while the program answers 503.
const MAX_ATTEMPTS: u32 = 5;

/// The pause before the next attempt: `Retry-After` of the answer, within bounds.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Bytes that are read of an answer.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Characters of an answer in a message.
const MAX_DETAIL_CHARS: usize = 1000;

const NEEDS_A_SOURCE: &str =
    "run the program with an HTTP source (`[sources.web] type = \"http\"`), or name its address by --url";

/// Sends dead letters to the running program.
pub(super) struct Replay(Arc<RunningProgram>);

/// An answer of the program.
struct ReplayAnswer {
    status: u16,
    retry_after: Option<Duration>,
    body: String,
}

impl Replay {
    pub(super) fn new(program: RunningProgram) -> Self {
        Self(Arc::new(program))
    }

    /// Sends a dead letter and deletes it once it is accepted. Returns false if the program refuses it, so that it stays.
    ///
    /// # Errors
    /// Fails if the program accepts no events at all, or the letter cannot be deleted. Further letters would fail as well.
    pub(super) async fn one(&self, store: &NamedStore, letter: DeadLetter) -> anyhow::Result<bool> {
        let id = store.full_id(&letter.id);
        let payload: Arc<[u8]> = letter.payload.into();
        let mut attempts = 1;
        let answer = loop {
            let answer = self.post(payload.clone()).await?;
            if answer.status != 503 || attempts == MAX_ATTEMPTS {
                break answer;
            }
            let wait = answer.retry_after.unwrap_or(DEFAULT_RETRY_AFTER).min(MAX_RETRY_AFTER);
            tracing::info!(
                id,
                detail = answer.detail(),
                wait_s = wait.as_secs(),
                "the program has no capacity, retrying"
            );
            sleep(wait).await;
            attempts += 1;
        };
        match answer.status {
            201 if answer.is_success() => {
                store.delete(&letter.id).await.context("sent, but not deleted; it can be replayed again")
            }
            503 => bail!("{id}: the program has no capacity ({}); replay again later", answer.detail()),
            status @ (404 | 405) => bail!("{id}: answered {status} ({}); {NEEDS_A_SOURCE}", answer.detail()),
            status => {
                tracing::warn!(id, status, detail = answer.detail(), "refused, the dead letter stays");
                Ok(false)
            }
        }
    }

    async fn post(&self, payload: Arc<[u8]>) -> anyhow::Result<ReplayAnswer> {
        let url = self.0.url("/api/event/");
        let program = self.0.clone();
        let sent = spawn_blocking(move || {
            let request = program.agent().post(program.url("/api/event/")).header(CONTENT_TYPE, "application/json");
            let mut response = request.send(&*payload)?;
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).lossy_utf8(true).read_to_string();
            Ok(ReplayAnswer {
                status: response.status().as_u16(),
                retry_after: seconds.map(Duration::from_secs),
                body: body.unwrap_or_else(|error| format!("the body cannot be read: {error}")),
            })
        });
        let answer: Result<ReplayAnswer, ureq::Error> = sent.await.expect("it does not panic, and is not cancelled");
        answer.map_err(|error| anyhow::anyhow!("no answer from {url}: {error}; {NEEDS_A_SOURCE}"))
    }
}

impl ReplayAnswer {
    /// Returns true for The Eye's own success body. On a wrong port, another program may answer 201.
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
