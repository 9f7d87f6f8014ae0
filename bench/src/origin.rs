//! Where measurements come from: the commit, the machine, and the versions of all that takes part.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use chrono::Utc;
use serde::{Deserialize, Serialize};

use crate::database::{Db, Kind, Servers};

/// Where a measurement comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// Of what took part, by name.
    pub(crate) versions: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Origin {
    /// This machine with these databases.
    pub(crate) async fn of(kinds: impl IntoIterator<Item = Kind>, servers: &Servers, program: &Path) -> Result<Self> {
        let mut origin = Self::here();
        for kind in kinds.into_iter().collect::<BTreeSet<_>>() {
            let store = servers.create(kind, program)?;
            origin.versions.insert(kind.to_string(), Db::open(&store.url).await?.version().await?);
        }
        Ok(origin)
    }

    /// This machine alone.
    pub(crate) fn here() -> Self {
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let version = |program: &str| {
            let said = said(Command::new(program).arg("--version").env("PATH", &path));
            let version = said.split(' ').find(|word| word.contains('.')).unwrap_or("unknown");
            (program.to_owned(), version.trim_start_matches('v').to_owned())
        };
        Self {
            commit: commit(),
            date: Utc::now().format("%Y-%m-%d").to_string(),
            machine: Machine::this(),
            versions: BTreeMap::from(["rustc", "nats-server"].map(version)),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commit {}, {}; {}", self.commit, self.date, setting(&self.machine, &self.versions))
    }
}

/// Machine and versions, as a line says them.
pub(crate) fn setting(machine: &Machine, versions: &BTreeMap<String, String>) -> String {
    let Machine { cpu, cores, kernel } = machine;
    let versions: Vec<String> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("{cpu}, {cores} cores, Linux {kernel}; {}", versions.join(", "))
}

impl Machine {
    fn this() -> Self {
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

/// The commit that is checked out, marked where files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| said(Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")));
    let changed = if git(&["status", "--porcelain"]).is_empty() { "" } else { "+" };
    format!("{}{changed}", git(&["rev-parse", "--short=10", "HEAD"]))
}

/// What a command prints; nothing when it cannot be run.
fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
