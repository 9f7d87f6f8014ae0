//! Log lines on stderr, as text or JSON.

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

use super::stderr::Stderr;
use super::{sentry, wait_at_most};

/// Which lines are shown where RUST_LOG does not say. The libraries named here tell more than operators want to know.
const DEFAULT_FILTER: &str = "info,hyper=warn,sea_orm=warn,sea_orm_migration=warn,sqlx=warn";

/// How long the end of the program waits for whoever reads stderr.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The `tracing` target of panics. Sentry gets them from the hook, with their stack.
pub(super) const PANIC_TARGET: &str = "eye::panic";

/// Where [`start_logs`] logs to.
static STDERR: OnceLock<Stderr> = OnceLock::new();

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Dropped, it waits until what was logged is written, a second at most.
#[derive(Debug)]
#[must_use = "what is logged last is lost unless this is dropped at the very end"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush_logs();
    }
}

/// Waits until what was logged is written, a second at most. For an end of the program that drops nothing.
pub fn flush_logs() {
    if let Some(stderr) = STDERR.get() {
        wait_at_most(FLUSH_TIMEOUT, || stderr.flush());
    }
}

/// Logs to stderr what `tracing` is told from now on, and panics; RUST_LOG chooses. Logging neither blocks nor fails.
///
/// To be called once in a process, before other threads start.
///
/// # Errors
/// When the system has no thread to give.
///
/// # Panics
/// When the process has a `tracing` subscriber already.
pub fn start_logs(format: LogFormat) -> io::Result<LogGuard> {
    let stderr = Stderr::start()?;
    let (filter, complaint) = filter(env::var("RUST_LOG"));
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr.clone());
    let lines = match format {
        LogFormat::Text => lines.with_ansi(wants_colors()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(sentry::layer()).init();
    panic::set_hook(Box::new(log_panic));
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    let _ = STDERR.set(stderr);
    Ok(LogGuard(()))
}

/// The filter, and what is wrong with RUST_LOG if it had to be left aside.
fn filter(rust_log: Result<String, VarError>) -> (EnvFilter, Option<String>) {
    let problem = match rust_log {
        Ok(directives) if !directives.trim().is_empty() => match directives.parse() {
            Ok(filter) => return (filter, None),
            Err(error) => Some(error.to_string()),
        },
        Ok(_) | Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => Some("not UTF-8".to_owned()),
    };
    let complaint =
        problem.map(|problem| format!("RUST_LOG is not used: {problem}; the default is `{DEFAULT_FILTER}`"));
    (EnvFilter::new(DEFAULT_FILTER), complaint)
}

/// On terminals, unless <https://no-color.org> asks for none.
fn wants_colors() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// In place of the standard hook, which blocks, and whose lines are no JSON.
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

    fn complaint(rust_log: &str) -> Option<String> {
        filter(Ok(rust_log.to_owned())).1
    }

    #[test]
    fn rust_log_chooses_and_the_default_is_there_without_it() {
        assert_eq!(filter(Ok("warn,eye=trace".to_owned())).0.to_string(), "eye=trace,warn");
        let default = EnvFilter::new(DEFAULT_FILTER).to_string();
        for unset in [Err(VarError::NotPresent), Ok(String::new()), Ok(" ".to_owned())] {
            let (filter, complaint) = filter(unset);
            assert_eq!((filter.to_string(), complaint), (default.clone(), None));
        }
    }

    #[test]
    fn a_malformed_rust_log_is_said_and_left_aside() {
        for malformed in ["eye=loud", "=", "eye=info,,sqlx=9", "[{"] {
            let complaint = complaint(malformed).unwrap_or_else(|| panic!("{malformed} is taken"));
            assert!(complaint.starts_with("RUST_LOG is not used: "), "{complaint}");
        }
        let (filter, complaint) = filter(Err(VarError::NotUnicode(OsString::new())));
        assert_eq!(filter.to_string(), EnvFilter::new(DEFAULT_FILTER).to_string());
        assert!(complaint.is_some());
    }
}
