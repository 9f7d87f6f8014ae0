//! A consumer of a stream: found as it must be, or made.

use async_nats::jetstream::consumer::{self, Info, IntoConsumerConfig, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{Context, ErrorCode};

use crate::settings::{Missing, Setting, differences};

/// How many messages all programs on one consumer may have at hand. The same for all of them: it is a setting of the
/// consumer.
pub const MAX_ACK_PENDING: u32 = 10_000;

/// The consumer as it must be, and how it is; it is made where there is none. `way_out` says what to do about one with
/// other settings.
///
/// # Errors
/// [`Missing::ForGood`] when it has other settings, else [`Missing::Yet`].
pub async fn find(
    context: &Context,
    stream_name: &str,
    name: &str,
    wanted: &pull::Config,
    way_out: &str,
) -> Result<Info, Missing> {
    let yet = |error: String| yet(stream_name, name, &error);
    let stream = context.get_stream_no_info(stream_name).await.map_err(|error| yet(error.to_string()))?;
    let info = match stream.consumer_info(name).await {
        Ok(info) => info,
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
            let created = stream.create_consumer(wanted.clone()).await.map_err(|error| yet(error.to_string()))?;
            created.cached_info().clone()
        }
        Err(error) if error.kind() == ConsumerInfoErrorKind::StreamNotFound => {
            return Err(yet("there is no such stream; create it".to_owned()));
        }
        Err(error) => return Err(yet(error.to_string())),
    };
    let found = settings(&info.config);
    let different = differences(&found, &settings(&wanted.clone().into_consumer_config()));
    if different.is_empty() {
        return Ok(info);
    }
    Err(Missing::ForGood(format!(
        "the consumer `{name}` of the stream `{stream_name}` has other settings: {different}; {way_out}"
    )))
}

/// Removes the consumer, if it is there. The stream keeps its messages.
///
/// # Errors
/// [`Missing::Yet`] when the server does not do it.
pub async fn remove(context: &Context, stream_name: &str, name: &str) -> Result<(), Missing> {
    let yet = |error: String| yet(stream_name, name, &error);
    let stream = context.get_stream_no_info(stream_name).await.map_err(|error| yet(error.to_string()))?;
    let Err(error) = stream.delete_consumer(name).await else { return Ok(()) };
    match error.kind() {
        // Another program was faster.
        ConsumerErrorKind::JetStream(reason) if reason.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(()),
        _ => Err(yet(error.to_string())),
    }
}

fn yet(stream_name: &str, name: &str, error: &str) -> Missing {
    Missing::Yet(format!("stream `{stream_name}`, consumer `{name}`: {error}"))
}

/// The settings that say which messages come and when, and how safely the server keeps what became of them.
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
    async fn a_consumer_that_somebody_has_removed_already_is_removed() {
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
