//! Transactions on a connection that has both files attached.

use sqlx::{Sqlite, Transaction};

/// Locks the main file as `BEGIN IMMEDIATE` would, but not the staging file.
pub(super) const BEGIN_ON_MAIN: &str = "BEGIN; DELETE FROM event_staging_flushed WHERE false";

/// Commits after success, and rolls back after an error.
pub(super) async fn finish<T>(
    transaction: Transaction<'_, Sqlite>,
    result: Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    match result {
        Ok(value) => transaction.commit().await.map(|()| value),
        Err(error) => {
            // SQLite rolls some transactions back itself. Its error here would hide the first one.
            drop(transaction.rollback().await);
            Err(error)
        }
    }
}
