//! The values of a document with their positions, in the order of the file.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Fault, Position};
use crate::interpolate::{Variables, interpolate};
use crate::suggest::{did_you_mean, suggestion};

/// A value and where it starts.
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Text(String),
    /// Within `i64::MIN..=u64::MAX`.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// Stands for a value whose fault is reported. It reads as any type, so that the values around it can be checked.
    Placeholder,
}

/// A key of a table and its value.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Position,
    pub(crate) node: Node,
}

impl Entry {
    pub(crate) fn placeholder(key: &str, at: Position) -> Self {
        Self { key: key.to_owned(), at, node: Node { at, value: Value::Placeholder } }
    }
}

impl Node {
    /// The entries of a table; none of any other value.
    pub(crate) fn entries(&self) -> &[Entry] {
        if let Value::Table(entries) = &self.value { entries } else { &[] }
    }

    /// Takes an entry out of a table.
    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        let index = self.entries().iter().position(|entry| entry.key == key)?;
        if let Value::Table(entries) = &mut self.value { Some(entries.remove(index)) } else { None }
    }

    /// Whether this value, or one within, is a placeholder.
    pub(crate) fn has_placeholder(&self) -> bool {
        match &self.value {
            Value::Placeholder => true,
            Value::Array(nodes) => nodes.iter().any(Self::has_placeholder),
            _ => self.entries().iter().any(|entry| entry.node.has_placeholder()),
        }
    }

    /// The position of the value of a relative key such as `tls.cert` or `subjects[2]`, or of its nearest parent.
    pub(crate) fn position_of(&self, key: &str) -> Position {
        let mut node = self;
        for step in key.split(['.', '[']) {
            let next = match &node.value {
                Value::Array(nodes) => {
                    step.trim_end_matches(']').parse().ok().and_then(|index: usize| nodes.get(index))
                }
                _ => node.entries().iter().find(|entry| entry.key == step).map(|entry| &entry.node),
            };
            let Some(next) = next else { break };
            node = next;
        }
        node.at
    }
}

impl Value {
    /// The kind of value with its article, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date or time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Placeholder => "a wrong value",
        }
    }
}

/// Reports and removes a table's unknown keys, or those of them that `applies` selects.
///
/// A key that an unknown one was probably meant to be gets a placeholder, so that it is not reported as missing.
pub(crate) fn reject_unknown_keys(
    path: &str,
    entries: &mut Vec<Entry>,
    known: &[&str],
    applies: impl Fn(&str) -> bool,
    faults: &mut Vec<Fault>,
) {
    let is_unknown = |entry: &mut Entry| !known.contains(&entry.key.as_str()) && applies(&entry.key);
    let unknown: Vec<Entry> = entries.extract_if(.., is_unknown).collect();
    for Entry { key, at, node: _ } in unknown {
        let message = format!("unknown key; {}", suggestion(&key, known, "known keys"));
        faults.push(Fault { at, key: join(path, &key), message });
        if let Some(meant) = did_you_mean(&key, known.iter().copied())
            && !entries.iter().any(|entry| entry.key == meant)
        {
            entries.push(Entry::placeholder(meant, at));
        }
    }
}

/// Returns the entries of a parsed table with variables replaced, and reports values that cannot be used.
pub(crate) fn table(path: &str, table: DeTable<'_>, variables: &Variables<'_>, faults: &mut Vec<Fault>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| {
            let at = Position(key.span().start);
            let key = key.into_inner().into_owned();
            let node = node(join(path, &key), value, variables, faults);
            Entry { key, at, node }
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn node(path: String, parsed: Spanned<DeValue<'_>>, variables: &Variables<'_>, faults: &mut Vec<Fault>) -> Node {
    let at = Position(parsed.span().start);
    let out_of_range = || "the number is out of range".to_owned();
    let value = match parsed.into_inner() {
        DeValue::String(text) => interpolate(&text, variables).map(Value::Text),
        DeValue::Integer(digits) => i128::from_str_radix(digits.as_str(), digits.radix())
            .ok()
            .filter(|integer| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(integer))
            .map(Value::Integer)
            .ok_or_else(out_of_range),
        DeValue::Float(digits) => {
            let float = digits.as_str().parse().ok().filter(|float: &f64| float.is_finite());
            float.map(Value::Float).ok_or_else(out_of_range)
        }
        DeValue::Boolean(boolean) => Ok(Value::Boolean(boolean)),
        DeValue::Datetime(_) => Ok(Value::Datetime),
        DeValue::Array(nodes) => {
            let nodes = nodes.into_iter().enumerate();
            let nodes = nodes.map(|(index, parsed)| node(format!("{path}[{index}]"), parsed, variables, faults));
            Ok(Value::Array(nodes.collect()))
        }
        DeValue::Table(entries) => Ok(Value::Table(table(&path, entries, variables, faults))),
    };
    let value = value.unwrap_or_else(|message| {
        faults.push(Fault { at, key: path, message });
        Value::Placeholder
    });
    Node { at, value }
}

/// A key below another one, quoted where TOML would quote it.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
