//! Stands in for the sections and plug-ins that other files will bring: their keys and defaults, and nothing that works.
//! To be deleted with their arrival.

use eye_core::registry::{BuildError, Registry};
use eye_core::sink::{Sink, SinkConfig};
use eye_sources::http::HttpConfig;
use eye_transports::memory::MemoryConfig;
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
