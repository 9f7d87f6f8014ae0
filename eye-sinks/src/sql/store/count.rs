//! How many events match, and in which hours: from the counts, as far as they know.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use eye_core::store::{EventFilter, PageStart};
use eye_core::timestamp::Timestamp;
use futures_util::TryStreamExt;
use sea_orm::sea_query::{Asterisk, Expr, ExprTrait, IntoTableRef, Query, SelectStatement, UnionType};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Order};

use super::super::counts::{self, Counted, end_of, hour, in_days, start_of};
use super::super::entity::Column;
use super::Reader;

/// About so many entries of an index are read in the time that it takes to look one event up in the table, at least.
const ENTRIES_PER_ROW: i64 = 16;

/// Events of the filter's category and name that were not added up yet, by hour.
pub(super) type Recent = BTreeMap<i32, i64>;

/// Hours of one category or name.
struct Hours<'a> {
    /// `None` is all.
    category: Option<&'a str>,
    /// `None` is all.
    name: Option<&'a str>,
    range: RangeInclusive<i32>,
}

impl Hours<'_> {
    /// What was added up of them, by hour.
    fn select(&self) -> SelectStatement {
        self.select_range(&self.range)
    }

    /// The counts whose sum they have: of days, as far as these are whole.
    fn select_all(&self) -> Vec<SelectStatement> {
        in_days(&self.range).iter().map(|range| self.select_range(range).column("count").take()).collect()
    }

    fn select_range(&self, range: &RangeInclusive<i32>) -> SelectStatement {
        let mut select = Query::select();
        select
            .from("event_count")
            .and_where(Expr::col("category").eq(self.category.unwrap_or_default()))
            .and_where(Expr::col("name").eq(self.name.unwrap_or_default()))
            .and_where(Expr::col("hour").gte(*range.start()))
            .and_where(Expr::col("hour").lte(*range.end()));
        select
    }
}

