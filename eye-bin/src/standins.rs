//! Stands in for the sections and plug-ins that other files will bring: their keys and defaults, and nothing that works.
//! To be deleted with their arrival.

use std::num::{NonZeroU16, NonZeroU64};

use eye_core::registry::{BuildError, Registry};
use eye_core::sink::{Sink, SinkConfig};
use eye_core::source::{Source, SourceConfig};
use eye_core::transport::{Transport, TransportConfig};
use serde::Deserialize;

macro_rules! section {
    ($name:ident { $($field:ident: $type:ty = $default:expr),* $(,)? }) => {
        /// Stands in.
        #[derive(Clone, Debug, Deserialize, PartialEq)]
        #[serde(default)]
        pub struct $name { $(#[allow(missing_docs)] pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section!(ServerConfig {
    listen: String = "127.0.0.1:8000".to_owned(),
    max_connections: u32 = 800,
    header_timeout_ms: u64 = 10_000,
    trust_proxy: bool = false,
});

section!(QueryConfig {
    sink: Option<String> = None,
    max_concurrent: NonZeroU16 = NonZeroU16::new(16).expect("16 is not zero"),
    timeout_ms: NonZeroU64 = NonZeroU64::new(30_000).expect("30,000 is not zero"),
});

section!(WriterConfig { max_events: usize = 5_000, max_bytes: usize = 4 << 20, retry_for_ms: u64 = 5_000 });

section!(HttpConfig {
    max_body_bytes: u32 = 5 << 20,
    max_event_bytes: u32 = 1 << 20,
    max_pending_bytes: u32 = 64 << 20,
    body_timeout_ms: u64 = 30_000,
    receipt_timeout_ms: u64 = 10_000,
});

section!(MemoryConfig { max_bytes: u32 = 64 << 20, max_wait_ms: u64 = 500 });

section!(SqliteConfig { url: String = "sqlite://eye-data/eye.db".to_owned(), max_read_connections: u32 = 8 });

/// Stands in.
#[derive(Clone, Debug, Deserialize)]
pub struct PostgresConfig {
    #[serde(rename = "url")]
    _url: String,
    #[serde(rename = "max_read_connections")]
    _max_read_connections: Option<u32>,
}

/// Stands in.
#[derive(Clone, Debug, Deserialize)]
pub struct MysqlConfig {
    #[serde(rename = "url")]
    _url: String,
    #[serde(rename = "max_read_connections")]
    _max_read_connections: Option<u32>,
}

fn absent<T>() -> Result<T, BuildError> {
    Err(BuildError("this plug-in is not there yet".to_owned()))
}

impl SourceConfig for HttpConfig {
    const TYPE: &'static str = "http";
    async fn build(self) -> Result<Box<dyn Source>, BuildError> {
        absent()
    }
}

impl TransportConfig for MemoryConfig {
    const TYPE: &'static str = "memory";
    async fn build(self) -> Result<Box<dyn Transport>, BuildError> {
        absent()
    }
}

impl SinkConfig for SqliteConfig {
    const TYPE: &'static str = "sqlite";
    const ANSWERS_QUERIES: bool = true;
    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        absent()
    }
}

impl SinkConfig for PostgresConfig {
    const TYPE: &'static str = "postgres";
    const ANSWERS_QUERIES: bool = true;
    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        absent()
    }
}

impl SinkConfig for MysqlConfig {
    const TYPE: &'static str = "mysql";
    const ANSWERS_QUERIES: bool = true;
    async fn build(self) -> Result<Box<dyn Sink>, BuildError> {
        absent()
    }
}

/// Stands in for the registry of all built-in plug-ins.
pub fn registry() -> Registry {
    Registry::new()
        .source::<HttpConfig>()
        .transport::<MemoryConfig>()
        .sink::<SqliteConfig>()
        .sink::<PostgresConfig>()
        .sink::<MysqlConfig>()
}
