//! Panics, errors and the counts of refused events, reported to Sentry where a DSN is configured.

use std::fmt;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use eye_core::refusals;
use sentry::integrations::backtrace::ProcessStacktraceIntegration;
use sentry::integrations::contexts::ContextIntegration;
use sentry::integrations::panic::PanicIntegration;
use sentry::integrations::tracing::ErrorLayer;
use sentry::transports::UreqHttpTransportOptions;
use sentry::types::Dsn;
use sentry::{Client, ClientOptions, Hub, Transport, TransportFactory, TransportOptions};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;
use ureq::Agent;

use super::logs::PANIC_TARGET;
use super::wait_at_most;

/// How long the end of the program waits for the Sentry server.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one report may take. Meanwhile 30 others wait; further ones are dropped.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What operators write below `[sentry]`.
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct SentryConfig {
    /// Where to report to; a secret. Empty: nowhere.
    #[serde(deserialize_with = "dsn")]
    pub dsn: Option<Dsn>,
    /// The `environment` of every report.
    pub environment: String,
}

impl Default for SentryConfig {
    fn default() -> Self {
        Self { dsn: None, environment: "production".to_owned() }
    }
}

/// Without the DSN: it is a secret.
impl fmt::Debug for SentryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentryConfig").field("environment", &self.environment).finish_non_exhaustive()
    }
}

fn dsn<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dsn>, D::Error> {
    match String::deserialize(deserializer)?.trim() {
        "" => Ok(None),
        // The error of the parser is left out: it may quote what it read.
        text => text.parse().map(Some).map_err(|_| {
            D::Error::custom(
                "not a Sentry DSN; one looks like `https://KEY@HOST/PROJECT`, and an empty one reports nowhere",
            )
        }),
    }
}

/// Dropped, it waits until what was reported is sent, two seconds at most.
#[must_use = "what is reported last is lost unless this is dropped at the end"]
pub struct SentryGuard(Option<Arc<Client>>);

impl Drop for SentryGuard {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            // A full queue makes the client wait longer than it is told.
            wait_at_most(FLUSH_TIMEOUT, move || {
                client.flush(Some(FLUSH_TIMEOUT));
            });
        }
    }
}

/// Reports from now on, if there is a DSN. Reporting does not block: a thread of its own sends.
///
/// To be called after [`start_logs`](super::start_logs), on the main thread, before other threads start: what runs
/// already does not report.
pub fn start_sentry(config: &SentryConfig) -> SentryGuard {
    let Some(dsn) = config.dsn.clone() else { return SentryGuard(None) };
    let mut options = ClientOptions::new()
        .release(concat!("eye@", env!("CARGO_PKG_VERSION")))
        .environment(config.environment.clone())
        .default_integrations(false)
        .add_integration(ContextIntegration::new())
        .add_integration(ProcessStacktraceIntegration)
        .transport(Http);
    options.dsn = Some(dsn);
    let client = Arc::new(Client::from(options));
    Hub::main().bind_client(Some(client.clone()));
    SentryGuard(Some(client))
}

/// The transport of the `sentry` crate, with a bound on every request.
struct Http;

impl TransportFactory for Http {
    fn create_transport_with_options(&self, options: TransportOptions) -> Arc<dyn Transport> {
        let agent: Agent = Agent::config_builder().timeout_global(Some(REQUEST_TIMEOUT)).build().into();
        Arc::new(UreqHttpTransportOptions::from(options).with_agent(agent).build())
    }
}

/// Reports errors, and the summaries of refused events; without a client it does nothing.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let reported = Targets::new()
        .with_default(LevelFilter::ERROR)
        .with_target(refusals::TARGET, LevelFilter::WARN)
        // Its errors are a server that is away, once for each attempt: `/readyz` and the log say so.
        .with_target("async_nats", LevelFilter::OFF)
        .with_target(PANIC_TARGET, LevelFilter::OFF);
    ErrorLayer::new().with_filter(reported)
}

/// For the panic hook. The hook of the `sentry` crate waits for the server, on whatever thread panicked.
pub(super) fn report_panic(panic: &PanicHookInfo<'_>) {
    let hub = Hub::current();
    if hub.client().is_some() {
        hub.capture_event(PanicIntegration::new().event_from_panic_info(panic));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::env::VarError;

    use eye_core::config::Document;

    use super::*;

    /// The section, and what is said of it.
    fn read(toml: &str) -> (SentryConfig, Vec<String>) {
        let mut document = Document::parse("eye.toml", toml, |_| Err(VarError::NotPresent)).unwrap();
        let config = document.section("sentry");
        let errors = document.finish(Some(())).map_or_else(|errors| errors.to_string(), |()| String::new());
        (config, errors.lines().map(str::to_owned).collect())
    }

    #[test]
    fn sentry_is_off_without_a_dsn() {
        for toml in ["", "[sentry]", "[sentry]\ndsn = \"\"", "[sentry]\ndsn = \" \""] {
            let (config, errors) = read(toml);
            assert!(config.dsn.is_none() && errors.is_empty(), "{toml}: {errors:?}");
            assert_eq!(config.environment, "production");
            assert!(start_sentry(&config).0.is_none());
        }
    }

    #[test]
    fn a_wrong_dsn_is_said_with_its_place_but_not_its_value() {
        for wrong in ["hush", "https://hush", "https://hush@", "ftp://hush@h/1", "https://hush@h/", "https://h/1hush"] {
            let (_, errors) = read(&format!("[sentry]\ndsn = \"{wrong}\""));
            let [error] = &errors[..] else { panic!("{wrong}: {errors:?}") };
            assert!(error.starts_with("eye.toml:2:7: sentry.dsn: not a Sentry DSN; "), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn debug_output_has_no_dsn() {
        let (config, errors) = read("[sentry]\ndsn = \"https://hush@sentry.example/1\"\nenvironment = \"staging\"");
        assert_eq!((config.dsn.is_some(), errors), (true, vec![]));
        assert_eq!(format!("{config:?}"), r#"SentryConfig { environment: "staging", .. }"#);
    }
}
