use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use eye_core::testkit::event;
use sea_orm::DatabaseConnection;
use sqlx::SqliteConnection;
use tempfile::TempDir;

use super::super::driver::Expected;
use super::super::sqlite::{SqliteDriver, SqliteFiles};
use super::*;

/// SQLite with a record of the expectation of each batch.
struct RecordingDriver {
    sqlite: SqliteDriver,
    expected: Mutex<Vec<Expected>>,
}

impl fmt::Display for RecordingDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sqlite.fmt(f)
    }
}

impl Driver for RecordingDriver {
    type Connection = SqliteConnection;

    const MAX_WRITE_CONNECTIONS: usize = SqliteDriver::MAX_WRITE_CONNECTIONS;
    const MIN_EVENTS_TO_SPLIT: usize = SqliteDriver::MIN_EVENTS_TO_SPLIT;
    const CLOSE_TIMEOUT: Duration = SqliteDriver::CLOSE_TIMEOUT;

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        self.sqlite.connect().await
    }

    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        batch: &[Event],
        expected: Expected,
    ) -> Result<usize, sqlx::Error> {
        self.expected.lock().unwrap().push(expected);
        self.sqlite.insert(connection, batch, expected).await
    }

    async fn fold(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        self.sqlite.fold(connection).await
    }

    fn migration_pool(&self) -> DatabaseConnection {
        self.sqlite.migration_pool()
    }
}

#[tokio::test]
async fn duplicates_are_expected_until_a_batch_has_none() {
    let folder = TempDir::new().unwrap();
    let files = SqliteFiles::new(folder.path().join("eye.db").to_str().unwrap());
    files.create().unwrap();
    let driver = RecordingDriver { sqlite: SqliteDriver::new(files), expected: Mutex::default() };
    let sink = SqlSink::new(driver, ReadPool::new(DatabaseConnection::default));
    sink.prepare().await.unwrap();
    let [one, two, three, four] = [1, 2, 3, 4].map(event);
    let batches =
        [(vec![one.clone()], 0), (vec![one.clone()], 1), (vec![one, two], 1), (vec![three], 0), (vec![four], 0)];
    for (batch, duplicates) in batches {
        assert_eq!(sink.write(&batch).await.unwrap(), Written { duplicates });
    }
    use Expected::{AllNew, Duplicates};
    let expected = sink.database.driver.expected.lock().unwrap();
    assert_eq!(*expected, [AllNew, AllNew, Duplicates, Duplicates, Duplicates, AllNew]);
}
