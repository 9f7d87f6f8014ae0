//! What all SQL sinks share: connections, preparing, writing, closing. What differs lies in one [`Driver`] each.

mod connections;
mod counts;
mod entity;
mod error;
mod fold;
pub(crate) mod mysql;
pub(crate) mod postgres;
mod read_pool;
pub(crate) mod sqlite;
mod store;
mod url;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use eye_core::event::Event;
use eye_core::sink::{Sink, SinkError, WriteError, Written};
use eye_core::store::{EventPage, EventQuery, EventStore, StoreError};
use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};
use sqlx::Connection;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use self::connections::Connections;
use self::fold::FoldClock;
use self::read_pool::ReadPool;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long bringing the schema up to date may take: counting ten million events took MariaDB more than five minutes, and
/// what is cut short there begins anew.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// How long one write may take, waiting for a connection included. Only a server that hangs needs so long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// After an error batches stay where they are for so long.
const FLUSH_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long adding up counts may take. A shutdown waits for it.
const FOLD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the goodbyes to a server may take. It has all that was acknowledged, and one that hangs does not answer them:
/// over TLS sqlx would wait for that.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// What differs between the databases. Shown, it is the database and its place, without secrets.
trait Driver: fmt::Display + Send + Sync + 'static {
    type Connection: Connection;

    /// How many connections write batches. One more tends what they have stored.
    const MAX_WRITE_CONNECTIONS: usize;

    /// A batch of so many events is written in two halves at once.
    const MIN_EVENTS_TO_HALVE: usize;

    /// How long closing all connections may take. Then the rest are dropped.
    const CLOSE_TIMEOUT: Duration;

    /// Opens a connection that is ready to write.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Is told that those opened before are not used again.
    fn disconnected(&self) {}

    /// Stores all events or none, and counts those that are new in the same transaction; those that are there already
    /// stay as they are, or are an error where none was expected. Says how many were new. The events are in the order of
    /// their keys, each key once. Where the database may have refused them the connection must be fit for the next batch,
    /// or be in a transaction as far as it knows; after any other error it is closed.
    fn insert(
        &self,
        connection: &mut Self::Connection,
        batch: &[Event],
        expected: Expected,
    ) -> impl Future<Output = Result<usize, sqlx::Error>> + Send;

    /// Adds up deltas of counts, a bounded number of them, in one transaction. Says whether there may be others.
    fn fold(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Whether batches were stored where they are not to stay.
    fn has_to_flush(&self) -> bool {
        false
    }

    /// Waits until it is time for that.
    fn until_flush(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Brings them to where they are to stay.
    fn flush(&self, _connection: &mut Self::Connection) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// A pool of one connection, for SeaORM's migrations.
    fn migration_pool(&self) -> DatabaseConnection;
}

/// What a batch is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The usual one. It may be stored in a way that fails when one event is there already, if that way is faster.
    AllNew,
    SomeKnown,
}

/// A sink that writes to an SQL database over a few connections of its own and reads over a pool of others.
struct SqlSink<D: Driver> {
    database: Arc<Database<D>>,
    read_pool: ReadPool,
    is_ready: AtomicBool,
    /// One task at a time does.
    may_flush: Arc<Semaphore>,
    may_fold: Arc<Semaphore>,
}

/// What is written to.
struct Database<D: Driver> {
    driver: D,
    /// Those that write batches.
    connections: Connections<D::Connection>,
    /// The one that tends what they have stored.
    tending: Connections<D::Connection>,
    fold_clock: FoldClock,
    /// Nothing is waited for any more.
    closing: Notify,
    /// Whether some of the last batch were there already. What comes after it is likely to be sent again, too.
    had_known: AtomicBool,
}

impl<D: Driver> Database<D> {
    async fn connect(&self) -> Result<D::Connection, sqlx::Error> {
        let connecting = timeout(CONNECT_TIMEOUT, self.driver.connect());
        connecting.await.unwrap_or_else(|_| Err(error::timed_out("connecting", CONNECT_TIMEOUT)))
    }

    /// Whether a connection that was good still is.
    async fn ping(&self) -> Result<(), sqlx::Error> {
        let mut lease = self.connections.lease(|| self.connect()).await?;
        lease.connection().ping().await?;
        lease.give_back();
        Ok(())
    }

