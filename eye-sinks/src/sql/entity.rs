//! The table `event`, as SeaORM sees it.

use eye_core::event::{Event, EventFields};
use eye_core::timestamp::Timestamp;
use sea_orm::entity::prelude::*;
use sea_orm::{DbBackend, FromQueryResult, QueryResult};

/// A row. The types are those of PostgreSQL and MySQL; SQLite has integers for timestamps, which [`instant`] and
/// [`StoredEvent`] bridge.
#[derive(Clone, Debug, DeriveEntityModel)]
#[sea_orm(table_name = "event")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub timestamp: DateTimeUtc,
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub session_id: String,
    pub category: String,
    pub name: String,
    pub data: String,
    pub received_at: DateTimeUtc,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// A timestamp as the database compares it.
pub(super) fn instant(backend: DbBackend, timestamp: Timestamp) -> Value {
    match backend {
        DbBackend::Sqlite => timestamp.as_micros().into(),
        // With a time zone it would be a TIMESTAMP, which ends in 2038.
        DbBackend::MySql => timestamp.to_chrono().naive_utc().into(),
        _ => timestamp.to_chrono().into(),
    }
}

/// An event as it was read.
pub(super) struct StoredEvent(pub(super) Event);

impl FromQueryResult for StoredEvent {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        let text = |column: Column| row.try_get::<String>(prefix, column.as_str());
        Ok(Self(Event::from(EventFields {
            id: row.try_get(prefix, Column::Id.as_str())?,
            timestamp: read_instant(row, prefix, Column::Timestamp)?,
            received_at: read_instant(row, prefix, Column::ReceivedAt)?,
            session_id: &text(Column::SessionId)?,
            category: &text(Column::Category)?,
            name: &text(Column::Name)?,
            data: &text(Column::Data)?,
        })))
    }
}

fn read_instant(row: &QueryResult, prefix: &str, column: Column) -> Result<Timestamp, DbErr> {
    let micros = match row.try_as_sqlite_row() {
        Some(_) => row.try_get::<i64>(prefix, column.as_str())?,
        None => row.try_get::<DateTimeUtc>(prefix, column.as_str())?.timestamp_micros(),
    };
    Timestamp::from_micros(micros)
        .ok_or_else(|| DbErr::Type(format!("event.{} is not within the years 1970 to 9999", column.as_str())))
}
