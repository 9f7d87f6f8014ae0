//! Log lines on stderr, as text or JSON.
//!
//! [`start_logs`] installs the process's `tracing` subscriber and its panic hook.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env::{self, VarError};
use std::io::{self, IsTerminal};
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::prelude::*;

use super::bounded_wait::wait_at_most;
use super::sentry::{self, PANIC_TARGET};
use super::stderr::Stderr;

/// The filter without RUST_LOG. The libraries named here log more than operators need.
const DEFAULT_FILTER: &str = "info,async_nats=off,hyper=warn,sea_orm=warn,sea_orm_migration=warn,sqlx=warn";

/// The longest wait for the reader of stderr at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The writer that [`start_logs`] installs.
static STDERR: OnceLock<Stderr> = OnceLock::new();

/// The format of log lines.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// A guard whose drop waits until all log lines are written, for a second at most.
#[derive(Debug)]
#[must_use = "the last log lines are lost unless this is dropped at the very end"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush_logs();
    }
}

/// Waits until all log lines are written, for a second at most. For an exit that drops no [`LogGuard`].
pub fn flush_logs() {
    if let Some(stderr) = STDERR.get() {
        wait_at_most(FLUSH_TIMEOUT, || stderr.flush());
    }
}

/// Starts logging to stderr: `tracing` events that RUST_LOG selects, and panics. Logging neither blocks nor fails.
///
/// Call it once in a process, before other threads start.
///
/// # Errors
/// Fails if the system cannot start a thread.
///
/// # Panics
/// Panics if the process has a `tracing` subscriber already.
pub fn start_logs(format: LogFormat) -> io::Result<LogGuard> {
    let stderr = Stderr::start()?;
    let (filter, warning) = filter(env::var("RUST_LOG"));
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr.clone());
    let lines = match format {
        LogFormat::Text => lines.with_ansi(wants_colors()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(sentry::layer()).init();
    panic::set_hook(Box::new(log_panic));
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    let _ = STDERR.set(stderr);
    Ok(LogGuard(()))
}

/// Returns the filter, and a warning if RUST_LOG is invalid and the default applies.
fn filter(rust_log: Result<String, VarError>) -> (EnvFilter, Option<String>) {
    let problem = match rust_log {
        Ok(directives) if !directives.trim().is_empty() => match directives.parse() {
            Ok(filter) => return (filter, None),
            Err(error) => Some(error.to_string()),
        },
        Ok(_) | Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => Some("not UTF-8".to_owned()),
    };
    let warning =
        problem.map(|problem| format!("RUST_LOG is ignored: {problem}; the default `{DEFAULT_FILTER}` applies"));
    (EnvFilter::new(DEFAULT_FILTER), warning)
}

/// Returns true on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
fn wants_colors() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Logs and reports a panic. The standard hook blocks, and its lines are no JSON.
fn log_panic(panic: &PanicHookInfo<'_>) {
    sentry::report_panic(panic);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        target: PANIC_TARGET,
        thread = thread::current().name(),
        location = panic.location().map(ToString::to_string),
        backtrace,
        "panicked: {}",
        panic.payload_as_str().unwrap_or("no message")
    );
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn rust_log_replaces_the_default() {
        assert_eq!(filter(Ok("warn,eye=trace".to_owned())).0.to_string(), "eye=trace,warn");
        let default = EnvFilter::new(DEFAULT_FILTER).to_string();
        for unset in [Err(VarError::NotPresent), Ok(String::new()), Ok(" ".to_owned())] {
            let (filter, warning) = filter(unset);
            assert_eq!((filter.to_string(), warning), (default.clone(), None));
        }
    }

    #[test]
    fn malformed_rust_log_warns_and_is_ignored() {
        for malformed in ["eye=loud", "=", "eye=info,,sqlx=9", "[{"] {
            let (_, warning) = filter(Ok(malformed.to_owned()));
            assert!(warning.is_some_and(|warning| warning.starts_with("RUST_LOG is ignored: ")), "{malformed}");
        }
        let (filter, warning) = filter(Err(VarError::NotUnicode(OsString::new())));
        assert_eq!(filter.to_string(), EnvFilter::new(DEFAULT_FILTER).to_string());
        assert!(warning.is_some());
    }
}
