//! Reports to Sentry: panics, errors and the counts of refused events.
//!
//! [`start_sentry`] starts a client if a DSN is configured. The `sentry` crate's own integrations are off: they block a
//! panic and the exit while the server hangs.

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

use super::bounded_wait::wait_at_most;

/// The longest wait for the Sentry server at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The time limit of one report. Meanwhile 30 others wait; further ones are dropped.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The `tracing` target of logged panics. [`report_panic`] reports them with their stack.
pub(super) const PANIC_TARGET: &str = "eye::panic";

/// Settings below `[sentry]`.
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct SentryConfig {
    /// The address of the Sentry project; a secret. Empty: no reports.
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

/// Omits the DSN, which is a secret.
impl fmt::Debug for SentryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentryConfig").field("environment", &self.environment).finish_non_exhaustive()
    }
}

fn dsn<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dsn>, D::Error> {
    match String::deserialize(deserializer)?.trim() {
        "" => Ok(None),
        // The parser's error may quote the value, so it is left out.
        text => text.parse().map(Some).map_err(|_| {
            D::Error::custom(
                "not a Sentry DSN; write one such as `https://KEY@HOST/PROJECT`, or an empty one for no reports",
            )
        }),
    }
}

/// A guard whose drop waits until all reports are sent, for two seconds at most.
#[must_use = "the last reports are lost unless this is dropped at the end"]
pub struct SentryGuard(Option<Arc<Client>>);

impl Drop for SentryGuard {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            // With a full queue the client waits longer than its own timeout.
            wait_at_most(FLUSH_TIMEOUT, move || {
                client.flush(Some(FLUSH_TIMEOUT));
            });
        }
    }
}

/// Starts reporting if there is a DSN. Reports do not block: a thread of the client sends them.
///
/// Call it after [`start_logs`](super::start_logs), on the main thread, before other threads start: earlier threads do not
/// report.
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

/// Returns a layer that reports errors and the summaries of refused events. Without a client it does nothing.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let reported = Targets::new()
        .with_default(LevelFilter::ERROR)
        .with_target(refusals::TARGET, LevelFilter::WARN)
        // Its errors repeat each failed attempt to connect, which `/readyz` and the log show.
        .with_target("async_nats", LevelFilter::OFF)
        .with_target(PANIC_TARGET, LevelFilter::OFF);
    ErrorLayer::new().with_filter(reported)
}

/// Reports a panic, for the panic hook. The hook of the `sentry` crate would block the panicking thread on the server.
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

    use eye_config::Document;

    use super::*;

    /// Returns the section and its errors.
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
    fn wrong_dsn_error_has_position_but_no_value() {
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
