//! SQLite: the inbox becomes a file of its own, which can be written to while the other one is. What remains here is how much
//! of it was brought to `event`, which is the one table of all events again.

use sea_orm_migration::prelude::*;

use super::m0005_event_inbox::{DOWN, UP, in_sqlite};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0006_event_inbox_flushed"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        in_sqlite(manager, DOWN).await?;
        in_sqlite(manager, &[CREATE]).await
    }

    /// Loses nothing where the inbox is empty, as a clean stop leaves it.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        in_sqlite(manager, &["DROP TABLE event_inbox_flushed"]).await?;
        in_sqlite(manager, UP).await
    }
}

/// Of each inbox that there was the number of the last event that was brought to `event`.
const CREATE: &str = "CREATE TABLE event_inbox_flushed (inbox INTEGER PRIMARY KEY, number INTEGER NOT NULL) STRICT";
