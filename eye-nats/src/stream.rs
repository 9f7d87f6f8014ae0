//! A stream of our own: found as it must be, or made.

use std::error::Error;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, PublishError};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context, ErrorCode};
use futures_util::TryStreamExt;

use crate::settings::{Missing, Setting, differences};

/// Whether the server takes it as the name of a stream or a consumer.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c))
}

/// The settings of a stream of ours: in files, without an end of time, and no room is made for what is new.
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

/// The stream as it must be; it is made where there is none. Settings named in `free` are the operator's affair.
/// `way_out` says what to do about one with other settings.
///
/// # Errors
/// [`Missing::ForGood`] when it has other settings, else [`Missing::Yet`].
pub async fn find(context: &Context, wanted: &Config, free: &[&str], way_out: &str) -> Result<Info, Missing> {
    let name = &wanted.name;
    let yet = |error: String| yet(name, &error);
    let info = match context.get_stream(name).await {
        Ok(stream) => stream.cached_info().clone(),
        Err(error) if is_missing(&error) => {
            let made = context.create_stream(wanted.clone()).await.map_err(|error| yet(error.to_string()))?;
            tracing::info!(stream = name, "made, since it was not there");
            made.cached_info().clone()
        }
        Err(error) => return Err(yet(error.to_string())),
    };
    let checked = |config: &Config| {
        let settings = settings(config).into_iter();
        settings.filter(|(name, _)| !free.contains(name)).collect::<Vec<Setting>>()
    };
    let different = differences(&checked(&info.config), &checked(wanted));
    if different.is_empty() {
        return Ok(info);
    }
    Err(Missing::ForGood(format!("the stream `{name}` has other settings: {different}; {way_out}")))
}

/// How many messages of a subject the stream has, and how it is at that moment.
///
/// # Errors
/// [`Missing::Yet`] when the server does not say.
pub async fn count(context: &Context, name: &str, subject: &str) -> Result<(u64, Info), Missing> {
    let yet = |error: String| yet(name, &error);
    let stream = context.get_stream_no_info(name).await.map_err(|error| yet(error.to_string()))?;
    let mut counts = stream.info_with_subjects(subject).await.map_err(|error| yet(error.to_string()))?;
    let count = counts.try_next().await.map_err(|error| yet(error.to_string()))?;
    Ok((count.map_or(0, |(_, messages)| messages as u64), counts.info))
}

fn yet(name: &str, error: &str) -> Missing {
    Missing::Yet(format!("stream `{name}`: {error}"))
}

/// The settings that say what the stream takes, and how long it is kept.
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

/// Whether the server says that there is no such stream.
pub(crate) fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Whether the server has no room for what was published; nothing else speaks against it.
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
