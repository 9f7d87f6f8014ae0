//! Arguments and settings that several commands share.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::events::SessionPattern;

/// The program to measure.
#[derive(Args)]
pub(crate) struct ProgramArg {
    /// Program to measure [default: the program `eye` in the folder of this program]
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Warm-up, duration and sessions of a load.
#[derive(Args)]
pub(crate) struct TimeArgs {
    /// Length of the measurement, in seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    duration_s: u64,
    /// Length of the warm-up before the measurement, in seconds
    #[arg(long, default_value_t = 2)]
    warmup_s: u64,
    /// Sessions of the events
    #[arg(long, value_enum, default_value = "come-and-go")]
    pub(crate) sessions: SessionPattern,
}

/// Arguments of the commands that measure rows.
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    program: ProgramArg,
    /// Number of rounds; the results are medians over all rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) runs: u16,
    #[command(flatten)]
    time: TimeArgs,
}

/// Settings that are the same for all rows of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct RunSettings {
    pub(crate) program: PathBuf,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) sessions: SessionPattern,
}

/// The time in which a measurement counts; the warm-up lies before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MeasurementWindow {
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

impl ProgramArg {
    /// Returns the absolute path of the program.
    ///
    /// # Errors
    /// Fails if the program does not exist.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("eye"),
        };
        program.canonicalize().with_context(|| {
            format!("the program {} is missing: build it with `cargo build --release -p eye-bin`", program.display())
        })
    }
}

impl TimeArgs {
    pub(crate) fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup_s)
    }

    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.duration_s)
    }
}

impl RunArgs {
    pub(crate) fn settings(&self) -> Result<RunSettings> {
        Ok(RunSettings {
            program: self.program.path()?,
            warmup: self.time.warmup(),
            duration: self.time.duration(),
            sessions: self.time.sessions,
        })
    }
}

impl MeasurementWindow {
    /// Returns the window that starts after `warmup` from now.
    pub(crate) fn after(warmup: Duration, duration: Duration) -> Self {
        let start = Instant::now() + warmup;
        Self { start, end: start + duration }
    }

    pub(crate) fn contains(self, instant: Instant) -> bool {
        (self.start..self.end).contains(&instant)
    }

    pub(crate) fn seconds(self) -> f64 {
        (self.end - self.start).as_secs_f64()
    }
}
