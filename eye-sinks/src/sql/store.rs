//! Queries: one page and the exact count, from one snapshot.

mod count;

use eye_core::event::Event;
use eye_core::event::EventKey;
use eye_core::store::{EventFilter, EventPage, EventQuery, MAX_PAGE_BYTES, MAX_PAGE_EVENTS, PageStart};
use eye_core::timestamp::Timestamp;
use futures_util::TryStreamExt;
use sea_orm::sea_query::extension::mysql::{IndexHintScope, MySqlSelectStatementExt};
use sea_orm::sea_query::{BinOper, Expr, ExprTrait};
use sea_orm::{
    AccessMode, Condition, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    IdenStatic, IsolationLevel, Order, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select, TransactionTrait,
};

use super::entity::{COLUMNS, Column, Entity, StoredEvent, instant};

/// Events of the first step of a page. The usual page of 100 fits in, with the one more that tells whether it is the last,
/// and the one that a cursor comes from.
const FIRST_STEP_EVENTS: usize = 102;

/// Answers a query. To be run to its end: a cancelled one would leave its connection in doubt.
pub(super) async fn read(db: &DatabaseConnection, query: &EventQuery) -> Result<EventPage, DbErr> {
    if has_nul(&query.filter) {
        // No event has one, and PostgreSQL would take the question for an error.
        return Ok(EventPage::default());
    }
    let snapshot = begin(db).await?;
    let reader = Reader { filter: &query.filter, leading: leading(&query.filter), snapshot: &snapshot };
    let page = reader.page(&query.start, Ord::min(query.limit, MAX_PAGE_EVENTS)).await?;
    snapshot.commit().await?;
    Ok(page)
}

/// A transaction whose statements all see the same events.
async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    match db.get_database_backend() {
        DbBackend::Sqlite => {
            let snapshot = db.begin().await?;
            // Of the inbox first: what leaves it meanwhile is found in the other file then.
            snapshot.execute_unprepared("SELECT 1 FROM event_inbox LIMIT 1").await?;
            Ok(snapshot)
        }
        _ => db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await,
    }
}

fn has_nul(filter: &EventFilter) -> bool {
    [&filter.session_id, &filter.category, &filter.name].into_iter().flatten().any(|text| text.contains('\0'))
}

/// The text whose index leads to the events. A session has few, whatever else is asked for.
fn leading(filter: &EventFilter) -> Option<Column> {
    let texts =
        [(&filter.session_id, Column::SessionId), (&filter.name, Column::Name), (&filter.category, Column::Category)];
    texts.into_iter().find(|(text, _)| text.is_some()).map(|(_, column)| column)
}

struct Reader<'a> {
    filter: &'a EventFilter,
    leading: Option<Column>,
    snapshot: &'a DatabaseTransaction,
}

