//! Exact counts from the maintained ones, and the hours in which a page lies.

use std::collections::BTreeMap;
use std::ops::Range;

use eye_core::store::{EventFilter, PageStart};
use eye_core::timestamp::Timestamp;
use futures_util::TryStreamExt;
use sea_orm::sea_query::{Asterisk, Expr, ExprTrait, IntoTableRef, Query, SelectStatement, UnionType};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Order, StreamTrait};

use super::super::counts::{self, CountPlan, end_of, hour, periods_in, start_of};
use super::super::entity::Column;
use super::select::EventSelect;

/// Entries of an index that are read in the time of one look-up in the table, at least.
const ENTRIES_PER_ROW: i64 = 16;

/// Counts of the events of a filter, in one snapshot.
pub(super) struct Counter<'a> {
    select: EventSelect<'a>,
    snapshot: &'a DatabaseTransaction,
    /// Counts by hour in the deltas, which are not folded into `event_count` yet.
    pending: BTreeMap<i32, i64>,
}

/// Hours of one category and name in `event_count`. `None` is any.
struct CountedHours<'a> {
    category: Option<&'a str>,
    name: Option<&'a str>,
    hours: Range<i32>,
}

impl CountedHours<'_> {
    /// Selects the counts that add up to that of all hours.
    fn select_sum(&self) -> Vec<SelectStatement> {
        periods_in(&self.hours).iter().map(|range| self.select(range).column("count").take()).collect()
    }

    /// Selects the rows of a range of periods.
    fn select(&self, periods: &Range<i32>) -> SelectStatement {
        let mut select = Query::select();
        select
            .from("event_count")
            .and_where(Expr::col("category").eq(self.category.unwrap_or_default()))
            .and_where(Expr::col("name").eq(self.name.unwrap_or_default()))
            .and_where(Expr::col("period").gte(periods.start))
            .and_where(Expr::col("period").lt(periods.end));
        select
    }
}

impl<'a> Counter<'a> {
    /// Reads all deltas: those of a second, or some hundreds.
    pub(super) async fn new(select: EventSelect<'a>, snapshot: &'a DatabaseTransaction) -> Result<Self, DbErr> {
        let mut counter = Self { select, snapshot, pending: BTreeMap::new() };
        let EventFilter { session_id, category, name, .. } = select.filter;
        if session_id.is_some() {
            return Ok(counter);
        }
        let deltas = Query::select().column("delta").from("event_count_delta").take();
        let mut rows = StreamTrait::stream(snapshot, &deltas).await?;
        while let Some(row) = rows.try_next().await? {
            let delta: String = row.try_get_by_index(0)?;
            let counts = counts::matching_counts(&delta, category.as_deref(), name.as_deref());
            for (hour, count) in counts.map_err(|error| DbErr::Json(error.to_string()))? {
                *counter.pending.entry(hour).or_default() += count;
            }
        }
        Ok(counter)
    }

    /// Counts all matching events: whole hours by the maintained counts, the rest one by one.
    pub(super) async fn count(&self) -> Result<u64, DbErr> {
        let EventFilter { category, name, timestamp_after, timestamp_before, .. } = self.select.filter;
        let Some(CountPlan { hours, missing, surplus }) = CountPlan::of(self.select.filter) else {
            return self.count_rows(*timestamp_after, *timestamp_before).await;
        };
        let pending: i64 = self.pending.range(hours.clone()).map(|(_, count)| count).sum();
        let counted = CountedHours { category: category.as_deref(), name: name.as_deref(), hours };
        let mut count = u64::try_from(self.sum(counted.select_sum()).await? + pending).unwrap_or(0);
        for (first, last) in missing {
            count += self.count_rows(Some(first), Some(last)).await?;
        }
        for (first, last) in surplus {
            count = count.saturating_sub(self.count_rows(Some(first), Some(last)).await?);
        }
        Ok(count)
    }

