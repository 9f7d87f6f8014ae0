//! The program as a library, for `main.rs` and for programs with plug-ins of their own.
//!
//! [`run`] parses the command line and executes the command with the plug-ins of a [`Registry`]. [`built_in`] returns the
//! plug-ins of The Eye.

mod audit;
pub mod cli;
pub mod config;
mod dead_letters;
mod run;
mod running_program;
pub mod telemetry;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use eye_core::registry::Registry;
use eye_sinks::{MysqlConfig, PostgresConfig, SqliteConfig};
use eye_sources::http::HttpConfig;
use eye_sources::nats::NatsConfig;
use eye_transports::disk::DiskConfig;
use eye_transports::jetstream::JetStreamConfig;
use eye_transports::memory::MemoryConfig;

use cli::{Cli, Command, EXIT_CONFIG};
use config::Config;

/// Returns a registry of every built-in plug-in. Add your own to it.
pub fn built_in() -> Registry {
    Registry::new()
        .source::<HttpConfig>()
        .source::<NatsConfig>()
        .transport::<MemoryConfig>()
        .transport::<DiskConfig>()
        .transport::<JetStreamConfig>()
        .sink::<SqliteConfig>()
        .sink::<PostgresConfig>()
        .sink::<MysqlConfig>()
}

/// Executes the command line with these plug-ins. Blocks until the command ends, and returns the exit code.
pub fn run(registry: &Registry) -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command();
    let _logs = match telemetry::start_logs(cli.log_format) {
        Ok(guard) => guard,
        Err(error) => {
            print_error(&format!("cannot start the thread that writes the log: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let config = match Config::load(cli.config, registry) {
        Ok(config) => config,
        Err(error) => {
            print_error(&error.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let _reports = telemetry::start_sentry(&config.sentry);
    let done = match command {
        Command::Check => print_line(&format!("{}: ok: {config}", config.file)),
        Command::Run => run::block_on(run::run(config)),
        Command::Migrate => run::block_on(run::migrate(config)),
        Command::Audit { url } => audit::run(url.as_deref(), &config.server),
        Command::DeadLetters(command) => run::block_on(dead_letters::run(config, command)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes an error to stderr before the log exists. A closed stderr does not change the exit code.
fn print_error(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Writes a line of output to stdout.
fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}