impl Reader<'_> {
    async fn page(&self, start: &PageStart, limit: u32) -> Result<EventPage, DbErr> {
        let limit = u64::from(limit);
        let recent = self.recent().await?;
        let count = self.count(&recent).await?;
        if count == 0 {
            return Ok(EventPage::default());
        }
        let Fetched { events, has_more, has_start } = match self.narrowed(start, limit, &recent).await? {
            Some((filter, leading)) => Reader { filter: &filter, leading, ..*self }.events_from(start, limit).await?,
            None => Fetched::default(),
        };
        Ok(match start {
            PageStart::Newest => EventPage { count, events, has_older: has_more, has_newer: false },
            PageStart::Offset(offset) => {
                EventPage { count, events, has_older: has_more, has_newer: Ord::min(*offset, count) > 0 }
            }
            PageStart::OlderThan(key) => {
                let has_newer = has_start || self.any(Than::Newer, key).await?;
                EventPage { count, events, has_older: has_more, has_newer }
            }
            PageStart::NewerThan(key) => {
                let has_older = has_start || self.any(Than::Older, key).await?;
                EventPage { count, events: events.into_iter().rev().collect(), has_older, has_newer: has_more }
            }
        })
    }

    /// The first events of a page.
    async fn events_from(&self, start: &PageStart, limit: u64) -> Result<Fetched, DbErr> {
        let EventFilter { timestamp_after: after, timestamp_before: before, .. } = *self.filter;
        let newest_first = || self.events(Order::Desc).filter(self.matching(after, before));
        match start {
            PageStart::Newest => self.fetch(newest_first(), Than::Older, limit, None).await,
            PageStart::Offset(offset) => {
                // What the databases take at most; no table has so many events.
                let offset = Ord::min(*offset, i64::MAX as u64);
                self.fetch(newest_first().offset(offset), Than::Older, limit, None).await
            }
            PageStart::OlderThan(key) => {
                self.fetch(self.events_beside(Than::OlderOrSame, key), Than::Older, limit, Some(key)).await
            }
            PageStart::NewerThan(key) => {
                self.fetch(self.events_beside(Than::NewerOrSame, key), Than::Newer, limit, Some(key)).await
            }
        }
    }

    /// What the filter says of the texts, within these bounds, which are its own or closer.
    ///
    /// A sign that changes nothing keeps databases from looking for other texts than the leading one in their indexes.
    fn matching(&self, after: Option<Timestamp>, before: Option<Timestamp>) -> Condition {
        let (filter, backend) = (self.filter, self.snapshot.get_database_backend());
        let leading = self.leading.as_ref().map(Column::as_str);
        let is = |column: Column, text: &String| {
            let name = column.as_str();
            let value = match backend {
                _ if leading == Some(name) => Expr::col(column),
                // The index of names has it, too.
                DbBackend::Postgres if leading == Some("name") && name == "category" => Expr::col(column),
                DbBackend::Sqlite => Expr::cust(format!("+{name}")),
                DbBackend::Postgres => Expr::cust(format!("{name} || ''")),
                _ => Expr::col(column),
            };
            value.eq(text)
        };
        let timestamp = || Expr::col(Column::Timestamp);
        Condition::all()
            .add_option(filter.session_id.as_ref().map(|text| is(Column::SessionId, text)))
            .add_option(filter.category.as_ref().map(|text| is(Column::Category, text)))
            .add_option(filter.name.as_ref().map(|text| is(Column::Name, text)))
            .add_option(after.map(|after| timestamp().gte(instant(backend, after))))
            .add_option(before.map(|before| timestamp().lte(instant(backend, before))))
    }

    /// The events that match and stand so to the key, those next to it first.
    fn events_beside(&self, than: Than, key: &EventKey) -> Select<Entity> {
        let EventFilter { timestamp_after: after, timestamp_before: before, .. } = *self.filter;
        // The key is a bound itself. With another one on its side the database might start from that one.
        let matching = match than.strict() {
            Than::Older => self.matching(after, before.filter(|before| *before < key.timestamp)),
            _ => self.matching(after.filter(|after| *after > key.timestamp), before),
        };
        self.events(than.order()).filter(matching).filter(self.stands(than, key))
    }

    /// All events, in their order.
    fn events(&self, order: Order) -> Select<Entity> {
        let mut select = Entity::find().select_only();
        // MariaDB, left to itself, would read all events of a text down to where the page starts, and fetch each.
        if let Some(leading) = self.leading
            && self.snapshot.get_database_backend() == DbBackend::MySql
        {
            let index = format!("event_{}", leading.as_str());
            QueryTrait::query(&mut select).force_index(index, IndexHintScope::All);
        }
        for column in COLUMNS {
            select = match column {
                // Its type is json, which would be sent as such.
                Column::Data if self.snapshot.get_database_backend() == DbBackend::Postgres => {
                    select.column_as(Expr::col(column).cast_as("text"), column.as_str())
                }
                _ => select.column(column),
            };
        }
        select.order_by(Column::Timestamp, order.clone()).order_by(Column::Id, order)
    }

    /// The first `limit` events of `select`, whose order is that of `than`, and whether more are there: beyond `limit`, or
    /// beyond [`MAX_PAGE_BYTES`]. The event of the key where the page starts is none of them.
    ///
    /// In steps, since a database sends all it was asked for: the first is the usual page, and what it finds tells how
    /// large the next may be. Row by row, since none of it has to be as large as the ones before.
    async fn fetch(
        &self,
        mut select: Select<Entity>,
        than: Than,
        limit: u64,
        start: Option<&EventKey>,
    ) -> Result<Fetched, DbErr> {
        let (mut fetched, mut bytes, mut step) = (Fetched::default(), 0, FIRST_STEP_EVENTS);
        loop {
            let wanted = limit as usize + 1 + usize::from(start.is_some()) - fetched.events.len();
            let asked = Ord::min(step, wanted);
            let selected = select.limit(asked as u64).into_model::<StoredEvent>();
            let mut rows = selected.stream(self.snapshot).await?;
            let mut found = 0;
            while let Some(StoredEvent(event)) = rows.try_next().await? {
                found += 1;
                if start.is_some_and(|start| *start == event.key()) {
                    fetched.has_start = true;
                    continue;
                }
                if fetched.events.len() as u64 == limit || bytes >= MAX_PAGE_BYTES {
                    fetched.has_more = true;
                    return Ok(fetched);
                }
                bytes += event.size_bytes();
                fetched.events.push(event);
            }
            drop(rows);
            let Some(last) = fetched.events.last().filter(|_| found == asked) else { return Ok(fetched) };
            let average = bytes / fetched.events.len() + 1;
            step = MAX_PAGE_BYTES.saturating_sub(bytes) / average + 1;
            select = self.events_beside(than, &last.key());
        }
    }

    /// Whether an event matches that stands so to the key.
    async fn any(&self, than: Than, key: &EventKey) -> Result<bool, DbErr> {
        // With the columns of its order, without which SQLite would sort what both tables of the view have.
        let events = self.events_beside(than, key).select_only().columns([Column::Timestamp, Column::Id]);
        Ok(self.snapshot.query_one(events.limit(1).as_query()).await?.is_some())
    }

    /// `(timestamp, id)` compared with the key, written so that the database makes one range of an index of it.
    fn stands(&self, than: Than, key: &EventKey) -> Condition {
        let backend = self.snapshot.get_database_backend();
        let (timestamp, id) = (instant(backend, key.timestamp), Expr::val(key.id));
        let columns = [Column::Timestamp, Column::Id].map(Expr::col);
        if backend == DbBackend::MySql {
            // MySQL reads a comparison of rows as a filter, but finds the range in its expansion.
            let [timestamp_column, id_column] = columns;
            let tie = Expr::col(Column::Timestamp).eq(timestamp.clone()).and(id_column.binary(than.operator(), id));
            return Condition::any().add(timestamp_column.binary(than.strict().operator(), timestamp)).add(tie);
        }
        Condition::all().add(Expr::tuple(columns).binary(than.operator(), Expr::tuple([Expr::val(timestamp), id])))
    }
}

/// Events of a page, in the order in which they were looked for.
#[derive(Default)]
struct Fetched {
    events: Vec<Event>,
    has_more: bool,
    /// Whether the event is there whose key the page starts from. Then something lies on that side.
    has_start: bool,
}

/// How an event stands to a key.
#[derive(Clone, Copy)]
enum Than {
    Older,
    OlderOrSame,
    Newer,
    NewerOrSame,
}

impl Than {
    fn operator(self) -> BinOper {
        match self {
            Self::Older => BinOper::SmallerThan,
            Self::OlderOrSame => BinOper::SmallerThanOrEqual,
            Self::Newer => BinOper::GreaterThan,
            Self::NewerOrSame => BinOper::GreaterThanOrEqual,
        }
    }

    fn strict(self) -> Self {
        match self {
            Self::Older | Self::OlderOrSame => Self::Older,
            Self::Newer | Self::NewerOrSame => Self::Newer,
        }
    }

    /// The order in which the events next to the key come first.
    fn order(self) -> Order {
        match self.strict() {
            Self::Older => Order::Desc,
            _ => Order::Asc,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod plans;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod snapshot;
