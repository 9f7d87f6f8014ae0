//! The rows of the result table: the path of the events, the size of the load, and the targets.

use anyhow::{Result, bail};

use crate::database::DatabaseKind::{self, Mariadb, Postgres, Sqlite};

/// One row of the table.
#[derive(Debug)]
pub(crate) struct BenchRow {
    pub(crate) name: &'static str,
    pub(crate) kind: DatabaseKind,
    pub(crate) path: IngestPath,
    /// Number of clients, each with one request or message in flight.
    pub(crate) connections: usize,
    /// Events in one request or message.
    pub(crate) events: usize,
    pub(crate) targets: RatioTargets,
}

/// The path of the events into the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IngestPath {
    /// HTTP with the memory transport.
    Http,
    /// HTTP with the disk transport.
    Disk,
    /// Core NATS, each message answered before the next.
    NatsRequest,
    /// Core NATS, published as fast as possible.
    NatsCore,
    /// A stream that is filled before The Eye starts.
    Jetstream,
}

/// The targets of a row as shares of its limits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RatioTargets {
    pub(crate) of_h: Option<f64>,
    pub(crate) of_d: Option<f64>,
    /// Rate at which the sink stores while events arrive, for a transport that acknowledges first.
    pub(crate) drained_of_d: Option<f64>,
}

const NONE: RatioTargets = RatioTargets { of_h: None, of_d: None, drained_of_d: None };

const fn of_h(share: f64) -> RatioTargets {
    RatioTargets { of_h: Some(share), ..NONE }
}

const fn of_d(share: f64) -> RatioTargets {
    RatioTargets { of_d: Some(share), ..NONE }
}

const fn row(
    name: &'static str,
    kind: DatabaseKind,
    path: IngestPath,
    [connections, events]: [usize; 2],
    targets: RatioTargets,
) -> BenchRow {
    BenchRow { name, kind, path, connections, events, targets }
}

/// All rows in the order of the table.
pub(crate) const ROWS: &[BenchRow] = &[
    row("postgres-64x1", Postgres, IngestPath::Http, [64, 1], of_h(0.35)),
    row("postgres-256x1", Postgres, IngestPath::Http, [256, 1], of_h(0.45)),
    row("postgres-16x100", Postgres, IngestPath::Http, [16, 100], of_d(0.85)),
    row("sqlite-64x1", Sqlite, IngestPath::Http, [64, 1], NONE),
    row("sqlite-256x1", Sqlite, IngestPath::Http, [256, 1], of_h(0.45)),
    row("sqlite-16x100", Sqlite, IngestPath::Http, [16, 100], of_d(0.85)),
    row("mariadb-64x1", Mariadb, IngestPath::Http, [64, 1], NONE),
    row("mariadb-256x1", Mariadb, IngestPath::Http, [256, 1], NONE),
    row("mariadb-16x100", Mariadb, IngestPath::Http, [16, 100], of_d(0.8)),
    row("disk-256x1", Postgres, IngestPath::Disk, [256, 1], RatioTargets { drained_of_d: Some(0.8), ..of_h(0.5) }),
    row("disk-16x100", Postgres, IngestPath::Disk, [16, 100], NONE),
    row("nats-core", Postgres, IngestPath::NatsCore, [1, 1], NONE),
    row("nats-request", Postgres, IngestPath::NatsRequest, [256, 1], NONE),
    row("nats-jetstream", Postgres, IngestPath::Jetstream, [256, 1], of_d(0.4)),
];

/// Returns the rows with these names, in the order of the table; `all` stands for every row.
///
/// # Errors
/// Fails if a name is unknown. The message lists all names.
pub(crate) fn named(names: &[impl AsRef<str>]) -> Result<Vec<&'static BenchRow>> {
    let is_known = |name: &str| name == "all" || ROWS.iter().any(|row| row.name == name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name.as_ref())) {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        bail!("no row is named `{}`: use `all`, or some of {}", unknown.as_ref(), known.join(", "));
    }
    let is_named = |row: &&BenchRow| names.iter().any(|name| name.as_ref() == "all" || name.as_ref() == row.name);
    Ok(ROWS.iter().filter(is_named).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn row_names_are_unique() {
        let names: BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn rows_are_found_by_name() {
        assert_eq!(named(&["all"]).unwrap().len(), ROWS.len());
        assert_eq!(named(&["nats-core", "disk-256x1"]).unwrap().len(), 2);
        let error = named(&["postgres"]).unwrap_err().to_string();
        assert!(error.contains("no row is named `postgres`: use `all`, or some of postgres-64x1"), "{error}");
    }
}
