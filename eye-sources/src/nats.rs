//! `type = "nats"`: events from a NATS server.
//!
//! [`core`] subscribes and is at most once; [`jetstream`] is a durable consumer of a stream and at least once. Both parse messages in
//! [`message`].

mod core;
mod drops;
mod jetstream;
mod message;
mod refused;

use std::time::Duration;

use async_trait::async_trait;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::source::{Outlet, Source, SourceConfig, SourceContext, SourceError};
use eye_nats::connection::{ConnectionSettings, Connector, Secret, ServerUrls};
use eye_nats::connection_settings;
use eye_nats::dead_letters::DeadLetterStream;
use eye_nats::durable;
use eye_nats::stream::is_name;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::ingestor::{Ingestor, check_pending};

use self::message::MessageIngestor;

/// The keys below `[sources.NAME]` with `type = "nats"`.
#[derive(Clone, Debug, Deserialize)]
pub struct NatsConfig {
    /// `nats://HOST:PORT` or `tls://HOST:PORT`; several servers of a cluster are separated by commas. User and password, or a
    /// token, may stand in it.
    url: ServerUrls,
    /// The delivery guarantee.
    mode: NatsMode,
    /// Core: subjects to subscribe to, such as `events.>`; at least one. JetStream: the subject of the stream to take; one, or none
    /// for all.
    subjects: Vec<String>,
    /// Core: the group whose members share the messages. Empty: every program gets every message.
    #[serde(default)]
    queue_group: String,
    /// JetStream: the stream, which must exist. Required there.
    #[serde(default)]
    stream: String,
    /// JetStream: the name of the consumer, which is created when it is missing. Programs with the same name share the
    /// messages. Default `eye`.
    #[serde(default = "default_durable")]
    durable: String,
    /// JetStream: milliseconds after which the messages of a program that was killed or lost its connection are delivered again.
    /// Default 30 s.
    #[serde(default = "number::<_, 30_000>", deserialize_with = "eye_core::config::at_least_one")]
    ack_wait_ms: u64,
    /// JetStream: messages in flight at most, below 10000. Default 2048.
    #[serde(default = "number::<_, 2048>", deserialize_with = "eye_core::config::at_least_one")]
    max_in_flight: u32,
    /// A file with a JWT and its key, as `nsc` writes it. Empty: none.
    #[serde(default)]
    credentials_file: String,
    /// Empty: none.
    #[serde(default)]
    token: Secret,
    /// With `password`, an alternative to the URL. Empty: none.
    #[serde(default)]
    user: String,
    /// The password of `user`.
    #[serde(default)]
    password: Secret,
    /// A PEM file with the certificate authorities of the server's certificate. Empty: those of the system.
    #[serde(default)]
    ca_file: String,
    /// Bytes of one message at most; a larger one is refused. Default 5 MiB.
    #[serde(default = "number::<_, { 5 << 20 }>", deserialize_with = "eye_core::config::at_least_one")]
    max_body_bytes: u32,
    /// Bytes of one event at most; a larger one is refused. Default 1 MiB.
    #[serde(default = "number::<_, { 1 << 20 }>", deserialize_with = "eye_core::config::at_least_one")]
    max_event_bytes: u32,
    /// Bytes of messages in flight at most. Core: each message counts 1 KiB more; messages beyond the limit are dropped, and
    /// requesters told. JetStream: one message of the server's `max_payload` may exceed it. At least twice `max_body_bytes`. Default
    /// 16 MiB.
    #[serde(default = "number::<_, { 16 << 20 }>", deserialize_with = "eye_core::config::at_least_one")]
    max_pending_bytes: u32,
    /// Milliseconds until a message whose events are not stored counts as failed, although they may still be stored. Default
    /// 10 s.
    #[serde(default = "number::<_, 10_000>", deserialize_with = "eye_core::config::at_least_one")]
    receipt_timeout_ms: u64,
}

fn default_durable() -> String {
    "eye".to_owned()
}

/// Returns the default of a number.
fn number<T: From<u32>, const DEFAULT: u32>() -> T {
    DEFAULT.into()
}

/// The delivery guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NatsMode {
    /// At most once: messages published while the source is not connected are lost.
    Core,
    /// At least once, from a stream: each message is delivered until it is acknowledged.
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
            .chain(self.connection().check().err())
            .collect()
    }

    async fn build(self, context: &SourceContext) -> Result<Box<dyn Source>, BuildError> {
        let connector = Connector::new(&self.connection()).await?;
        Ok(Box::new(NatsSource { connector, config: self, outlet: context.outlet.clone() }))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        match self.mode {
            NatsMode::Core => None,
            NatsMode::Jetstream => Some(Box::new(self.dead_letter_stream())),
        }
    }
}

impl NatsConfig {
    fn connection(&self) -> ConnectionSettings {
        connection_settings!(self)
    }

    fn dead_letter_stream(&self) -> DeadLetterStream {
        DeadLetterStream::new(self.connection(), &self.stream)
    }

    fn ack_wait(&self) -> Duration {
        Duration::from_millis(self.ack_wait_ms)
    }

    /// Returns the faults of keys that belong to the other mode, or are missing in this one.
    fn check_mode(&self) -> Vec<(&'static str, &'static str)> {
        let checks = match self.mode {
            NatsMode::Core => vec![
                (self.subjects.is_empty(), "subjects", "empty; name at least one, such as \"events.>\""),
                (!self.stream.is_empty(), "stream", "only for mode `jetstream`"),
            ],
            NatsMode::Jetstream => vec![
                (self.subjects.len() > 1, "subjects", "mode `jetstream` takes one, or none for all"),
                (
                    !self.queue_group.is_empty(),
                    "queue_group",
                    "only for mode `core`; programs that name the same `durable` share the messages",
                ),
                (!is_name(&self.stream), "stream", "must be the name of a stream, without any of `.*>/\\ `"),
                (!is_name(&self.durable), "durable", "must be a name without any of `.*>/\\ `"),
                (self.max_in_flight >= durable::MAX_ACK_PENDING, "max_in_flight", "must be below 10000"),
            ],
        };
        checks.into_iter().filter(|(is_wrong, ..)| *is_wrong).map(|(_, key, message)| (key, message)).collect()
    }
}

/// Checks subjects as the server does. The server would only log the faults.
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
    connector: Connector,
    config: NatsConfig,
    outlet: Outlet,
}

#[async_trait]
impl Source for NatsSource {
    async fn run(self: Box<Self>, shutdown: CancellationToken) -> Result<(), SourceError> {
        let Self { connector, config, outlet } = *self;
        let ingestor = Ingestor {
            outlet,
            max_event_bytes: config.max_event_bytes,
            receipt_timeout: Duration::from_millis(config.receipt_timeout_ms),
        };
        let ingestor = MessageIngestor { ingestor, max_body_bytes: config.max_body_bytes };
        match config.mode {
            NatsMode::Core => core::run(connector, config, ingestor, shutdown).await,
            NatsMode::Jetstream => jetstream::run(connector, config, ingestor, shutdown).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
