//! Streams that belong to The Eye: created when missing, and checked for settings drift.
//!
//! [`ensure`] is the entry point. A stream with other settings is a permanent error and is left unchanged: an operator may have
//! set them on purpose.

use std::error::Error;
use std::fmt::Display;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, PublishError};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context, ErrorCode};
use futures_util::TryStreamExt;

use crate::settings::{ProvisionError, Setting, drift};

/// Returns true for a valid name of a stream or consumer.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c))
}

/// Returns the base settings of The Eye's streams: stored in files, without a maximum age, and full instead of evicting old
/// messages.
pub fn config(name: &str, subject: String, retention: RetentionPolicy) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![subject],
        retention,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        ..Config::default()
    }
}

/// Returns the state of the stream, which is created when it is missing. Settings named in `free` may differ from `required`.
/// `way_out` tells the operator how to repair a drift.
///
/// # Errors
/// [`ProvisionError::Permanent`] when other settings differ, else [`ProvisionError::Temporary`].
pub async fn ensure(
    context: &Context,
    required: &Config,
    free: &[&str],
    way_out: &str,
) -> Result<Info, ProvisionError> {
    let name = &required.name;
    let info = match context.get_stream(name).await {
        Ok(stream) => stream.cached_info().clone(),
        Err(error) if is_not_found(&error) => {
            let created = context.create_stream(required.clone()).await.map_err(temporary(name))?;
            tracing::info!(stream = name, "created the missing stream");
            created.cached_info().clone()
        }
        Err(error) => return Err(temporary(name)(error)),
    };
    let checked = |config: &Config| {
        let settings = settings(config).into_iter();
        settings.filter(|(name, _)| !free.contains(name)).collect::<Vec<Setting>>()
    };
    let drift = drift(&checked(&info.config), &checked(required));
    if drift.is_empty() {
        return Ok(info);
    }
    Err(ProvisionError::Permanent(format!("the stream `{name}` has other settings: {drift}; {way_out}")))
}

/// Counts the messages of a subject. Returns the count and the state of the stream at that moment.
///
/// # Errors
/// [`ProvisionError::Temporary`] when the server does not answer.
pub async fn count(context: &Context, name: &str, subject: &str) -> Result<(u64, Info), ProvisionError> {
    let stream = context.get_stream_no_info(name).await.map_err(temporary(name))?;
    let mut counts = stream.info_with_subjects(subject).await.map_err(temporary(name))?;
    let count = counts.try_next().await.map_err(temporary(name))?;
    Ok((count.map_or(0, |(_, messages)| messages as u64), counts.info))
}

pub(crate) fn temporary<E: Display>(name: &str) -> impl Fn(E) -> ProvisionError {
    move |error| ProvisionError::Temporary(format!("stream `{name}`: {error}"))
}

/// Returns the settings that decide which messages the stream accepts and how long it stores them.
fn settings(config: &Config) -> Vec<Setting> {
    vec![
        ("subjects", format!("{:?}", config.subjects)),
        ("retention", format!("{:?}", config.retention)),
        ("storage", format!("{:?}", config.storage)),
        ("discard", format!("{:?}", config.discard)),
        ("num_replicas", config.num_replicas.to_string()),
        ("max_bytes", config.max_bytes.to_string()),
        ("max_msgs", config.max_messages.to_string()),
        ("max_msgs_per_subject", config.max_messages_per_subject.to_string()),
        ("max_msg_size", config.max_message_size.to_string()),
        ("max_consumers", config.max_consumers.to_string()),
        ("max_age", format!("{:?}", config.max_age)),
        ("duplicate_window", format!("{:?}", config.duplicate_window)),
        ("no_ack", config.no_ack.to_string()),
        ("sealed", config.sealed.to_string()),
        ("deny_delete", config.deny_delete.to_string()),
        ("deny_purge", config.deny_purge.to_string()),
        ("allow_rollup_hdrs", config.allow_rollup.to_string()),
        ("mirror", config.mirror.is_some().to_string()),
        ("sources", config.sources.as_ref().is_some_and(|sources| !sources.is_empty()).to_string()),
    ]
}

/// Returns true when the server answers that the stream does not exist.
pub(crate) fn is_not_found(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Returns true when the server refused a message only because a storage limit is reached.
pub fn is_full(error: &PublishError) -> bool {
    let code =
        error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()).map(jetstream::Error::error_code);
    let full = [
        ErrorCode::STREAM_STORE_FAILED,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
    ];
    code.is_some_and(|code| full.contains(&code))
}