    async fn migrate(&self) -> Result<(), DbErr> {
        let pool = self.driver.migration_pool();
        // Each start and each outage asks, and a server that went away just now must not be waited for as long as work is.
        let migrated = match in_time("asking for the schema", CONNECT_TIMEOUT, eye_migration::is_current(&pool)).await {
            Ok(true) => Ok(()),
            Ok(false) => in_time("migrating", MIGRATION_TIMEOUT, eye_migration::migrate(&pool)).await,
            Err(error) => Err(error),
        };
        let closed = timeout(D::CLOSE_TIMEOUT, pool.close()).await.unwrap_or(Ok(()));
        migrated.and(closed)
    }

    async fn insert(&self, batch: &[Event]) -> Result<Written, sqlx::Error> {
        // In the order of the key, so that two nodes that write the same events wait for each other, not in a circle.
        let mut sorted = batch.to_vec();
        // Of those with one key the first stays, in every sink.
        sorted.sort_by_key(Event::key);
        sorted.dedup_by_key(|event| event.key());
        let new = if sorted.len() < D::MIN_EVENTS_TO_HALVE {
            self.insert_sorted(&sorted).await?
        } else {
            let (some, others) = sorted.split_at(sorted.len() / 2);
            // Both to their ends, whatever becomes of the other: what one has stored is a duplicate the next time.
            let (some, others) = tokio::join!(self.insert_sorted(some), self.insert_sorted(others));
            some? + others?
        };
        self.fold_clock.stored(new);
        Ok(Written { duplicates: batch.len().saturating_sub(new) })
    }

    async fn insert_sorted(&self, events: &[Event]) -> Result<usize, sqlx::Error> {
        let mut lease = self.connections.lease(|| self.connect()).await?;
        let had_known = self.had_known.load(Ordering::Relaxed);
        let expected = if had_known { Expected::SomeKnown } else { Expected::AllNew };
        let mut inserted = self.driver.insert(lease.connection(), events, expected).await;
        if expected == Expected::AllNew && inserted.as_ref().is_err_and(error::is_duplicate) {
            inserted = self.driver.insert(lease.connection(), events, Expected::SomeKnown).await;
        }
        if let Ok(new) = inserted {
            self.had_known.store(new < events.len(), Ordering::Relaxed);
        }
        // What may be the events' fault is none of the connection, and finding those at fault takes many writes.
        let is_fit = inserted.as_ref().map_or_else(error::may_be_refusal, |_| true);
        if is_fit && !lease.connection().is_in_transaction() {
            lease.give_back();
        }
        inserted
    }

    /// Brings batches to where they are to stay, whenever it is time, until none is left.
    async fn flush_in_time(&self) {
        let mut pause = Duration::ZERO;
        while self.driver.has_to_flush() {
            let due = async {
                sleep(pause).await;
                self.driver.until_flush().await;
            };
            let is_closing = tokio::select! {
                () = due => false,
                () = self.closing.notified() => true,
            };
            pause = if self.flush().await { Duration::ZERO } else { FLUSH_AGAIN_AFTER };
            if is_closing {
                return;
            }
        }
    }

    /// Brings them there now. Nothing depends on it but speed: what could not be done is tried again later. Says whether it
    /// was done.
    async fn flush(&self) -> bool {
        let flushing = async {
            let mut lease = self.tending.lease(|| self.connect()).await?;
            self.driver.flush(lease.connection()).await?;
            lease.give_back();
            Ok(())
        };
        let flushed = timeout(WRITE_TIMEOUT, flushing).await;
        let flushed = flushed.unwrap_or_else(|_| Err(error::timed_out("emptying the inbox", WRITE_TIMEOUT)));
        match &flushed {
            // Their deltas can be added up from now on.
            Ok(()) => self.fold_clock.stored(1),
            Err(error) => {
                let error = error::reason(error);
                tracing::warn!(sink = %self.driver, %error, "events stay in the inbox: they are stored, but storing grows slower");
            }
        }
        flushed.is_ok()
    }

    /// Adds up deltas of counts. Nothing depends on it but the speed of queries.
    async fn fold(&self) {
        let folding = async {
            let mut lease = self.tending.lease(|| self.connect()).await?;
            let has_others = self.driver.fold(lease.connection()).await?;
            lease.give_back();
            Ok(has_others)
        };
        let folded = timeout(FOLD_TIMEOUT, folding).await;
        match folded.unwrap_or_else(|_| Err(error::timed_out("adding up counts", FOLD_TIMEOUT))) {
            Ok(true) => self.fold_clock.more(),
            Ok(false) => {}
            Err(error) => {
                self.fold_clock.failed();
                let error = error::reason(&error);
                tracing::warn!(sink = %self.driver, %error, "counts were not added up: queries grow slower meanwhile");
            }
        }
    }

