//! `type = "nats"`: events from a NATS server.

mod connection;
mod core;
mod message;

use std::time::Duration;

use async_trait::async_trait;
use eye_core::refusals::Refusals;
use eye_core::registry::BuildError;
use eye_core::source::{Outlet, Source, SourceConfig, SourceError};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::handover::Handover;

use self::connection::{Login, Secret, ServerUrl};
use self::message::Intake;

/// What operators write below `[sources.NAME]` with `type = "nats"`.
#[derive(Clone, Debug, Deserialize)]
pub struct NatsConfig {
    /// Where the server is: `nats://HOST:PORT`, or `tls://HOST:PORT`. User and password, or a token, may be in it.
    url: ServerUrl,
    /// How messages are taken.
    mode: Mode,
    /// What to subscribe to, such as `events.>`. At least one.
    subjects: Vec<String>,
    /// Core: the group whose members share the messages. Empty: every program gets every message.
    #[serde(default)]
    queue_group: String,
    /// A file with a JWT and its key, as `nsc` makes it. Empty: none.
    #[serde(default)]
    credentials_file: String,
    /// Empty: none.
    #[serde(default)]
    token: Secret,
    /// With `password`, where they are not in the URL. Empty: none.
    #[serde(default)]
    user: String,
    /// Of `user`.
    #[serde(default)]
    password: Secret,
    /// A PEM file with the certificates that the server's must be signed by. Empty: those of the system.
    #[serde(default)]
    ca_file: String,
    /// Bytes of one message at most; a larger one is refused. Default 5 MiB.
    #[serde(default = "five_mebibytes", deserialize_with = "eye_core::config::at_least_one")]
    max_body_bytes: u32,
    /// Bytes of one event at most; a larger one is refused. Default 1 MiB.
    #[serde(default = "one_mebibyte", deserialize_with = "eye_core::config::at_least_one")]
    max_event_bytes: u32,
    /// Core: bytes of all messages that are being read or handed on at once, counting 1 KiB more for each; beyond,
    /// messages are dropped, and requesters told. At least twice `max_body_bytes`. Default 64 MiB.
    #[serde(default = "sixty_four_mebibytes", deserialize_with = "eye_core::config::at_least_one")]
    max_pending_bytes: u32,
    /// Milliseconds that a message waits until its events are stored; then it counts as not stored, although they may
    /// still be. Default 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "eye_core::config::at_least_one")]
    receipt_timeout_ms: u64,
}

fn one_mebibyte() -> u32 {
    1 << 20
}

fn five_mebibytes() -> u32 {
    5 << 20
}

fn sixty_four_mebibytes() -> u32 {
    64 << 20
}

fn ten_seconds() -> u64 {
    10_000
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Mode {
    /// At most once: what is published while nobody listens, nobody gets.
    Core,
}

impl TryFrom<String> for Mode {
    type Error = &'static str;

    fn try_from(mode: String) -> Result<Self, Self::Error> {
        match mode.as_str() {
            "core" => Ok(Self::Core),
            "jetstream" => Err("mode `jetstream` is not there yet; use `core`"),
            _ => Err("unknown mode; use `core`"),
        }
    }
}

impl SourceConfig for NatsConfig {
    const TYPE: &'static str = "nats";

    async fn build(self) -> Result<Box<dyn Source>, BuildError> {
        if self.max_pending_bytes / 2 < self.max_body_bytes {
            return Err(BuildError(format!(
                "max_pending_bytes is {}, but must be at least twice max_body_bytes, which is {}",
                self.max_pending_bytes, self.max_body_bytes
            )));
        }
        check_subjects(&self.subjects)?;
        let login = Login {
            credentials_file: &self.credentials_file,
            token: &self.token,
            user: &self.user,
            password: &self.password,
            ca_file: &self.ca_file,
        };
        let server = connection::Server::new(&self.url, &login).await?;
        Ok(Box::new(NatsSource { server, config: self }))
    }
}

/// As the server checks them: it would only log what is wrong with them.
fn check_subjects(subjects: &[String]) -> Result<(), BuildError> {
    if subjects.is_empty() {
        return Err(BuildError("subjects is empty: name one at least, such as \"events.>\"".to_owned()));
    }
    for subject in subjects {
        let tokens: Vec<&str> = subject.split('.').collect();
        let is_token = |token: &str| !token.is_empty() && !token.contains(char::is_whitespace);
        if !tokens.iter().all(|token| is_token(token)) || tokens.iter().rev().skip(1).any(|token| *token == ">") {
            let rule = "words separated by dots, where `*` is any word, and a last `>` any words";
            return Err(BuildError(format!("subjects: {subject:?} is no subject: {rule}")));
        }
    }
    Ok(())
}

struct NatsSource {
    server: connection::Server,
    config: NatsConfig,
}

#[async_trait]
impl Source for NatsSource {
    async fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Result<(), SourceError> {
        let Self { server, config } = *self;
        let handover = Handover {
            refusals: Refusals::new(outlet.health().name()),
            outlet,
            max_event_bytes: config.max_event_bytes,
            receipt_timeout: Duration::from_millis(config.receipt_timeout_ms),
        };
        let intake = Intake { handover, max_body_bytes: config.max_body_bytes };
        match config.mode {
            Mode::Core => core::run(server, config, intake, shutdown).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
