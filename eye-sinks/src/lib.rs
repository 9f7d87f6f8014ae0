//! The sinks of The Eye: SQL databases that store events and answer queries.

mod sql;

pub use sql::mysql::MysqlConfig;
pub use sql::postgres::PostgresConfig;
pub use sql::sqlite::SqliteConfig;
