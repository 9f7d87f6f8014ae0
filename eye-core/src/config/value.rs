//! A configuration's values with their positions, in the order of the file.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::interpolate::{Variables, interpolate};
use super::{Fault, Faults};

/// A value and where it starts.
pub(super) struct Node {
    /// Bytes from the start of the text.
    pub(super) at: usize,
    pub(super) value: Value,
}

pub(super) enum Value {
    Text(String),
    /// Within `i64::MIN..=u64::MAX`.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// A value that was wrong and is reported. It reads as whatever is asked for, so that the rest can be checked.
    Reported,
}

/// A key of a table and its value.
pub(super) struct Entry {
    pub(super) key: String,
    /// Bytes from the start of the text.
    pub(super) at: usize,
    pub(super) node: Node,
}

impl Node {
    /// Takes an entry out of a table.
    pub(super) fn take(&mut self, key: &str) -> Option<Entry> {
        match &mut self.value {
            Value::Table(entries) => take(entries, key),
            _ => None,
        }
    }

    /// Whether this value or one within was reported.
    pub(super) fn is_reported(&self) -> bool {
        match &self.value {
            Value::Reported => true,
            Value::Array(nodes) => nodes.iter().any(Self::is_reported),
            Value::Table(entries) => entries.iter().any(|entry| entry.node.is_reported()),
            _ => false,
        }
    }
}

impl Value {
    /// With its article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date or time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Reported => "a wrong value",
        }
    }
}

/// Takes the entry of that key out.
pub(super) fn take(entries: &mut Vec<Entry>, key: &str) -> Option<Entry> {
    let index = entries.iter().position(|entry| entry.key == key)?;
    Some(entries.remove(index))
}

/// The entries of a parsed table, variables replaced; what cannot be is reported.
pub(super) fn table(path: &str, table: DeTable<'_>, variables: &Variables<'_>, faults: &mut Faults) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| {
            let at = key.span().start;
            let key = key.into_inner().into_owned();
            let node = node(&join(path, &key), value, variables, faults);
            Entry { key, at, node }
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn node(path: &str, parsed: Spanned<DeValue<'_>>, variables: &Variables<'_>, faults: &mut Faults) -> Node {
    let at = parsed.span().start;
    let value = match parsed.into_inner() {
        DeValue::String(text) => interpolate(&text, variables).map(Value::Text),
        DeValue::Integer(digits) => i128::from_str_radix(digits.as_str(), digits.radix())
            .ok()
            .filter(|integer| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(integer))
            .map(Value::Integer)
            .ok_or_else(|| "the number is out of range".to_owned()),
        DeValue::Float(digits) => digits
            .as_str()
            .parse()
            .ok()
            .filter(|float: &f64| float.is_finite())
            .map(Value::Float)
            .ok_or_else(|| "the number is out of range".to_owned()),
        DeValue::Boolean(boolean) => Ok(Value::Boolean(boolean)),
        DeValue::Datetime(_) => Ok(Value::Datetime),
        DeValue::Array(nodes) => Ok(Value::Array(
            nodes
                .into_iter()
                .enumerate()
                .map(|(index, parsed)| node(&format!("{path}[{index}]"), parsed, variables, faults))
                .collect(),
        )),
        DeValue::Table(entries) => Ok(Value::Table(table(path, entries, variables, faults))),
    };
    let value = value.unwrap_or_else(|message| {
        faults.push(Fault { at, key: path.to_owned(), message });
        Value::Reported
    });
    Node { at, value }
}

/// A key below another one, quoted where TOML would quote it.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
