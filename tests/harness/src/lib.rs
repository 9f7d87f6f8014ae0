//! Real servers for The Eye's tests: databases, NATS and the built program, as processes on loopback ports.
//!
//! All files are in temporary folders. Processes and folders disappear with the test process, even if it is killed.
//! Errors are panics that name the cure, so that no test passes because a server is missing. The crate reads `/proc`
//! and needs Linux. Start with [`Eye`], [`DatabaseServer`] and [`NatsServer`].

mod certificate;
mod database;
mod eye;
mod nats;
mod process_guard;
mod proxy;
mod sentry;
mod sqlite;
mod wait;

pub use certificate::Certificate;
pub use database::{Database, DatabaseServer, MariaDb, PASSWORD, Postgres, USER};
pub use eye::Eye;
pub use nats::NatsServer;
pub use process_guard::{GuardedProcess, temporary_folder};
pub use proxy::{Cut, Proxy};
pub use sentry::{SentryServer, event_text};
pub use sqlite::sqlite_with_staging;
pub use wait::{eventually, holds_within};
