//! Queries: a page and the exact count of all matching events, from one snapshot. Read [`read_page`] first.

mod count;
mod select;

use eye_core::event::{Event, EventKey};
use eye_core::store::{EventFilter, EventPage, EventQuery, MAX_PAGE_BYTES, MAX_PAGE_EVENTS, PageStart};
use futures_util::TryStreamExt;
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel,
    QuerySelect, QueryTrait, Select, TransactionTrait,
};

use self::count::Counter;
use self::select::{EventSelect, KeyBound};
use super::entity::{Column, Entity, StoredEvent};

/// Events of the first step of a page: the default page of 100, the event of the cursor, and one more that tells if the
/// page is the last.
const FIRST_STEP_EVENTS: usize = 102;

/// Answers a query. The future must run to its end: a cancelled one leaves its connection in doubt.
pub(super) async fn read_page(db: &DatabaseConnection, query: &EventQuery) -> Result<EventPage, DbErr> {
    if has_nul(&query.filter) {
        // No event has a NUL, and PostgreSQL answers it with an error.
        return Ok(EventPage::default());
    }
    let snapshot = begin_snapshot(db).await?;
    let page = page(&snapshot, &query.filter, &query.start, Ord::min(query.limit, MAX_PAGE_EVENTS).into()).await?;
    snapshot.commit().await?;
    Ok(page)
}

/// Begins a transaction whose statements all see the same events.
async fn begin_snapshot(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    match db.get_database_backend() {
        DbBackend::Sqlite => {
            let snapshot = db.begin().await?;
            // The staging table comes first: an event that is flushed meanwhile is found in the main table later.
            snapshot.execute_unprepared("SELECT 1 FROM event_staging LIMIT 1").await?;
            Ok(snapshot)
        }
        _ => db.begin_with_config(Some(IsolationLevel::RepeatableRead), Some(AccessMode::ReadOnly)).await,
    }
}

fn has_nul(filter: &EventFilter) -> bool {
    [&filter.session_id, &filter.category, &filter.name].into_iter().flatten().any(|text| text.contains('\0'))
}

async fn page(
    snapshot: &DatabaseTransaction,
    filter: &EventFilter,
    start: &PageStart,
    limit: u64,
) -> Result<EventPage, DbErr> {
    let select = EventSelect::new(filter, snapshot.get_database_backend());
    let counter = Counter::new(select, snapshot).await?;
    let count = counter.count().await?;
    if count == 0 {
        return Ok(EventPage::default());
    }
    let fetched = match counter.narrow(start, limit).await? {
        Some((filter, leading)) => {
            let select = EventSelect { filter: &filter, leading, ..select };
            PageReader { select, snapshot }.events(start, limit).await?
        }
        None => FetchedEvents::default(),
    };
    let reader = PageReader { select, snapshot };
    let FetchedEvents { mut events, has_more, has_start } = fetched;
    let (has_older, has_newer) = match start {
        PageStart::Newest => (has_more, false),
        PageStart::Offset(offset) => (has_more, Ord::min(*offset, count) > 0),
        PageStart::OlderThan(key) => (has_more, has_start || reader.has_any(KeyBound::Newer, key).await?),
        PageStart::NewerThan(key) => {
            events.reverse();
            (has_start || reader.has_any(KeyBound::Older, key).await?, has_more)
        }
    };
    Ok(EventPage { count, events, has_older, has_newer })
}

/// Reads events of a filter in one snapshot.
struct PageReader<'a> {
    select: EventSelect<'a>,
    snapshot: &'a DatabaseTransaction,
}

/// Events of a page, in the order of reading.
#[derive(Default)]
struct FetchedEvents {
    events: Vec<Event>,
    has_more: bool,
    /// True when the event at which the page starts exists. Then the page has a neighbour on that side.
    has_start: bool,
}

impl PageReader<'_> {
    async fn events(&self, start: &PageStart, limit: u64) -> Result<FetchedEvents, DbErr> {
        let select = &self.select;
        match start {
            PageStart::Newest => self.fetch(select.newest_first(), KeyBound::Older, limit, None).await,
            PageStart::Offset(offset) => {
                // The databases take no larger number, and no table has so many events.
                let offset = Ord::min(*offset, i64::MAX as u64);
                self.fetch(select.newest_first().offset(offset), KeyBound::Older, limit, None).await
            }
            PageStart::OlderThan(key) => {
                self.fetch(select.beside(KeyBound::OlderOrSame, key), KeyBound::Older, limit, Some(key)).await
            }
            PageStart::NewerThan(key) => {
                self.fetch(select.beside(KeyBound::NewerOrSame, key), KeyBound::Newer, limit, Some(key)).await
            }
        }
    }

    /// Reads at most `limit` events and at most [`MAX_PAGE_BYTES`], in the order of `bound`. The event of the key at
    /// which the page starts is not part of the page.
    ///
    /// The events come in steps, because a database sends all it was asked for: the first step is the default page, and
    /// its events tell how large the next one may be.
    async fn fetch(
        &self,
        mut select: Select<Entity>,
        bound: KeyBound,
        limit: u64,
        start: Option<&EventKey>,
    ) -> Result<FetchedEvents, DbErr> {
        let (mut fetched, mut bytes, mut step) = (FetchedEvents::default(), 0, FIRST_STEP_EVENTS);
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
            select = self.select.beside(bound, &last.key());
        }
    }

    /// Returns true when a matching event lies on this side of the key.
    async fn has_any(&self, bound: KeyBound, key: &EventKey) -> Result<bool, DbErr> {
        // The columns of the order spare SQLite sorting both tables of the view.
        let events = self.select.beside(bound, key).select_only().columns([Column::Timestamp, Column::Id]);
        Ok(self.snapshot.query_one(events.limit(1).as_query()).await?.is_some())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod plans;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod snapshot;
