//! The index of names has the category at its end, so that a page of a category and a name is found in it: without that,
//! each event of the name is looked up in the table for its category. Here and not at the start of an index of its own,
//! which would cost every event a page more to write.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_event_name_category"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    /// MariaDB looks at the category in the index only while it reads the index forwards, which is newest first here.
    /// Before 10.8 it takes no notice of `DESC`.
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = match manager.get_database_backend() {
            DbBackend::MySql => "name, timestamp DESC, id DESC, category",
            _ => "name, timestamp, id, category",
        };
        replace_index(manager, columns).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        replace_index(manager, "name, timestamp, id").await
    }
}

/// Makes the index anew, of these columns.
async fn replace_index(manager: &SchemaManager<'_>, columns: &str) -> Result<(), DbErr> {
    let create = format!("CREATE INDEX event_name ON event ({columns})");
    // MySQL commits after each statement. In one, there is always either of the two.
    let alter = format!("ALTER TABLE event DROP INDEX event_name, ADD INDEX event_name ({columns})");
    let statements: &[&str] = match manager.get_database_backend() {
        DbBackend::MySql => &[&alter],
        _ => &["DROP INDEX event_name", &create],
    };
    for sql in statements {
        manager.get_connection().execute_unprepared(sql).await?;
    }
    Ok(())
}
