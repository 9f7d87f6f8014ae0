//! Durable consumers: created when missing, and checked for settings drift.
//!
//! [`ensure`] is the entry point. As for streams, a consumer with other settings is a permanent error and is left unchanged.

use std::fmt::Display;

use async_nats::jetstream::consumer::{self, Info, IntoConsumerConfig, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{Context, ErrorCode};

use crate::settings::{ProvisionError, Setting, drift};

/// Limit of messages that all programs on one consumer together may have in flight. A setting of the consumer, therefore the
/// same for all of them.
pub const MAX_ACK_PENDING: u32 = 10_000;

/// Returns the state of the consumer, which is created when it is missing. `way_out` tells the operator how to repair a drift.
///
/// # Errors
/// [`ProvisionError::Permanent`] when its settings differ from `required`, else [`ProvisionError::Temporary`].
pub async fn ensure(
    context: &Context,
    stream_name: &str,
    name: &str,
    required: &pull::Config,
    way_out: &str,
) -> Result<Info, ProvisionError> {
    let temporary = |error: &dyn Display| temporary(stream_name, name, error);
    let stream = context.get_stream_no_info(stream_name).await.map_err(|error| temporary(&error))?;
    let info = match stream.consumer_info(name).await {
        Ok(info) => info,
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
            let created = stream.create_consumer(required.clone()).await.map_err(|error| temporary(&error))?;
            created.cached_info().clone()
        }
        Err(error) if error.kind() == ConsumerInfoErrorKind::StreamNotFound => {
            return Err(temporary(&"there is no such stream; create it"));
        }
        Err(error) => return Err(temporary(&error)),
    };
    let drift = drift(&settings(&info.config), &settings(&required.clone().into_consumer_config()));
    if drift.is_empty() {
        return Ok(info);
    }
    Err(ProvisionError::Permanent(format!(
        "the consumer `{name}` of the stream `{stream_name}` has other settings: {drift}; {way_out}"
    )))
}

/// Removes the consumer if it exists. The stream keeps its messages.
///
/// # Errors
/// [`ProvisionError::Temporary`] when the server does not remove it.
pub async fn remove(context: &Context, stream_name: &str, name: &str) -> Result<(), ProvisionError> {
    let temporary = |error: &dyn Display| temporary(stream_name, name, error);
    let stream = context.get_stream_no_info(stream_name).await.map_err(|error| temporary(&error))?;
    let Err(error) = stream.delete_consumer(name).await else { return Ok(()) };
    match error.kind() {
        // Another program removed it first.
        ConsumerErrorKind::JetStream(reason) if reason.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(()),
        _ => Err(temporary(&error)),
    }
}

fn temporary(stream_name: &str, name: &str, error: &dyn Display) -> ProvisionError {
    ProvisionError::Temporary(format!("stream `{stream_name}`, consumer `{name}`: {error}"))
}

/// Returns the settings that decide which messages are delivered, when, and how safely acknowledgements are stored.
fn settings(config: &consumer::Config) -> Vec<Setting> {
    vec![
        ("deliver_subject", format!("{:?}", config.deliver_subject)),
        ("deliver_policy", format!("{:?}", config.deliver_policy)),
        ("ack_policy", format!("{:?}", config.ack_policy)),
        ("ack_wait", format!("{:?}", config.ack_wait)),
        ("max_deliver", config.max_deliver.to_string()),
        ("max_ack_pending", config.max_ack_pending.to_string()),
        ("filter_subject", format!("{:?}", config.filter_subject)),
        ("filter_subjects", format!("{:?}", config.filter_subjects)),
        ("headers_only", config.headers_only.to_string()),
        ("backoff", format!("{:?}", config.backoff)),
        ("max_batch", config.max_batch.to_string()),
        ("max_bytes", config.max_bytes.to_string()),
        ("max_expires", format!("{:?}", config.max_expires)),
        ("replay_policy", format!("{:?}", config.replay_policy)),
        ("inactive_threshold", format!("{:?}", config.inactive_threshold)),
        ("num_replicas", config.num_replicas.to_string()),
        ("mem_storage", config.memory_storage.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::{self, stream};
    use eye_harness::NatsServer;

    use super::*;

    #[tokio::test]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    async fn removing_a_missing_consumer_succeeds() {
        let server = NatsServer::start();
        let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let stream = stream::Config { name: "S".to_owned(), ..Default::default() };
        let stream = context.create_stream(stream).await.unwrap();
        stream
            .create_consumer(pull::Config { durable_name: Some("c".to_owned()), ..Default::default() })
            .await
            .unwrap();
        for _ in 0..2 {
            remove(&context, "S", "c").await.unwrap();
            assert!(stream.consumer_info("c").await.is_err());
        }
    }
}
