//! The write side of a database: batches, and the maintenance that follows them.
//!
//! No future of this module is cancelled while its connection lives on: a connection in doubt is closed. Maintenance
//! (flushing staged events, folding counts) affects speed alone. Events and counts are exact without it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eye_core::event::Event;
use eye_core::sink::Written;
use sea_orm::{DbErr, RuntimeErr};
use sqlx::Connection;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::driver::{CONNECT_TIMEOUT, Driver, Expected, WRITE_TIMEOUT};
use super::error;
use super::fold::FoldSchedule;
use super::write_connections::WriteConnections;

/// Time limit for migrating: MariaDB took more than five minutes to count ten million events, and starts over after an
/// interruption.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Pause after a flush that failed.
const RETRY_FLUSH_AFTER: Duration = Duration::from_secs(10);
/// Time limit for one fold. A shutdown waits for it.
const FOLD_TIMEOUT: Duration = Duration::from_secs(10);

/// A database with the connections of its sink.
pub(super) struct Database<D: Driver> {
    pub(super) driver: D,
    /// Connections that write batches.
    pub(super) connections: WriteConnections<D::Connection>,
    /// The connection that flushes and folds.
    pub(super) maintenance: WriteConnections<D::Connection>,
    pub(super) fold_schedule: FoldSchedule,
    /// Ends the wait for the next flush.
    pub(super) closing: Notify,
    /// True when the last batch had duplicates. A producer that sends one batch again does so with the next.
    had_duplicates: AtomicBool,
}

impl<D: Driver> Database<D> {
    pub(super) fn new(driver: D) -> Self {
        Self {
            driver,
            connections: WriteConnections::new(D::MAX_WRITE_CONNECTIONS),
            maintenance: WriteConnections::new(1),
            fold_schedule: FoldSchedule::new(),
            closing: Notify::new(),
            had_duplicates: AtomicBool::new(false),
        }
    }

    pub(super) async fn connect(&self) -> Result<D::Connection, sqlx::Error> {
        let connecting = timeout(CONNECT_TIMEOUT, self.driver.connect());
        connecting.await.unwrap_or_else(|_| Err(error::timed_out("connecting", CONNECT_TIMEOUT)))
    }

    /// Checks that a connection which worked before still does.
    pub(super) async fn ping(&self) -> Result<(), sqlx::Error> {
        let mut lease = self.connections.lease(|| self.connect()).await?;
        lease.connection().ping().await?;
        lease.release();
        Ok(())
    }

    /// Drops all connections: they are as old as one that failed.
    pub(super) fn disconnect(&self) {
        self.connections.clear();
        self.maintenance.clear();
        self.driver.on_disconnect();
    }

    pub(super) async fn migrate(&self) -> Result<(), DbErr> {
        let pool = self.driver.migration_pool();
        // Each start and each outage asks for the schema, and must not wait for a dead server as long as a migration
        // takes.
        let is_current = limited("reading the schema", CONNECT_TIMEOUT, eye_migration::is_current(&pool)).await;
        let migrated = match is_current {
            Ok(true) => Ok(()),
            Ok(false) => limited("migrating", MIGRATION_TIMEOUT, eye_migration::migrate(&pool)).await,
            Err(error) => Err(error),
        };
        let closed = timeout(D::CLOSE_TIMEOUT, pool.close()).await.unwrap_or(Ok(()));
        migrated.and(closed)
    }

    /// Stores a batch.
    pub(super) async fn insert(&self, batch: &[Event]) -> Result<Written, sqlx::Error> {
        // Two nodes that write the same events in the order of their keys cannot deadlock. Of equal keys the first
        // stays.
        let mut sorted = batch.to_vec();
        sorted.sort_by_key(Event::key);
        sorted.dedup_by_key(|event| event.key());
        let new = if sorted.len() < D::MIN_EVENTS_TO_SPLIT {
            self.insert_sorted(&sorted).await?
        } else {
            let (some, others) = sorted.split_at(sorted.len() / 2);
            // Both run to their ends. What one half has stored is a duplicate in the next attempt.
            let (some, others) = tokio::join!(self.insert_sorted(some), self.insert_sorted(others));
            some? + others?
        };
        self.fold_schedule.note_delta(new);
        Ok(Written { duplicates: batch.len().saturating_sub(new) })
    }

