//! The commit, machine and versions behind a measurement.
//!
//! Figures mean little without them, so each command prints a [`MeasurementEnvironment`] beside its results.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use chrono::Utc;
use serde::{Deserialize, Serialize};

use crate::database::{DatabaseConnection, DatabaseKind};
use crate::servers::DatabaseServers;

/// The commit, date, machine and versions of a measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeasurementEnvironment {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// Versions of the compiler and the servers, by name.
    pub(crate) versions: BTreeMap<String, String>,
}

/// The machine of a measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl MeasurementEnvironment {
    /// Returns the environment of a measurement with these databases.
    pub(crate) async fn with_databases(
        kinds: impl IntoIterator<Item = DatabaseKind>,
        servers: &DatabaseServers,
        program: &Path,
    ) -> Result<Self> {
        let mut environment = Self::without_databases();
        for kind in kinds.into_iter().collect::<BTreeSet<_>>() {
            let database = servers.create(kind, program)?;
            let version = DatabaseConnection::open(&database.url).await?.version().await?;
            environment.versions.insert(kind.to_string(), version);
        }
        Ok(environment)
    }

    /// Returns the environment without the versions of databases.
    pub(crate) fn without_databases() -> Self {
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let version = |program: &str| {
            let output = stdout_of(Command::new(program).arg("--version").env("PATH", &path));
            let version = output.split(' ').find(|word| word.contains('.')).unwrap_or("unknown");
            (program.to_owned(), version.trim_start_matches('v').to_owned())
        };
        Self {
            commit: commit(),
            date: Utc::now().format("%Y-%m-%d").to_string(),
            machine: Machine::current(),
            versions: BTreeMap::from(["rustc", "nats-server"].map(version)),
        }
    }
}

impl fmt::Display for MeasurementEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commit {}, {}; {}", self.commit, self.date, describe(&self.machine, &self.versions))
    }
}

/// Describes machine and versions in one line.
pub(crate) fn describe(machine: &Machine, versions: &BTreeMap<String, String>) -> String {
    let Machine { cpu, cores, kernel } = machine;
    let versions: Vec<String> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("{cpu}, {cores} cores, Linux {kernel}; {}", versions.join(", "))
}

impl Machine {
    fn current() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let cpu = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// Returns the checked-out commit, with a `+` when files differ from it.
fn commit() -> String {
    let git =
        |arguments: &[&str]| stdout_of(Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")));
    let changed = if git(&["status", "--porcelain"]).is_empty() { "" } else { "+" };
    format!("{}{changed}", git(&["rev-parse", "--short=10", "HEAD"]))
}

/// Returns the standard output of a command; an empty text when the command cannot be run.
fn stdout_of(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
