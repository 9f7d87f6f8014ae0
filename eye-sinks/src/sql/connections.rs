//! The connections that write.
//!
//! Not a pool of sqlx, because a writer needs less and more: no ping between two batches, the true reason when
//! connecting fails, and never a connection again that was in doubt.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::Connection;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections that wait for work, and the right to open a bounded number of them.
pub(super) struct Connections<C> {
    idle: Mutex<Idle<C>>,
    permits: Semaphore,
}

struct Idle<C> {
    connections: Vec<C>,
    /// How often they were cleared.
    age: u64,
}

/// One connection, to be given back when all went well. Dropped, it is closed.
pub(super) struct Lease<'a, C> {
    connection: C,
    age: u64,
    home: &'a Connections<C>,
    _permit: SemaphorePermit<'a>,
}

impl<C: Connection> Connections<C> {
    pub(super) fn new(max_connections: usize) -> Self {
        let idle = Idle { connections: Vec::new(), age: 0 };
        Self { idle: Mutex::new(idle), permits: Semaphore::new(max_connections) }
    }

    /// An idle connection, or a new one; waits while all are in use.
    pub(super) async fn lease<F>(&self, connect: impl FnOnce() -> F) -> Result<Lease<'_, C>, sqlx::Error>
    where
        F: Future<Output = Result<C, sqlx::Error>>,
    {
        let permit = self.permits.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let (idle, age) = {
            let mut idle = self.idle();
            (idle.connections.pop(), idle.age)
        };
        let connection = match idle {
            Some(connection) => connection,
            None => connect().await?,
        };
        Ok(Lease { connection, age, home: self, _permit: permit })
    }

    pub(super) fn put(&self, connection: C) {
        self.idle().connections.push(connection);
    }

    /// Closes all connections without a word to the server, those in use once they are given back.
    pub(super) fn clear(&self) {
        let mut idle = self.idle();
        idle.connections.clear();
        idle.age += 1;
    }

    /// Closes the idle connections properly; no more will be leased. One that the server has closed meanwhile is closed.
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

    fn idle(&self) -> MutexGuard<'_, Idle<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Connection> Lease<'_, C> {
    pub(super) fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    pub(super) fn give_back(self) {
        let mut idle = self.home.idle();
        if idle.age == self.age {
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
    async fn what_was_in_use_when_all_were_closed_is_not_leased_again() {
        let (connections, opened) = (Connections::new(1), Cell::new(0));
        let connect = || {
            opened.set(opened.get() + 1);
            SqliteConnection::connect("sqlite::memory:")
        };
        for (clears, expected) in [(false, 1), (true, 1), (false, 2), (false, 2)] {
            let lease = connections.lease(connect).await.unwrap();
            if clears {
                connections.clear();
            }
            lease.give_back();
            assert_eq!(opened.get(), expected, "clears: {clears}");
        }
    }
}
