//! A database with access that bypasses the sink.

use eye_harness::{Database, DatabaseServer};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use super::common::Node;

/// An empty database.
pub(super) enum Store {
    File(TempDir),
    DatabaseServer(&'static DatabaseServer, Database),
}

impl Store {
    pub(super) fn file() -> Self {
        Self::File(TempDir::new().unwrap())
    }

    pub(super) fn on(server: &'static DatabaseServer) -> Self {
        Self::DatabaseServer(server, server.create_database())
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::File(folder) => format!("sqlite://{}", folder.path().join("eye.db").display()),
            Self::DatabaseServer(_, database) => database.url.clone(),
        }
    }

    /// Runs SQL that returns one number or nothing.
    pub(super) fn sql(&self, sql: &str) -> i64 {
        match self {
            Self::File(_) => sqlite(&self.url(), async |connection| {
                let sql = sqlx::AssertSqlSafe(sql.to_owned());
                sqlx::query_scalar(sql).fetch_optional(connection).await.unwrap().unwrap_or(0)
            }),
            Self::DatabaseServer(server, database) => server.sql(&database.name, sql).parse().unwrap_or(0),
        }
    }

    /// Runs SQL that returns texts.
    pub(super) fn texts(&self, sql: &str) -> Vec<String> {
        match self {
            Self::File(_) => sqlite(&self.url(), async |connection| {
                let sql = sqlx::AssertSqlSafe(sql.to_owned());
                sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
            }),
            Self::DatabaseServer(server, database) => {
                server.sql(&database.name, sql).lines().map(str::to_owned).collect()
            }
        }
    }

    pub(super) fn deltas(&self) -> i64 {
        self.staged() + self.sql("SELECT COUNT(*) FROM event_count_delta")
    }

    /// Returns the number of staged batches.
    fn staged(&self) -> i64 {
        let Self::File(folder) = self else { return 0 };
        if !folder.path().join("eye.db-staging").exists() {
            return 0;
        }
        let url = format!("sqlite://{}", folder.path().join("eye.db-staging").display());
        sqlite(&url, async |connection| {
            sqlx::query_scalar("SELECT COUNT(*) FROM event_staging_delta").fetch_one(connection).await.unwrap()
        })
    }

    /// Waits until all events are in the main table.
    pub(super) fn settle(&self) {
        while self.staged() > 0 {
            std::thread::yield_now();
        }
    }

    /// Waits until a node has folded all deltas.
    pub(super) async fn fold(&self, node: &Node) {
        while self.deltas() > 0 {
            node.prepare().await.unwrap();
            tokio::task::yield_now().await;
        }
    }
}

fn sqlite<T>(url: &str, look: impl AsyncFnOnce(&mut SqliteConnection) -> T) -> T {
    block_in_place(|| {
        Handle::current().block_on(async { look(&mut SqliteConnection::connect(url).await.unwrap()).await })
    })
}
