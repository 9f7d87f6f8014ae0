//! The command line, as clap parses it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::running_program;
use crate::telemetry::LogFormat;

/// The exit code for an invalid configuration, as in BSD's `sysexits.h`.
pub const EXIT_CONFIG: u8 = 78;

/// The Eye collects events from applications, stores them and answers queries.
#[derive(Parser, Debug)]
#[command(name = "eye", version, after_help = EXAMPLES)]
pub struct Cli {
    /// The command; `run` without one.
    #[command(subcommand)]
    command: Option<Command>,

    /// The configuration [default: $EYE_CONFIG, else ./eye.toml if there is one, else HTTP on 127.0.0.1:8000 into
    /// SQLite at eye-data/eye.db]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Format of log lines on stderr; RUST_LOG selects them
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
}

const EXAMPLES: &str = "\
Examples:
  eye                                      run with ./eye.toml, or with the built-in configuration
  eye run --config /etc/eye/eye.toml       run with this configuration
  eye check --config eye.toml              report every fault in it, and start nothing
  eye migrate --config eye.toml            bring the databases' schema up to date, then exit
  eye audit --config eye.toml              check that every event is accounted for
  eye dead-letters list                    list events refused after acknowledgement, as NDJSON
  eye dead-letters replay --all            send all of them to the running program again
  RUST_LOG=debug eye --log-format json     more log lines, as JSON

Exit codes: 0 success, 1 failure, 2 wrong usage, 78 wrong configuration.";

/// A command.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take events, store them and answer queries, until SIGTERM or SIGINT (the default)
    Run,
    /// Check the configuration and start nothing
    Check,
    /// Bring the schema of every configured database up to date
    Migrate,
    /// Check the accounting of the running program; exit with 1 when it does not balance
    Audit {
        /// URL of the running program, such as http://127.0.0.1:8000 [default: the address of `[server] listen`]
        #[arg(long, value_name = "URL", value_parser = running_program::parse_url)]
        url: Option<String>,
    },
    /// Show, replay or delete events that were refused after they had been acknowledged
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
}

const DEAD_LETTERS_EXAMPLES: &str = "\
Examples:
  eye dead-letters list | jq -r .reason | sort | uniq -c    the number for each reason
  eye dead-letters show transport/123.store                 one of them, with the event
  eye dead-letters list | jq -r 'select(.refused_by == \"sinks.store\") | .id' | xargs eye dead-letters replay

Run these commands on the program's machine, with its configuration. The program may be running.";

/// A command on dead letters.
#[derive(Subcommand, Clone, Debug, PartialEq, Eq)]
#[command(after_help = DEAD_LETTERS_EXAMPLES)]
pub enum DeadLettersCommand {
    /// List dead letters on stdout, one JSON object a line: the transport's, then each source's, oldest first
    List,
    /// Show dead letters with their events on stdout, one JSON object a line
    Show {
        /// Id from `list`, such as transport/123.store
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Send dead letters to the running program as events; remove each one that is accepted
    Replay {
        /// The dead letters.
        #[command(flatten)]
        selection: Selection,
        /// URL of the running program, such as http://127.0.0.1:8000 [default: the address of `[server] listen`]
        #[arg(long, value_name = "URL", value_parser = running_program::parse_url)]
        url: Option<String>,
    },
    /// Delete dead letters for good
    Delete {
        /// The dead letters.
        #[command(flatten)]
        selection: Selection,
    },
}

/// A selection of dead letters.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Id from `list`, such as transport/123.store
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// All dead letters that exist when the command starts
    #[arg(long)]
    pub all: bool,
}

impl Cli {
    /// Returns the command.
    pub fn command(&self) -> Command {
        self.command.clone().unwrap_or(Command::Run)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["eye"], arguments].concat())
    }

    #[test]
    fn definition_is_valid() {
        <Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn eye_alone_runs_with_text_logs() {
        let cli = parse(&[]).unwrap();
        assert_eq!((cli.command(), cli.config, cli.log_format), (Command::Run, None, LogFormat::Text));
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for arguments in [["--config", "a.toml", "check"], ["check", "--config", "a.toml"]] {
            let cli = parse(&arguments).unwrap();
            assert_eq!((cli.command(), cli.config), (Command::Check, Some(PathBuf::from("a.toml"))));
        }
        assert_eq!(parse(&["migrate", "--log-format", "json"]).unwrap().log_format, LogFormat::Json);
    }

    #[test]
    fn wrong_usage_exits_with_2_and_help_with_0() {
        for arguments in [&["rnu"][..], &["--conf", "x"], &["--config"], &["run", "x"], &["--log-format", "xml"]] {
            assert_eq!(parse(arguments).unwrap_err().exit_code(), 2, "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["show"],
            &["replay"],
            &["delete"],
            &["delete", "transport/1.store", "--all"],
            &["list", "--all"],
            &["replay", "--all", "--url", "127.0.0.1:8000"],
        ] {
            let error = parse(&[&["dead-letters"], arguments].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
        let help = parse(&["--help"]).unwrap_err();
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        assert_eq!(parse(&["--version"]).unwrap_err().kind(), ErrorKind::DisplayVersion);
    }
}
