//! The limits of the machine, which the rates of the rows are compared with.
//!
//! H is the rate of a bare HTTP server under the same load. D is the rate at which the driver alone stores rows.
//! [`RoundLimits`] measures each limit once a round, just before the first row that needs it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::client::LoadTarget;
use crate::database::DatabaseKind;
use crate::direct::{self, WriteMethod};
use crate::load::LoadPlan;
use crate::process::KillOnDrop;
use crate::rows::BenchRow;
use crate::servers::DatabaseServers;
use crate::settings::RunSettings;

/// The limits of one round.
pub(crate) struct RoundLimits<'a> {
    /// Events a second by name, such as `H 256x1` and `D sqlite`.
    measured: BTreeMap<String, f64>,
    servers: &'a DatabaseServers,
    settings: &'a RunSettings,
}

impl<'a> RoundLimits<'a> {
    pub(crate) fn new(servers: &'a DatabaseServers, settings: &'a RunSettings) -> Self {
        Self { measured: BTreeMap::new(), servers, settings }
    }

    /// Returns the limit H for the load of this row.
    pub(crate) async fn h(&mut self, row: &BenchRow) -> Result<f64> {
        let name = format!("H {}x{}", row.connections, row.events);
        if !self.measured.contains_key(&name) {
            let limit = self.measure_bare_server(row).await?;
            self.add(&name, limit);
        }
        Ok(self.measured[&name])
    }

    /// Returns the limit D of this database. For PostgreSQL it also measures `COPY`, which no ratio refers to.
    pub(crate) async fn d(&mut self, kind: DatabaseKind) -> Result<f64> {
        let name = format!("D {kind}");
        if !self.measured.contains_key(&name) {
            let limit = self.measure_direct(kind, WriteMethod::Insert).await?;
            self.add(&name, limit);
            if kind == DatabaseKind::Postgres {
                let limit = self.measure_direct(kind, WriteMethod::Copy).await?;
                self.add(&format!("{name}, COPY over the Unix socket"), limit);
            }
        }
        Ok(self.measured[&name])
    }

    /// Returns all limits of the round.
    pub(crate) fn into_measured(self) -> BTreeMap<String, f64> {
        self.measured
    }

    fn add(&mut self, name: &str, limit: f64) {
        eprintln!("    {name:<16} {limit:>8.0} events/s");
        self.measured.insert(name.to_owned(), limit);
    }

    async fn measure_bare_server(&self, row: &BenchRow) -> Result<f64> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut server = KillOnDrop(command.arg("bare").stdout(Stdio::piped()).spawn()?);
        let mut address = String::new();
        let stdout = server.0.stdout.take().context("the standard output is piped")?;
        BufReader::new(stdout).read_line(&mut address)?;
        let target = LoadTarget::Http { url: format!("http://{}/api/event/", address.trim()) };
        let result = LoadPlan::of_row(row, target, self.settings).start()?.finish().await?;
        ensure!(result.errors.is_empty(), "the bare server answered with errors: {:?}", result.errors);
        Ok(result.events_per_s())
    }

    async fn measure_direct(&self, kind: DatabaseKind, method: WriteMethod) -> Result<f64> {
        let database = self.servers.create(kind, &self.settings.program)?;
        // Over TCP, sqlx sends `COPY` in pieces that wait for each other.
        let url = match method {
            WriteMethod::Insert => database.url.clone(),
            WriteMethod::Copy => database.socket_url().context("only PostgreSQL has COPY")?,
        };
        direct::measure(&url, method, self.settings).await
    }
}