impl Reader<'_> {
    /// From the deltas, all of which are read: those of a second, or some hundreds.
    pub(super) async fn recent(&self) -> Result<Recent, DbErr> {
        let mut recent = Recent::new();
        if self.filter.session_id.is_some() {
            return Ok(recent);
        }
        let select = Query::select().column("delta").from("event_count_delta").take();
        let mut rows = sea_orm::StreamTrait::stream(self.snapshot, &select).await?;
        let (category, name) = (self.filter.category.as_deref(), self.filter.name.as_deref());
        while let Some(row) = rows.try_next().await? {
            let delta: String = row.try_get_by_index(0)?;
            for (hour, count) in
                counts::of_delta(&delta, category, name).map_err(|error| DbErr::Json(error.to_string()))?
            {
                *recent.entry(hour).or_default() += count;
            }
        }
        Ok(recent)
    }

    /// Of whole hours it is known; what the filter's range has more or less than those is counted.
    pub(super) async fn count(&self, recent: &Recent) -> Result<u64, DbErr> {
        let EventFilter { category, name, timestamp_after, timestamp_before, .. } = self.filter;
        let Some(Counted { hours: range, lacking, beside }) = Counted::of(self.filter) else {
            return self.count_one_by_one(*timestamp_after, *timestamp_before).await;
        };
        let recent: i64 = recent.range(range.clone()).map(|(_, count)| count).sum();
        let hours = Hours { category: category.as_deref(), name: name.as_deref(), range };
        let mut count = u64::try_from(self.sum(hours.select_all()).await? + recent).unwrap_or(0);
        for (first, last) in lacking {
            count += self.count_one_by_one(Some(first), Some(last)).await?;
        }
        for (first, last) in beside {
            count = count.saturating_sub(self.count_one_by_one(Some(first), Some(last)).await?);
        }
        Ok(count)
    }

    async fn count_one_by_one(&self, after: Option<Timestamp>, before: Option<Timestamp>) -> Result<u64, DbErr> {
        let tables = match self.snapshot.get_database_backend() {
            // Counting what the view of both has takes two to four times as long.
            DbBackend::Sqlite => vec![("main", "event").into_table_ref(), "event_waiting".into_table_ref()],
            _ => vec!["event".into_table_ref()],
        };
        let count = |table| {
            let mut select = Query::select();
            select.expr_as(Expr::col(Asterisk).count(), "count").from(table).cond_where(self.matching(after, before));
            select
        };
        let count = self.sum(tables.into_iter().map(count).collect()).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Of the column `count` of all these, one at least.
    async fn sum(&self, selects: Vec<SelectStatement>) -> Result<i64, DbErr> {
        let all = selects.into_iter().reduce(|mut all, select| all.union(UnionType::All, select).take());
        let all = all.expect("there is something to add up");
        let integer = if self.snapshot.get_database_backend() == DbBackend::MySql { "SIGNED" } else { "bigint" };
        let sum = Expr::col("count").sum().cast_as(integer);
        let select = Query::select().expr(sum).from_subquery(all, "counts").take();
        let row = self.snapshot.query_one(&select).await?;
        let sum = row.map(|row| row.try_get_by_index::<Option<i64>>(0)).transpose()?;
        Ok(sum.flatten().unwrap_or(0))
    }

    /// Where a page of a category and a name lies: in the hours that have enough of both, by the index of names, which
    /// tells the category, too, unless the category is by far the rarer one. None when there is nothing.
    pub(super) async fn narrowed(
        &self,
        start: &PageStart,
        limit: u64,
        recent: &Recent,
    ) -> Result<Option<(EventFilter, Option<Column>)>, DbErr> {
        let mut filter = self.filter.clone();
        let (None, Some(category), Some(name)) = (&filter.session_id, &filter.category, &filter.name) else {
            return Ok(Some((filter, self.leading)));
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
        // One more tells whether the page is the last.
        let needed = skipped.saturating_add(limit + 1);
        let mut hours = Hours { category: Some(category), name: Some(name), range: hour(after)..=hour(before) };
        let counts = self.first_hours(&hours, recent, &order, needed).await?;
        let Some((first, last)) = counts::hours_with(needed, counts) else { return Ok(None) };
        hours.range = Ord::min(first, last)..=Ord::max(first, last);
        let of_category = self.sum(Hours { name: None, range: hours.range.clone(), ..hours }.select_all()).await?;
        let of_name = self.sum(Hours { category: None, range: hours.range.clone(), ..hours }.select_all()).await?;
        let leading =
            if of_category.saturating_mul(ENTRIES_PER_ROW) < of_name { Column::Category } else { Column::Name };
        filter.timestamp_after = Some(Ord::max(after, start_of(*hours.range.start())));
        filter.timestamp_before = Some(Ord::min(before, end_of(*hours.range.end())));
        Ok(Some((filter, Some(leading))))
    }

    /// The counts of the hours that come first in this order, as many as may be needed for so many events.
    async fn first_hours(
        &self,
        hours: &Hours<'_>,
        recent: &Recent,
        order: &Order,
        needed: u64,
    ) -> Result<Vec<(i32, i64)>, DbErr> {
        let mut counts: BTreeMap<i32, i64> = recent.range(hours.range.clone()).map(|(&h, &count)| (h, count)).collect();
        let mut select = hours.select();
        // Each hour has an event, and of the first one it is not known where it lies.
        let at_most = Ord::min(needed.saturating_add(1), i64::MAX as u64);
        select.columns(["hour", "count"]).order_by("hour", order.clone()).limit(at_most);
        for row in self.snapshot.query_all(&select).await? {
            *counts.entry(row.try_get_by_index(0)?).or_default() += row.try_get_by_index::<i64>(1)?;
        }
        Ok(match order {
            Order::Desc => counts.into_iter().rev().collect(),
            _ => counts.into_iter().collect(),
        })
    }
}