    async fn insert_sorted(&self, events: &[Event]) -> Result<usize, sqlx::Error> {
        let mut lease = self.connections.lease(|| self.connect()).await?;
        let had_duplicates = self.had_duplicates.load(Ordering::Relaxed);
        let expected = if had_duplicates { Expected::Duplicates } else { Expected::AllNew };
        let mut inserted = self.driver.insert(lease.connection(), events, expected).await;
        if expected == Expected::AllNew && inserted.as_ref().is_err_and(error::is_duplicate) {
            inserted = self.driver.insert(lease.connection(), events, Expected::Duplicates).await;
        }
        if let Ok(new) = inserted {
            self.had_duplicates.store(new < events.len(), Ordering::Relaxed);
        }
        // A refusal is no fault of the connection, and bisecting a batch takes many writes.
        let is_fit = inserted.as_ref().map_or_else(error::may_be_refusal, |_| true);
        if is_fit && !lease.connection().is_in_transaction() {
            lease.release();
        }
        inserted
    }

    /// Flushes whenever a flush is due, until nothing is staged or the sink closes.
    pub(super) async fn flush_when_due(&self) {
        let mut pause = Duration::ZERO;
        while self.driver.needs_flush() {
            let due = async {
                sleep(pause).await;
                self.driver.flush_due().await;
            };
            let is_closing = tokio::select! {
                () = due => false,
                () = self.closing.notified() => true,
            };
            pause = if self.flush().await { Duration::ZERO } else { RETRY_FLUSH_AFTER };
            if is_closing {
                return;
            }
        }
    }

    /// Flushes now. Returns false after a failure, which is logged.
    pub(super) async fn flush(&self) -> bool {
        let flushing = async {
            let mut lease = self.maintenance.lease(|| self.connect()).await?;
            self.driver.flush(lease.connection()).await?;
            lease.release();
            Ok(())
        };
        let flushed = timeout(WRITE_TIMEOUT, flushing).await;
        let flushed = flushed.unwrap_or_else(|_| Err(error::timed_out("flushing", WRITE_TIMEOUT)));
        match &flushed {
            // The deltas of these events can be folded now.
            Ok(()) => self.fold_schedule.note_delta(1),
            Err(error) => {
                let (sink, error) = (&self.driver, error::reason(error));
                tracing::warn!(%sink, %error, "events stay staged: they are stored, but writing slows down");
            }
        }
        flushed.is_ok()
    }

    /// Folds deltas into counts. A failure is logged.
    pub(super) async fn fold(&self) {
        let folding = async {
            let mut lease = self.maintenance.lease(|| self.connect()).await?;
            let has_more = self.driver.fold(lease.connection()).await?;
            lease.release();
            Ok(has_more)
        };
        let folded = timeout(FOLD_TIMEOUT, folding).await;
        match folded.unwrap_or_else(|_| Err(error::timed_out("folding counts", FOLD_TIMEOUT))) {
            Ok(true) => self.fold_schedule.note_full(),
            Ok(false) => {}
            Err(error) => {
                self.fold_schedule.note_failure();
                let (sink, error) = (&self.driver, error::reason(&error));
                tracing::warn!(%sink, %error, "counts were not folded: queries slow down until a later attempt");
            }
        }
    }
}

async fn limited<T>(
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let timed_out = |_| Err(DbErr::Conn(RuntimeErr::SqlxError(error::timed_out(doing, limit).into())));
    timeout(limit, work).await.unwrap_or_else(timed_out)
}
