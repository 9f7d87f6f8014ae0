//! Counts of whole days, beside those of hours: the hours of a year would be 8,760 rows to add up for a query.
//!
//! They are in `event_count`, too: its hour −1 is the day that began on 1970-01-01T00:00:00Z, −2 the one after, and so on.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0004_event_count_day"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        count_days(manager.get_connection()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        forget_days(manager.get_connection()).await
    }
}

/// Adds up the hours that were counted. May be done again from any point.
pub(super) async fn count_days(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    forget_days(db).await?;
    let divide = if db.get_database_backend() == DbBackend::MySql { "DIV" } else { "/" };
    let sql = format!(
        "INSERT INTO event_count (category, name, hour, count)
            SELECT category, name, -1 - hour {divide} 24, SUM(count) FROM event_count GROUP BY 1, 2, 3"
    );
    db.execute_unprepared(&sql).await.map(drop)
}

async fn forget_days(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared("DELETE FROM event_count WHERE hour < 0").await.map(drop)
}
