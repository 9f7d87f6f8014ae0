//! The contract, seen from outside: the built program on each of its databases, asked over HTTP.
#![allow(clippy::unwrap_used)]

/// Makes a test of each function on every database. A function gets the program, started on an empty one.
macro_rules! on_every_database {
    ($($test:ident)*) => {
        mod sqlite { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::program::on_sqlite().await).await }
        )* }
        mod postgres { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::program::on_postgres().await).await }
        )* }
        mod mariadb { $(
            #[tokio::test]
            async fn $test() { super::$test(&crate::program::on_mariadb().await).await }
        )* }
    };
}

#[path = "contract/bodies.rs"]
mod bodies;
#[path = "contract/example.rs"]
mod example;
#[path = "contract/fields.rs"]
mod fields;
#[path = "contract/limits.rs"]
mod limits;
#[path = "contract/methods.rs"]
mod methods;
#[path = "contract/program.rs"]
mod program;
mod query;
#[path = "contract/round_trip.rs"]
mod round_trip;
#[path = "contract/walks.rs"]
mod walks;
