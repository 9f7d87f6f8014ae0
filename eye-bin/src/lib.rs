//! The program, as a library: what `main.rs` runs, and what the tests look into.

pub mod api;
pub mod cli;
pub mod config;
pub mod standins;

use std::process::ExitCode;

use clap::Parser;
use eye_core::registry::Registry;

use cli::{Cli, Command, EXIT_CONFIG};
use config::Config;

/// Does what the command line says, with these plug-ins.
pub fn run(registry: &Registry) -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command();
    let config = match Config::load(cli.config, registry) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match command {
        Command::Check => {
            println!("{}: ok: {config}", config.file);
            ExitCode::SUCCESS
        }
        Command::Run | Command::Migrate => {
            eprintln!("not there yet");
            ExitCode::FAILURE
        }
    }
}
