//! The table `event` as SeaORM sees it.

use std::sync::Arc;

use eye_core::event::{Event, EventFields, Origin};
use eye_core::timestamp::Timestamp;
use sea_orm::entity::prelude::*;
use sea_orm::{DbBackend, FromQueryResult, QueryResult, RuntimeErr};
use sqlx::{ColumnIndex, Decode, Row, Type};

/// A row. The types are those of PostgreSQL and MySQL. SQLite has integers for timestamps, see [`instant`] and
/// [`StoredEvent`].
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
    pub origin: String,
    pub data: String,
    pub received_at: DateTimeUtc,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// Returns the value of the column `origin`.
pub(super) fn origin(event: &Event) -> &str {
    event.origin().name()
}

/// Converts a timestamp to the type that the database compares it with.
pub(super) fn instant(backend: DbBackend, timestamp: Timestamp) -> Value {
    match backend {
        DbBackend::Sqlite => timestamp.as_micros().into(),
        // With a time zone it would be a TIMESTAMP, which ends in 2038.
        DbBackend::MySql => timestamp.to_chrono().naive_utc().into(),
        _ => timestamp.to_chrono().into(),
    }
}

/// The columns of a [`StoredEvent`], in its order.
pub(super) const COLUMNS: [Column; 8] = [
    Column::Timestamp,
    Column::ReceivedAt,
    Column::Id,
    Column::SessionId,
    Column::Category,
    Column::Name,
    Column::Origin,
    Column::Data,
];

/// An event from a row. Its texts are copied once, from the row into the event.
pub(super) struct StoredEvent(pub(super) Event);

impl FromQueryResult for StoredEvent {
    fn from_query_result(row: &QueryResult, _prefix: &str) -> Result<Self, DbErr> {
        let event = if let Some(row) = row.try_as_sqlite_row() {
            decode(row, |micros: i64| micros)
        } else if let Some(row) = row.try_as_pg_row() {
            decode(row, |instant: DateTimeUtc| instant.timestamp_micros())
        } else if let Some(row) = row.try_as_mysql_row() {
            decode(row, |instant: DateTime| instant.and_utc().timestamp_micros())
        } else {
            return Err(DbErr::Type("the row is of an unknown database".to_owned()));
        };
        event.map(Self).map_err(|error| DbErr::Query(RuntimeErr::SqlxError(error.into())))
    }
}

fn decode<'r, R, T>(row: &'r R, micros: fn(T) -> i64) -> Result<Event, sqlx::Error>
where
    R: Row,
    usize: ColumnIndex<R>,
    T: Decode<'r, R::Database> + Type<R::Database>,
    Uuid: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    let instant = |index| {
        let timestamp = Timestamp::from_micros(micros(row.try_get(index)?));
        timestamp.ok_or_else(|| sqlx::Error::Decode("a timestamp is not within the years 1970 to 9999".into()))
    };
    // The client's address is never stored.
    let origin = Arc::new(Origin::new(row.try_get(6)?, None));
    Ok(Event::from(EventFields {
        timestamp: instant(0)?,
        received_at: instant(1)?,
        id: row.try_get(2)?,
        session_id: row.try_get(3)?,
        category: row.try_get(4)?,
        name: row.try_get(5)?,
        data: row.try_get(7)?,
        origin: &origin,
    }))
}
