//! SQLite: a table in front of the one with the indexes. A commit writes whole pages, and a small one touches a page of
//! each index for nearly every event; so small batches go into the inbox, whose only index grows at its end, and from there
//! many events at once into the other table.
//!
//! `event` is a view of both, so that whoever reads it, or deletes from it, sees every event.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0005_event_inbox"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        in_sqlite(manager, UP).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        in_sqlite(manager, DOWN).await
    }
}

pub(crate) async fn in_sqlite(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::Sqlite {
        for sql in statements {
            manager.get_connection().execute_unprepared(sql).await?;
        }
    }
    Ok(())
}

/// The inbox numbers its events in the order in which they came.
pub(crate) const UP: &[&str] = &[
    "ALTER TABLE event RENAME TO event_indexed",
    "CREATE TABLE event_inbox (
        number INTEGER PRIMARY KEY,
        timestamp INTEGER NOT NULL,
        id BLOB NOT NULL,
        session_id TEXT NOT NULL,
        category TEXT NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        UNIQUE (timestamp, id)
    ) STRICT",
    "CREATE VIEW event AS
        SELECT timestamp, id, session_id, category, name, data, received_at FROM event_indexed
        UNION ALL
        SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox",
    "CREATE TRIGGER event_delete INSTEAD OF DELETE ON event BEGIN
        DELETE FROM event_indexed WHERE timestamp = OLD.timestamp AND id = OLD.id;
        DELETE FROM event_inbox WHERE timestamp = OLD.timestamp AND id = OLD.id;
    END",
];

pub(crate) const DOWN: &[&str] = &[
    "DROP VIEW event",
    "INSERT INTO event_indexed (timestamp, id, session_id, category, name, data, received_at)
        SELECT timestamp, id, session_id, category, name, data, received_at FROM event_inbox",
    "DROP TABLE event_inbox",
    "ALTER TABLE event_indexed RENAME TO event",
];