    /// Forgets all connections: they are as old as one that failed.
    fn disconnect(&self) {
        self.connections.clear();
        self.tending.clear();
        self.driver.disconnected();
    }
}

impl<D: Driver> SqlSink<D> {
    fn new(driver: D, read_pool: ReadPool) -> Self {
        let database = Database {
            driver,
            connections: Connections::new(D::MAX_WRITE_CONNECTIONS),
            tending: Connections::new(1),
            fold_clock: FoldClock::new(),
            closing: Notify::new(),
            had_known: AtomicBool::new(false),
        };
        let [may_flush, may_fold] = [(); 2].map(|()| Arc::new(Semaphore::new(1)));
        Self { database: Arc::new(database), read_pool, is_ready: AtomicBool::new(false), may_flush, may_fold }
    }

    /// Tends what was stored, beside the next batches: what is stored is to be acknowledged at once, and another node may
    /// be adding up the same counts.
    fn tend(&self) {
        self.flush();
        if let Ok(alone) = self.may_fold.clone().try_acquire_owned()
            && self.database.fold_clock.is_due()
        {
            let database = self.database.clone();
            tokio::spawn(async move {
                database.fold().await;
                drop(alone);
            });
        }
    }

    fn flush(&self) {
        if self.database.driver.has_to_flush() {
            tokio::spawn(flush_alone(self.database.clone(), self.may_flush.clone()));
        }
    }

    /// Names the place where a retry helps. A refusal goes to the producer, whom the place does not concern.
    fn located(&self, error: WriteError) -> WriteError {
        match error {
            WriteError::Retry { reason, after } => {
                WriteError::Retry { reason: format!("{}: {reason}", self.database.driver), after }
            }
            other => other,
        }
    }
}

async fn in_time<T>(
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let timed_out = |_| Err(DbErr::Conn(RuntimeErr::SqlxError(error::timed_out(doing, limit).into())));
    timeout(limit, work).await.unwrap_or_else(timed_out)
}

/// Flushes until nothing is left to flush, unless another task does.
async fn flush_alone<D: Driver>(database: Arc<Database<D>>, may_flush: Arc<Semaphore>) {
    // Anew for a batch that came between the last look and the end of the turn, whose own task found this one still there.
    while database.driver.has_to_flush()
        && let Ok(_alone) = may_flush.try_acquire()
    {
        database.flush_in_time().await;
    }
}

#[async_trait]
impl<D: Driver> Sink for SqlSink<D> {
    async fn prepare(&self) -> Result<(), WriteError> {
        if self.is_ready.load(Ordering::Relaxed)
            && matches!(timeout(CONNECT_TIMEOUT, self.database.ping()).await, Ok(Ok(())))
        {
            self.tend();
            return Ok(());
        }
        self.is_ready.store(false, Ordering::Relaxed);
        self.database.disconnect();
        let connection = self.database.connect().await.map_err(|error| self.located(error::connect_error(&error)))?;
        self.database.migrate().await.map_err(|error| self.located(error::prepare_error(&error)))?;
        self.database.connections.put(connection);
        self.is_ready.store(true, Ordering::Relaxed);
        // What an earlier program left.
        self.flush();
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
            self.located(error)
        })?;
        self.tend();
        Ok(written)
    }

    async fn close(&self) -> Result<(), SinkError> {
        // What is being done is waited for. Then the last batches are brought to their place, and nothing more is done.
        self.database.closing.notify_one();
        for alone in [&self.may_flush, &self.may_fold] {
            drop(alone.acquire().await);
            alone.close();
        }
        let Database { driver, connections, tending, .. } = &*self.database;
        if driver.has_to_flush() {
            self.database.flush().await;
        }
        let closing = async {
            let closed = self.read_pool.close().await;
            for connections in [connections, tending] {
                connections.close().await.map_err(|error| SinkError(format!("{driver}: {error}")))?;
            }
            closed.map_err(|error| SinkError(format!("{driver}: {error}")))
        };
        timeout(D::CLOSE_TIMEOUT, closing).await.unwrap_or(Ok(()))
    }
}

#[async_trait]
impl<D: Driver> EventStore for SqlSink<D> {
    async fn page(&self, query: EventQuery) -> Result<EventPage, StoreError> {
        self.read_pool.query(query).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
