use std::sync::Mutex;

use eye_core::testkit::event;
use sqlx::SqliteConnection;
use tempfile::TempDir;

use super::sqlite::{Files, SqliteDriver};
use super::*;

/// SQLite, and what each batch was taken for.
struct Noted {
    sqlite: SqliteDriver,
    expected: Mutex<Vec<Expected>>,
}

impl fmt::Display for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sqlite.fmt(f)
    }
}

impl Driver for Noted {
    type Connection = SqliteConnection;

    const MAX_WRITE_CONNECTIONS: usize = SqliteDriver::MAX_WRITE_CONNECTIONS;
    const MIN_EVENTS_TO_HALVE: usize = SqliteDriver::MIN_EVENTS_TO_HALVE;
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
async fn known_events_are_expected_after_a_batch_that_had_some_until_one_has_none() {
    let folder = TempDir::new().unwrap();
    let files = Files::of(folder.path().join("eye.db").to_str().unwrap());
    files.create().unwrap();
    let driver = Noted { sqlite: SqliteDriver::new(files), expected: Mutex::default() };
    let sink = SqlSink::new(driver, ReadPool::new(DatabaseConnection::default));
    sink.prepare().await.unwrap();
    let [one, two, three, four] = [1, 2, 3, 4].map(event);
    let batches =
        [(vec![one.clone()], 0), (vec![one.clone()], 1), (vec![one, two], 1), (vec![three], 0), (vec![four], 0)];
    for (batch, duplicates) in batches {
        assert_eq!(sink.write(&batch).await.unwrap(), Written { duplicates });
    }
    use Expected::{AllNew, SomeKnown};
    let expected = sink.database.driver.expected.lock().unwrap();
    assert_eq!(*expected, [AllNew, AllNew, SomeKnown, SomeKnown, SomeKnown, AllNew]);
}
