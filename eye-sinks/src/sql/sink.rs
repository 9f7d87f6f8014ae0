//! The sink that all SQL databases share. It writes over a few connections of its own and reads over a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use eye_core::event::Event;
use eye_core::sink::{Sink, SinkError, WriteError, Written};
use eye_core::store::{EventPage, EventQuery, EventStore, StoreError};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::database::Database;
use super::driver::{CONNECT_TIMEOUT, Driver, WRITE_TIMEOUT};
use super::error;
use super::read_pool::ReadPool;

/// A sink for one database.
pub(super) struct SqlSink<D: Driver> {
    database: Arc<Database<D>>,
    read_pool: ReadPool,
    is_ready: AtomicBool,
    /// Permits of the one task that flushes and the one that folds.
    flush_permit: Arc<Semaphore>,
    fold_permit: Arc<Semaphore>,
}

impl<D: Driver> SqlSink<D> {
    pub(super) fn new(driver: D, read_pool: ReadPool) -> Self {
        let [flush_permit, fold_permit] = [(); 2].map(|()| Arc::new(Semaphore::new(1)));
        let database = Arc::new(Database::new(driver));
        Self { database, read_pool, is_ready: AtomicBool::new(false), flush_permit, fold_permit }
    }

    pub(super) fn database(&self) -> &Database<D> {
        &self.database
    }

    /// Starts what maintenance is due, beside the next batches: a stored batch is acknowledged at once, and another
    /// node may hold the same counts.
    fn maintain(&self) {
        self.start_flush();
        if let Ok(permit) = self.fold_permit.clone().try_acquire_owned()
            && self.database.fold_schedule.take_due()
        {
            let database = self.database.clone();
            tokio::spawn(async move {
                database.fold().await;
                drop(permit);
            });
        }
    }

    fn start_flush(&self) {
        if self.database.driver.needs_flush() {
            let (database, permits) = (self.database.clone(), self.flush_permit.clone());
            tokio::spawn(async move {
                // Once more for a batch that came after the last look: its own task found this one still running.
                while database.driver.needs_flush()
                    && let Ok(_permit) = permits.try_acquire()
                {
                    database.flush_when_due().await;
                }
            });
        }
    }

    /// Adds the address to a retryable error. A refusal goes to the producer, whom the address does not concern.
    fn with_address(&self, error: WriteError) -> WriteError {
        match error {
            WriteError::Retry { reason, after } => {
                WriteError::Retry { reason: format!("{}: {reason}", self.database.driver), after }
            }
            other => other,
        }
    }

    async fn close_connections(&self) -> Result<(), SinkError> {
        let Database { driver, connections, maintenance, .. } = &*self.database;
        let failed = |error: &dyn std::fmt::Display| SinkError(format!("{driver}: {error}"));
        let closed = self.read_pool.close().await;
        for connections in [connections, maintenance] {
            connections.close().await.map_err(|error| failed(&error))?;
        }
        closed.map_err(|error| failed(&error))
    }
}

#[async_trait]
impl<D: Driver> Sink for SqlSink<D> {
    async fn prepare(&self) -> Result<(), WriteError> {
        if self.is_ready.load(Ordering::Relaxed)
            && matches!(timeout(CONNECT_TIMEOUT, self.database.ping()).await, Ok(Ok(())))
        {
            self.maintain();
            return Ok(());
        }
        self.is_ready.store(false, Ordering::Relaxed);
        self.database.disconnect();
        let connection =
            self.database.connect().await.map_err(|error| self.with_address(error::connect_error(&error)))?;
        self.database.migrate().await.map_err(|error| self.with_address(error::prepare_error(&error)))?;
        self.database.connections.put(connection);
        self.is_ready.store(true, Ordering::Relaxed);
        // An earlier program may have left staged events.
        self.start_flush();
        Ok(())
    }

    async fn write(&self, batch: &[Event]) -> Result<Written, WriteError> {
        if batch.is_empty() {
            return Ok(Written::default());
        }
        let written = timeout(WRITE_TIMEOUT, self.database.insert(batch)).await;
        let written = written.unwrap_or_else(|_| Err(error::timed_out("writing", WRITE_TIMEOUT)));
        let written = written.map_err(|error| {
            let error = error::write_error(&error);
            if matches!(error, WriteError::Retry { .. }) {
                // The schema may be gone, too.
                self.database.disconnect();
                self.is_ready.store(false, Ordering::Relaxed);
            }
            self.with_address(error)
        })?;
        self.maintain();
        Ok(written)
    }

    async fn close(&self) -> Result<(), SinkError> {
        // Running tasks end, and no further one starts.
        self.database.closing.notify_one();
        for permit in [&self.flush_permit, &self.fold_permit] {
            drop(permit.acquire().await);
            permit.close();
        }
        if self.database.driver.needs_flush() {
            self.database.flush().await;
        }
        // A server that hangs must not hold up the shutdown.
        timeout(D::CLOSE_TIMEOUT, self.close_connections()).await.unwrap_or(Ok(()))?;
        self.database.driver.after_close().await;
        Ok(())
    }
}

#[async_trait]
impl<D: Driver> EventStore for SqlSink<D> {
    async fn page(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        self.read_pool.page(query).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
