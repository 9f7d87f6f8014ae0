//! A durable queue in one folder.
//!
//! A receipt settles once its events are synced to the disk. So producers are served while sinks are unavailable, and
//! acknowledged events outlive the process. The folder holds segments (`….log`, named after their first event's number)
//! of records with a checksum each, the consumers' `cursors`, `dead-letters/` and `damaged/`. A segment is removed once
//! every sink has settled its events. A removal needs no space, so a full disk drains. Read [`DiskConfig`] first.

mod appender;
mod capacity;
mod dead_letters;
mod files;
mod log;
mod reader;
mod recovery;
mod subscription;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use eye_core::ack::{Outcome, Receipt};
use eye_core::context::BuildContext;
use eye_core::dead_letter::DeadLetterStore;
use eye_core::error::BuildError;
use eye_core::event::Event;
use eye_core::health::Health;
use eye_core::transport::{Custody, PublishError, Subscription, Transport, TransportConfig, TransportError};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::record;

use appender::{AppendRequest, Appender, QueueStatus};
use dead_letters::DiskDeadLetters;
use log::Log;
use subscription::DiskSubscription;

/// The settings below `[transport]` with `type = "disk"`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// The queue's folder, created if missing. One process may use it at a time.
    pub path: PathBuf,
    /// The most bytes of the queue on the disk. Requests beyond it are refused. Dead letters do not count.
    pub max_bytes: u64,
    /// The free bytes to leave on the disk. Requests that need them are refused.
    pub min_free_bytes: u64,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { path: "eye-data/queue".into(), max_bytes: 10 << 30, min_free_bytes: 256 << 20 }
    }
}

/// The smallest quota: it holds a few of the largest requests.
const MIN_MAX_BYTES: u64 = 64 << 20;

/// The time after which a refused producer may try again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The default wait for a full batch. No producer waits for the sink here, and a larger batch costs a database less per
/// event: at 2,000 events/s one commit instead of fifty.
const DEFAULT_MAX_WAIT: Duration = Duration::from_millis(50);

impl TransportConfig for DiskConfig {
    const TYPE: &'static str = "disk";

    fn check(&self) -> Vec<BuildError> {
        let mut faults = Vec::new();
        if self.max_bytes < MIN_MAX_BYTES {
            let message = format!("{} is too small: it must be at least {MIN_MAX_BYTES}", self.max_bytes);
            faults.push(BuildError::at("max_bytes", message));
        }
        if self.path.as_os_str().is_empty() {
            faults.push(BuildError::at("path", "empty; it must name a folder"));
        }
        faults
    }

    async fn build(self, _context: &BuildContext) -> Result<Box<dyn Transport>, BuildError> {
        let path = files::absolute(&self.path);
        let opened = spawn_blocking(move || DiskTransport::open(&self)).await.expect("opening does not panic");
        let transport = opened.map_err(|error| {
            let path = path.display();
            BuildError::new(format!(
                "cannot open the queue {path}: {error}; set `path` to a folder that the user of The Eye may write to"
            ))
        })?;
        Ok(Box::new(transport))
    }

    fn dead_letters(&self) -> Option<Box<dyn DeadLetterStore>> {
        Some(Box::new(DiskDeadLetters::new(&self.path)))
    }
}

struct DiskTransport {
    log: Arc<Log>,
    /// The queue of the writing thread, bounded by the log's capacity. `None` once the transport is closed.
    requests: RwLock<Option<mpsc::Sender<AppendRequest>>>,
    committed: watch::Receiver<u64>,
    status: watch::Receiver<QueueStatus>,
    closing: CancellationToken,
}

impl DiskTransport {
    /// Opens the queue and starts the writing thread. Blocks.
    fn open(config: &DiskConfig) -> io::Result<Self> {
        let log = Arc::new(Log::open(&config.path, config.max_bytes, config.min_free_bytes)?);
        let (committed, committed_receiver) = watch::channel(0);
        let (status, status_receiver) = watch::channel(QueueStatus::Ready);
        let appender = Appender::new(log.clone(), committed, status);
        let (sender, requests) = mpsc::channel();
        thread::Builder::new().name("disk-queue".into()).spawn(move || appender.run(&requests))?;
        Ok(Self {
            log,
            requests: RwLock::new(Some(sender)),
            committed: committed_receiver,
            status: status_receiver,
            closing: CancellationToken::new(),
        })
    }
}

#[async_trait]
impl Transport for DiskTransport {
    async fn publish(&self, events: Vec<Event>) -> Result<Receipt, PublishError> {
        let (settle, receipt) = Receipt::pair();
        if events.is_empty() {
            settle(Outcome::Delivered);
            return Ok(receipt);
        }
        let count = u32::try_from(events.len()).expect("a request is bounded far below 4 GiB");
        let request = AppendRequest { events: record::encode(&events), count, settle: Box::new(settle) };
        let requests = self.requests.read().unwrap_or_else(PoisonError::into_inner);
        let Some(requests) = requests.as_ref() else { return Err(PublishError::Closed) };
        let reserved = request.reserved_bytes();
        self.log
            .capacity()
            .reserve(reserved)
            .map_err(|reason| PublishError::Full { reason, retry_after: RETRY_AFTER })?;
        // Fails if the writing thread has ended: the queue is broken, and the program stops.
        requests.send(request).map_err(|_| PublishError::Closed)?;
        Ok(receipt)
    }

    async fn subscribe(&self, consumer: &str) -> Result<Box<dyn Subscription>, TransportError> {
        if self.closing.is_cancelled() {
            return Err(TransportError(format!("{consumer} cannot subscribe: the transport is closed")));
        }
        let Some(cursor) = self.log.subscribe(consumer) else {
            return Err(TransportError(format!("{consumer} cannot subscribe: it has subscribed already")));
        };
        let (committed, closing) = (self.committed.clone(), self.closing.clone());
        Ok(Box::new(DiskSubscription::new(self.log.clone(), consumer.to_owned(), cursor, committed, closing)))
    }

    fn close(&self) {
        self.closing.cancel();
        self.requests.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetterStore>> {
        Some(Arc::new(DiskDeadLetters::new(&self.log.path)))
    }

    fn default_max_wait(&self) -> Duration {
        DEFAULT_MAX_WAIT
    }

    fn custody(&self, consumer: &str) -> Custody {
        self.log.lock().custody(consumer)
    }

    async fn watch(&self, health: Health) -> TransportError {
        self.log.start();
        let mut status = self.status.clone();
        loop {
            match status.borrow_and_update().clone() {
                QueueStatus::Ready => health.ready(),
                QueueStatus::Full(reason) => health.unavailable(reason),
                QueueStatus::Broken(reason) => return TransportError(reason),
            }
            if status.changed().await.is_err() {
                match self.closing.is_cancelled() {
                    true => std::future::pending().await,
                    false => return TransportError("the thread that writes the queue panicked".to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
