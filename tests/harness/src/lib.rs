//! Real servers for The Eye's tests: databases, NATS and the built program, as processes of their own on loopback ports.
//!
//! Everything lives in temporary folders and dies with the test process, however that ends. Whatever goes wrong here is
//! a panic that says what to do: a test never passes because a server was missing. Linux only (it reads `/proc`).

mod certificate;
mod database;
mod eye;
mod keeper;
mod nats;
mod proxy;
mod sentry;
mod sqlite;
mod wait;

pub use certificate::Certificate;
pub use database::{Database, MariaDb, PASSWORD, Postgres, Server, USER};
pub use eye::Eye;
pub use keeper::{Kept, temporary_folder};
pub use nats::NatsServer;
pub use proxy::{Cut, Proxy};
pub use sentry::{SentryServer, event_text};
pub use sqlite::sqlite_with_staging;
pub use wait::{eventually, holds_within};
