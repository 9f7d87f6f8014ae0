//! The contract: what the built program promises to producers, callers of the API and operators.
//!
//! `api` starts the program and talks to it over HTTP. The tests declared with `on_every_database` run against SQLite,
//! PostgreSQL and MariaDB, and expect the same answers from all of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Turns each function into a test for every database. The function gets the program, started on an empty database.
macro_rules! on_every_database {
    ($($test:ident)*) => {
        mod sqlite { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::api::on_sqlite().await).await }
        )* }
        mod postgres { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::api::on_postgres().await).await }
        )* }
        mod mariadb { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::api::on_mariadb().await).await }
        )* }
    };
}

mod api;
mod audit;
mod bodies;
mod check;
mod clients;
mod command_line;
mod example;
mod fields;
mod lifecycle;
mod limits;
mod methods;
mod query;
mod round_trip;
mod sentry;
#[path = "../support/mod.rs"]
mod support;
mod walks;
