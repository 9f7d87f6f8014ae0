//! A pool of the connections that write.
//!
//! sqlx's pool does not fit a writer: it pings between two batches, hides the reason of a failed connect behind a
//! timeout, and may reuse a connection in doubt. Read [`WriteConnections`] first.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Idle connections, and permits for a bounded number of connections.
pub(super) struct WriteConnections<C> {
    idle: Mutex<IdleConnections<C>>,
    permits: Semaphore,
}

struct IdleConnections<C> {
    connections: Vec<C>,
    /// Number of calls of [`WriteConnections::clear`].
    generation: u64,
}

/// A connection in use. Dropped without [`release`](ConnectionLease::release), it is closed.
pub(super) struct ConnectionLease<'a, C> {
    connection: C,
    generation: u64,
    pool: &'a WriteConnections<C>,
    _permit: SemaphorePermit<'a>,
}

impl<C: Connection> WriteConnections<C> {
    pub(super) fn new(max_connections: usize) -> Self {
        let idle = IdleConnections { connections: Vec::new(), generation: 0 };
        Self { idle: Mutex::new(idle), permits: Semaphore::new(max_connections) }
    }

    /// Returns an idle or a new connection. Waits while all are in use.
    pub(super) async fn lease<F>(&self, connect: impl FnOnce() -> F) -> Result<ConnectionLease<'_, C>, sqlx::Error>
    where
        F: Future<Output = Result<C, sqlx::Error>>,
    {
        let permit = self.permits.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let (idle, generation) = {
            let mut idle = self.idle();
            (idle.connections.pop(), idle.generation)
        };
        let connection = match idle {
            Some(connection) => connection,
            None => connect().await?,
        };
        Ok(ConnectionLease { connection, generation, pool: self, _permit: permit })
    }

    pub(super) fn put(&self, connection: C) {
        self.idle().connections.push(connection);
    }

    /// Drops all connections without telling the server, those in use on their release.
    pub(super) fn clear(&self) {
        let mut idle = self.idle();
        idle.connections.clear();
        idle.generation += 1;
    }

    /// Closes all idle connections and refuses further leases. A connection that the server has closed is no error.
    pub(super) async fn close(&self) -> Result<(), sqlx::Error> {
        self.permits.close();
        let idle = std::mem::take(&mut self.idle().connections);
        let mut closed = Ok(());
        for connection in idle {
            match connection.close().await {
                Ok(()) | Err(sqlx::Error::Io(_)) => {}
                Err(error) => closed = Err(error),
            }
        }
        closed
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Connection> ConnectionLease<'_, C> {
    pub(super) fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    /// Returns the connection to the pool.
    pub(super) fn release(self) {
        let mut idle = self.pool.idle();
        if idle.generation == self.generation {
            idle.connections.push(self.connection);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use sqlx::SqliteConnection;

    use super::*;

    #[tokio::test]
    async fn connection_in_use_at_clear_is_not_leased_again() {
        let (connections, opened) = (WriteConnections::new(1), Cell::new(0));
        let connect = || {
            opened.set(opened.get() + 1);
            SqliteConnection::connect("sqlite::memory:")
        };
        for (clears, expected) in [(false, 1), (true, 1), (false, 2), (false, 2)] {
            let lease = connections.lease(connect).await.unwrap();
            if clears {
                connections.clear();
            }
            lease.release();
            assert_eq!(opened.get(), expected, "clears: {clears}");
        }
    }
}