    async fn count_rows(&self, after: Option<Timestamp>, before: Option<Timestamp>) -> Result<u64, DbErr> {
        let tables = match self.select.backend {
            // Counting the view of both takes 2 to 4 times as long.
            DbBackend::Sqlite => vec![("main", "event").into_table_ref(), "event_staged".into_table_ref()],
            _ => vec!["event".into_table_ref()],
        };
        let count = |table| {
            let (count, matching) = (Expr::col(Asterisk).count(), self.select.matching(after, before));
            Query::select().expr_as(count, "count").from(table).cond_where(matching).take()
        };
        let count = self.sum(tables.into_iter().map(count).collect()).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Adds up the column `count` of one or more statements.
    async fn sum(&self, selects: Vec<SelectStatement>) -> Result<i64, DbErr> {
        let all = selects.into_iter().reduce(|mut all, select| all.union(UnionType::All, select).take());
        let all = all.expect("a range of hours has a range of periods");
        let integer = if self.select.backend == DbBackend::MySql { "SIGNED" } else { "bigint" };
        let sum = Expr::col("count").sum().cast_as(integer);
        let select = Query::select().expr(sum).from_subquery(all, "counts").take();
        let row = self.snapshot.query_one(&select).await?;
        let sum = row.map(|row| row.try_get_by_index::<Option<i64>>(0)).transpose()?;
        Ok(sum.flatten().unwrap_or(0))
    }

    /// Narrows a filter of a category and a name to the hours of the page. The index of names, which has the category
    /// at its end, leads to the events, unless the category is far rarer than the name. Returns `None` for an empty
    /// page.
    pub(super) async fn narrow(
        &self,
        start: &PageStart,
        limit: u64,
    ) -> Result<Option<(EventFilter, Option<Column>)>, DbErr> {
        let mut filter = self.select.filter.clone();
        let (None, Some(category), Some(name)) = (&filter.session_id, &filter.category, &filter.name) else {
            return Ok(Some((filter, self.select.leading)));
        };
        let mut after = filter.timestamp_after.unwrap_or(Timestamp::MIN);
        let mut before = filter.timestamp_before.unwrap_or(Timestamp::MAX);
        let (order, skipped) = match *start {
            PageStart::Newest => (Order::Desc, 0),
            PageStart::Offset(offset) => (Order::Desc, offset),
            PageStart::OlderThan(key) => {
                before = Ord::min(before, key.timestamp);
                (Order::Desc, 0)
            }
            PageStart::NewerThan(key) => {
                after = Ord::max(after, key.timestamp);
                (Order::Asc, 0)
            }
        };
        if after > before {
            return Ok(None);
        }
        // One more event tells if the page is the last.
        let needed = skipped.saturating_add(limit + 1);
        let mut both =
            CountedHours { category: Some(category), name: Some(name), hours: hour(after)..hour(before) + 1 };
        let counts = self.first_hours(&both, &order, needed).await?;
        let Some((first, last)) = counts::hours_with(needed, counts) else { return Ok(None) };
        both.hours = Ord::min(first, last)..Ord::max(first, last) + 1;
        let of_category = CountedHours { name: None, hours: both.hours.clone(), ..both };
        let of_name = CountedHours { category: None, hours: both.hours.clone(), ..both };
        let of_category = self.sum(of_category.select_sum()).await?;
        let is_rarer = of_category.saturating_mul(ENTRIES_PER_ROW) < self.sum(of_name.select_sum()).await?;
        let leading = if is_rarer { Column::Category } else { Column::Name };
        filter.timestamp_after = Some(Ord::max(after, start_of(both.hours.start)));
        filter.timestamp_before = Some(Ord::min(before, end_of(both.hours.end - 1)));
        Ok(Some((filter, Some(leading))))
    }

    /// Returns the counts of the first hours in this order, as many as `needed` events can take.
    async fn first_hours(
        &self,
        counted: &CountedHours<'_>,
        order: &Order,
        needed: u64,
    ) -> Result<Vec<(i32, i64)>, DbErr> {
        let pending = self.pending.range(counted.hours.clone());
        let mut counts: BTreeMap<i32, i64> = pending.map(|(&hour, &count)| (hour, count)).collect();
        let mut select = counted.select(&counted.hours);
        // Each hour has an event. One more hour, because the page may start anywhere in the first.
        let at_most = Ord::min(needed.saturating_add(1), i64::MAX as u64);
        select.columns(["period", "count"]).order_by("period", order.clone()).limit(at_most);
        for row in self.snapshot.query_all(&select).await? {
            *counts.entry(row.try_get_by_index(0)?).or_default() += row.try_get_by_index::<i64>(1)?;
        }
        Ok(match order {
            Order::Desc => counts.into_iter().rev().collect(),
            _ => counts.into_iter().collect(),
        })
    }
}
