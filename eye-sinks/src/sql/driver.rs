//! The interface between the common SQL sink and one kind of database.

use std::fmt;
use std::time::Duration;

use eye_core::event::Event;
use sea_orm::DatabaseConnection;
use sqlx::Connection;

/// Time limit for opening a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for one write, with the wait for a connection. Only a server that hangs needs so long.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for closing the connections to a server. It has all that was acknowledged, and over TLS sqlx would wait
/// for the answer of a server that hangs.
pub(super) const SERVER_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A kind of database as a place to write to. It is displayed as the product and the address, without secrets.
pub(super) trait Driver: fmt::Display + Send + Sync + 'static {
    type Connection: Connection;

    /// Connections that write batches. One more flushes and folds.
    const MAX_WRITE_CONNECTIONS: usize;

    /// Events from which on a batch is split into two halves that are written at once.
    const MIN_EVENTS_TO_SPLIT: usize;

    /// Time limit for closing all connections. Then the rest are dropped.
    const CLOSE_TIMEOUT: Duration;

    /// Opens a connection that is ready to write.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Called after all connections were dropped.
    fn on_disconnect(&self) {}

    /// Stores all events or none, and in the same transaction the delta of those that are new. Known events stay as
    /// they are, or are an error with [`Expected::AllNew`]. Returns the number of new events.
    ///
    /// The events are in the order of their keys, each key once. After an error that may refuse an event the connection
    /// must be fit for the next batch, or report its open transaction. After any other error it is closed.
    fn insert(
        &self,
        connection: &mut Self::Connection,
        batch: &[Event],
        expected: Expected,
    ) -> impl Future<Output = Result<usize, sqlx::Error>> + Send;

    /// Folds a bounded number of deltas into `event_count`, in one transaction. Returns true when there may be more.
    fn fold(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Returns true when staged events have to be flushed to the main table.
    fn needs_flush(&self) -> bool {
        false
    }

    /// Waits until a flush is due.
    fn flush_due(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Flushes all staged events.
    fn flush(&self, _connection: &mut Self::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Cleans up after all connections of the sink were closed.
    fn after_close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Opens a pool of one connection for SeaORM's migrations.
    fn migration_pool(&self) -> DatabaseConnection;
}

/// A guess about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The usual batch. A driver may choose a faster statement that fails on a known event.
    AllNew,
    /// Some events of the batch are stored already.
    Duplicates,
}
