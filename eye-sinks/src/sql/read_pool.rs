//! The read path: a pool of connections that only read, replaced when one of them hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eye_core::store::{EventPage, EventQuery, StoreError};
use sea_orm::{DatabaseConnection, DbErr};
use tokio::time::timeout;

use super::error;
use super::store::read_page;

/// Time limit of the database for one statement of a query.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for the answer to a query, whatever the database does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// A pool that is replaced after a query without an answer in time. A connection to a host that vanished in the middle
/// of a query gets no error, and would occupy the pool for ever.
pub(super) struct ReadPool {
    open: Box<dyn Fn() -> DatabaseConnection + Send + Sync>,
    pool: Mutex<Arc<DatabaseConnection>>,
}

impl ReadPool {
    /// Creates the pool by `open`, which must not connect before the first query.
    pub(super) fn new(open: impl Fn() -> DatabaseConnection + Send + Sync + 'static) -> Self {
        let pool = Mutex::new(Arc::new(open()));
        Self { open: Box::new(open), pool }
    }

    pub(super) async fn page(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        let pool = self.pool();
        let reading = {
            let pool = pool.clone();
            // A task of its own: a caller that leaves must not cancel a database future.
            tokio::spawn(async move { read_page(&pool, &query).await })
        };
        match timeout(ANSWER_TIMEOUT, reading).await {
            Ok(Ok(answer)) => answer.map_err(|error| error::store_error(&error)),
            Ok(Err(panic)) => Err(StoreError::Failed { reason: panic.to_string() }),
            Err(_) => {
                self.replace(&pool);
                let reason = error::timed_out("answering", ANSWER_TIMEOUT).to_string();
                Err(StoreError::Unavailable { reason })
            }
        }
    }

    /// Closes the pool after the running queries.
    pub(super) async fn close(&self) -> Result<(), DbErr> {
        self.pool().close_by_ref().await
    }

    fn pool(&self) -> Arc<DatabaseConnection> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, pool: &Arc<DatabaseConnection>) {
        let mut current = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, pool) {
            let replaced = std::mem::replace(&mut *current, Arc::new((self.open)()));
            // Closing waits for the connection that hangs, possibly for ever.
            tokio::spawn(async move { replaced.close_by_ref().await });
        }
    }
}
