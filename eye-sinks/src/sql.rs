//! Sinks for SQL databases. [`sink::SqlSink`] has what they share; a [`driver::Driver`] has what differs.

/// The columns of `event`, in the order of the statements that insert and copy events.
macro_rules! event_columns {
    () => {
        "timestamp, id, session_id, category, name, origin, data, received_at"
    };
}

mod bulk;
mod counts;
mod database;
mod driver;
mod entity;
mod error;
mod fold;
pub(crate) mod mysql;
pub(crate) mod postgres;
mod read_pool;
mod sink;
pub(crate) mod sqlite;
mod store;
mod url;
mod write_connections;
