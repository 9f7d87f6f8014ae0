//! Statements that select events: what a filter matches, in the order of a page. Each one reads a single range of an
//! index.

use eye_core::event::EventKey;
use eye_core::store::EventFilter;
use eye_core::timestamp::Timestamp;
use sea_orm::sea_query::extension::mysql::{IndexHintScope, MySqlSelectStatementExt};
use sea_orm::sea_query::{BinOper, Expr, ExprTrait};
use sea_orm::{
    Condition, DbBackend, EntityTrait, IdenStatic, Order, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select,
};

use super::super::entity::{COLUMNS, Column, Entity, instant};

/// The events of a filter on one kind of database.
#[derive(Clone, Copy)]
pub(super) struct EventSelect<'a> {
    pub(super) filter: &'a EventFilter,
    /// The column whose index leads to the events.
    pub(super) leading: Option<Column>,
    pub(super) backend: DbBackend,
}

/// A position of events relative to a key.
#[derive(Clone, Copy)]
pub(super) enum KeyBound {
    Older,
    OlderOrSame,
    Newer,
    NewerOrSame,
}

impl KeyBound {
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

    /// Returns the order in which the events next to the key come first.
    fn order(self) -> Order {
        match self.strict() {
            Self::Older => Order::Desc,
            _ => Order::Asc,
        }
    }
}

impl<'a> EventSelect<'a> {
    /// Picks the leading column: a session has few events, whatever else the filter says.
    pub(super) fn new(filter: &'a EventFilter, backend: DbBackend) -> Self {
        let texts = [
            (&filter.session_id, Column::SessionId),
            (&filter.name, Column::Name),
            (&filter.category, Column::Category),
        ];
        let leading = texts.into_iter().find(|(text, _)| text.is_some()).map(|(_, column)| column);
        Self { filter, leading, backend }
    }

    /// Returns the condition on texts, with bounds that are the filter's or closer.
    ///
    /// An operator without effect keeps databases from using an index of another text than the leading one.
    pub(super) fn matching(&self, after: Option<Timestamp>, before: Option<Timestamp>) -> Condition {
        let leading = self.leading.as_ref().map(Column::as_str);
        let is = |column: Column, text: &String| {
            let name = column.as_str();
            let value = match self.backend {
                _ if leading == Some(name) => Expr::col(column),
                // The index of names ends with the category.
                DbBackend::Postgres if leading == Some("name") && name == "category" => Expr::col(column),
                DbBackend::Sqlite => Expr::cust(format!("+{name}")),
                DbBackend::Postgres => Expr::cust(format!("{name} || ''")),
                _ => Expr::col(column),
            };
            value.eq(text)
        };
        let timestamp = || Expr::col(Column::Timestamp);
        Condition::all()
            .add_option(self.filter.session_id.as_ref().map(|text| is(Column::SessionId, text)))
            .add_option(self.filter.category.as_ref().map(|text| is(Column::Category, text)))
            .add_option(self.filter.name.as_ref().map(|text| is(Column::Name, text)))
            .add_option(after.map(|after| timestamp().gte(instant(self.backend, after))))
            .add_option(before.map(|before| timestamp().lte(instant(self.backend, before))))
    }

    /// Selects all matching events, newest first.
    pub(super) fn newest_first(&self) -> Select<Entity> {
        let EventFilter { timestamp_after: after, timestamp_before: before, .. } = *self.filter;
        self.ordered(Order::Desc).filter(self.matching(after, before))
    }

    /// Selects the matching events on one side of a key, those next to it first.
    pub(super) fn beside(&self, bound: KeyBound, key: &EventKey) -> Select<Entity> {
        let EventFilter { timestamp_after: after, timestamp_before: before, .. } = *self.filter;
        // The key is a bound itself. With two bounds on one side the database might start from the wider one.
        let matching = match bound.strict() {
            KeyBound::Older => self.matching(after, before.filter(|before| *before < key.timestamp)),
            _ => self.matching(after.filter(|after| *after > key.timestamp), before),
        };
        self.ordered(bound.order()).filter(matching).filter(self.compare(bound, key))
    }

    fn ordered(&self, order: Order) -> Select<Entity> {
        let mut select = Entity::find().select_only();
        // By itself MariaDB reads all events of a text down to where the page starts, and fetches each.
        if let Some(leading) = self.leading
            && self.backend == DbBackend::MySql
        {
            let index = format!("event_{}", leading.as_str());
            QueryTrait::query(&mut select).force_index(index, IndexHintScope::All);
        }
        for column in COLUMNS {
            select = match column {
                // sqlx would decode the type json itself.
                Column::Data if self.backend == DbBackend::Postgres => {
                    select.column_as(Expr::col(column).cast_as("text"), column.as_str())
                }
                _ => select.column(column),
            };
        }
        select.order_by(Column::Timestamp, order.clone()).order_by(Column::Id, order)
    }

    /// Compares `(timestamp, id)` with the key, so that the database reads one range of an index.
    fn compare(&self, bound: KeyBound, key: &EventKey) -> Condition {
        let (timestamp, id) = (instant(self.backend, key.timestamp), Expr::val(key.id));
        let columns = [Column::Timestamp, Column::Id].map(Expr::col);
        if self.backend == DbBackend::MySql {
            // MySQL filters by a comparison of rows, but reads a range for its expansion.
            let [timestamp_column, id_column] = columns;
            let tie = Expr::col(Column::Timestamp).eq(timestamp.clone()).and(id_column.binary(bound.operator(), id));
            return Condition::any().add(timestamp_column.binary(bound.strict().operator(), timestamp)).add(tie);
        }
        Condition::all().add(Expr::tuple(columns).binary(bound.operator(), Expr::tuple([Expr::val(timestamp), id])))
    }
}
