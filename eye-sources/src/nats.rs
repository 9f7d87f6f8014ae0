//! `type = "nats"`: events from a NATS server.

mod core;
mod dead_letters;
mod jetstream;
mod message;
mod unread;

use std::time::Duration;

use async_trait::async_trait;
use eye_core::context::SourceContext;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::source::{Outlet, Source, SourceConfig, SourceError};
use eye_nats::connection::{Login, Secret, Server, ServerUrls};
use eye_nats::consumer;
use eye_nats::dead_letters::StreamDeadLetters;
use eye_nats::stream::is_name;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::ingestor::{Ingestor, check_pending};

use self::message::Intake;

/// What operators write below `[sources.NAME]` with `type = "nats"`.
#[derive(Clone, Debug, Deserialize)]
pub struct NatsConfig {
    /// Where the server is: `nats://HOST:PORT`, or `tls://HOST:PORT`; several of a cluster are separated by commas. User and
    /// password, or a token, may be in it.
    url: ServerUrls,
    /// How messages are taken.
    mode: Mode,
    /// Core: what to subscribe to, such as `events.>`; at least one. JetStream: which of the stream's subjects to take;
    /// one, or none for all.
    subjects: Vec<String>,
    /// Core: the group whose members share the messages. Empty: every program gets every message.
    #[serde(default)]
    queue_group: String,
    /// JetStream: the stream, which must exist. Required there.
    #[serde(default)]
    stream: String,
    /// JetStream: the name of the consumer, which is made where it is missing. Programs with the same share the
    /// messages. Default `eye`.
    #[serde(default = "eye")]
    durable: String,
    /// JetStream: milliseconds after which a message that this program has said nothing about is delivered again, because
    /// it was killed or lost its connection. Default 30 s.
    #[serde(default = "thirty_seconds", deserialize_with = "eye_core::config::at_least_one")]
    ack_wait_ms: u64,
    /// JetStream: messages at hand at once, below 10000. Default 2048.
    #[serde(default = "two_thousand_forty_eight", deserialize_with = "eye_core::config::at_least_one")]
    max_in_flight: u32,
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
    /// messages are dropped, and requesters told. JetStream: bytes of all messages at hand at once; one of the server's
    /// `max_payload`, where that is more. At least twice `max_body_bytes`. Default 16 MiB.
    #[serde(default = "sixteen_mebibytes", deserialize_with = "eye_core::config::at_least_one")]
    max_pending_bytes: u32,
    /// Milliseconds that a message waits until its events are stored; then it counts as not stored, although they may
    /// still be. Default 10 s.
    #[serde(default = "ten_seconds", deserialize_with = "eye_core::config::at_least_one")]
    receipt_timeout_ms: u64,
}

fn eye() -> String {
    "eye".to_owned()
}

fn two_thousand_forty_eight() -> u32 {
    2048
}

fn one_mebibyte() -> u32 {
    1 << 20
}

fn five_mebibytes() -> u32 {
    5 << 20
}

fn sixteen_mebibytes() -> u32 {
    16 << 20
}

fn thirty_seconds() -> u64 {
    30_000
}

fn ten_seconds() -> u64 {
    10_000
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// At most once: what is published while nobody listens, nobody gets.
    Core,
    /// At least once, from a stream: each message until it is acknowledged.
    Jetstream,
}

impl SourceConfig for NatsConfig {
    const TYPE: &'static str = "nats";

    fn check(&self) -> Vec<BuildError> {
        let pending = check_pending(self.max_pending_bytes, self.max_body_bytes);
        let mode = self.check_mode().into_iter().map(|(key, message)| BuildError::at(key, message));
        pending
            .into_iter()
            .chain(mode)
            .chain(check_subjects(&self.subjects))
            .chain(self.login().check().err())
            .collect()
    }

    async fn build(self, context: &SourceContext) -> Result<Box<dyn Source>, BuildError> {
        let server = Server::new(&self.login()).await?;
        Ok(Box::new(NatsSource { server, config: self, outlet: context.outlet.clone() }))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        match self.mode {
            Mode::Core => None,
            Mode::Jetstream => Some(Box::new(StreamDeadLetters::new(self.login(), &self.stream))),
        }
    }
}

impl NatsConfig {
    fn login(&self) -> Login {
        Login {
            url: self.url.clone(),
            credentials_file: self.credentials_file.clone(),
            token: self.token.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            ca_file: self.ca_file.clone(),
        }
    }

    /// What is for the other mode, or missing in this one.
    fn check_mode(&self) -> Vec<(&'static str, &'static str)> {
        let checks = match self.mode {
            Mode::Core => vec![
                (self.subjects.is_empty(), "subjects", "empty; name at least one, such as \"events.>\""),
                (!self.stream.is_empty(), "stream", "only for mode `jetstream`"),
            ],
            Mode::Jetstream => vec![
                (self.subjects.len() > 1, "subjects", "mode `jetstream` takes one, or none for all"),
                (
                    !self.queue_group.is_empty(),
                    "queue_group",
                    "only for mode `core`; programs that name the same `durable` share the messages",
                ),
                (!is_name(&self.stream), "stream", "must be the name of a stream, without any of `.*>/\\ `"),
                (!is_name(&self.durable), "durable", "must be a name without any of `.*>/\\ `"),
                (self.max_in_flight >= consumer::MAX_ACK_PENDING, "max_in_flight", "must be below 10000"),
            ],
        };
        checks.into_iter().filter(|(is_wrong, ..)| *is_wrong).map(|(_, key, message)| (key, message)).collect()
    }
}

/// As the server checks them: it would only log what is wrong with them.
fn check_subjects(subjects: &[String]) -> impl Iterator<Item = BuildError> {
    let is_token = |token: &str| !token.is_empty() && !token.contains(char::is_whitespace);
    let is_subject = move |subject: &str| {
        let tokens: Vec<&str> = subject.split('.').collect();
        tokens.iter().all(|token| is_token(token)) && !tokens.iter().rev().skip(1).any(|token| *token == ">")
    };
    let rule = "words separated by dots, where `*` is any word, and a last `>` any words";
    let wrong = subjects.iter().enumerate().filter(move |(_, subject)| !is_subject(subject));
    wrong.map(move |(index, _)| BuildError::at(format!("subjects[{index}]"), format!("not a subject: {rule}")))
}

struct NatsSource {
    server: Server,
    config: NatsConfig,
    outlet: Outlet,
}

#[async_trait]
impl Source for NatsSource {
    async fn run(self: Box<Self>, shutdown: CancellationToken) -> Result<(), SourceError> {
        let Self { server, config, outlet } = *self;
        let ingestor = Ingestor {
            outlet,
            max_event_bytes: config.max_event_bytes,
            receipt_timeout: Duration::from_millis(config.receipt_timeout_ms),
        };
        let intake = Intake { ingestor, max_body_bytes: config.max_body_bytes };
        match config.mode {
            Mode::Core => core::run(server, config, intake, shutdown).await,
            Mode::Jetstream => jetstream::run(server, config, intake, shutdown).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
