//! Who answers queries: a pool of connections that only read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eye_core::store::{EventPage, EventQuery, StoreError};
use sea_orm::{DatabaseConnection, DbErr};
use tokio::time::timeout;

use super::{error, store};

/// How long the database may work on one statement of a query.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a caller waits for the answer to a query, whatever the database does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// A pool, until a query of it is not answered in time: of a host that went away in the midst of one its connection hears
/// nothing any more, and keeps its place in the pool for ever. Then another pool takes its place.
pub(super) struct ReadPool {
    open: Box<dyn Fn() -> DatabaseConnection + Send + Sync>,
    pool: Mutex<Arc<DatabaseConnection>>,
}

impl ReadPool {
    /// `open` makes a pool that connects once it is asked.
    pub(super) fn new(open: impl Fn() -> DatabaseConnection + Send + Sync + 'static) -> Self {
        let pool = Mutex::new(Arc::new(open()));
        Self { open: Box::new(open), pool }
    }

    pub(super) async fn query(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        let pool = self.pool();
        let reading = {
            let pool = pool.clone();
            // A task of its own: a caller that goes away must not cancel a database future.
            tokio::spawn(async move { store::read(&pool, &query).await })
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

    /// Waits for the queries that are being answered.
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
            // Those of its connections that are well are closed; the wait for the others may have no end.
            tokio::spawn(async move { replaced.close_by_ref().await });
        }
    }
}
