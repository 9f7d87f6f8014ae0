//! The values of a document with their keys and positions, in the order of the file.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{Fault, Position};
use crate::interpolate::{Variables, interpolate};
use crate::suggest::{did_you_mean, suggestion};

/// A value with its key.
pub(crate) struct Node {
    /// The full key, such as `sinks.store.url` or `subjects[2]`.
    pub(crate) path: String,
    /// The last part of the key; empty for an element of an array.
    pub(crate) key: String,
    pub(crate) key_at: Position,
    pub(crate) at: Position,
    pub(crate) value: Value,
}

pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Node>),
    /// Stands for a value whose fault is reported. It reads as any type, so that the values around it can be checked.
    Placeholder,
}

impl Node {
    /// A value at the position of its key, below the table `path`.
    pub(crate) fn new(path: &str, key: &str, at: Position, value: Value) -> Self {
        Self { path: join(path, key), key: key.to_owned(), key_at: at, at, value }
    }

    /// An element of this array, without its value.
    fn element(&self, index: usize) -> Self {
        let path = format!("{}[{index}]", self.path);
        Self { path, key: String::new(), key_at: self.at, at: self.at, value: Value::Placeholder }
    }

    pub(crate) fn fault(&self, message: String) -> Fault {
        Fault { at: self.at, key: self.path.clone(), message }
    }

    /// The values of an array or a table; none of any other value.
    pub(crate) fn children(&self) -> &[Self] {
        match &self.value {
            Value::Array(nodes) | Value::Table(nodes) => nodes,
            _ => &[],
        }
    }

    /// The value of a key in a table.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Value::Table(nodes) = &mut self.value else { return None };
        nodes.iter_mut().find(|node| node.key == key)
    }

    /// Takes the value of a key out of a table.
    pub(crate) fn take(&mut self, key: &str) -> Option<Self> {
        let Value::Table(nodes) = &mut self.value else { return None };
        let index = nodes.iter().position(|node| node.key == key)?;
        Some(nodes.remove(index))
    }

    /// Whether this value, or one within, is a placeholder.
    pub(crate) fn has_placeholder(&self) -> bool {
        matches!(self.value, Value::Placeholder) || self.children().iter().any(Self::has_placeholder)
    }

    /// The position of the value with this full key, or of its nearest parent.
    pub(crate) fn position_of(&self, path: &str) -> Position {
        let leads_there = |child: &&Self| {
            let rest = path.strip_prefix(child.path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.children().iter().find(leads_there).map_or(self.at, |child| child.position_of(path))
    }

    /// Reports and removes a table's unknown keys, or those of them that `applies` selects.
    ///
    /// A key that an unknown one was probably meant to be gets a placeholder, so that it is not reported as missing.
    pub(crate) fn reject_unknown_keys(
        &mut self,
        known: &[&str],
        applies: impl Fn(&str) -> bool,
        faults: &mut Vec<Fault>,
    ) {
        let Value::Table(nodes) = &mut self.value else { return };
        let is_unknown = |node: &mut Self| !known.contains(&node.key.as_str()) && applies(&node.key);
        let unknown: Vec<Self> = nodes.extract_if(.., is_unknown).collect();
        for Self { path, key, key_at: at, .. } in unknown {
            let message = format!("unknown key; {}", suggestion(&key, known, "known keys"));
            faults.push(Fault { at, key: path, message });
            if let Some(meant) = did_you_mean(&key, known.iter().copied())
                && nodes.iter().all(|node| node.key != meant)
            {
                nodes.push(Self::new(&self.path, meant, at, Value::Placeholder));
            }
        }
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

/// Parsed TOML into nodes, with variables replaced. Reports values that cannot be used.
pub(crate) struct Converter<'v> {
    pub(crate) variables: &'v Variables<'v>,
    pub(crate) faults: Vec<Fault>,
}

impl Converter<'_> {
    /// Converts a table with the key `path`.
    pub(crate) fn table(&mut self, path: &str, table: DeTable<'_>) -> Value {
        let node = |(key, parsed): (Spanned<DeString<'_>>, _)| {
            self.node(Node::new(path, key.get_ref(), Position(key.span().start), Value::Placeholder), parsed)
        };
        let mut nodes: Vec<Node> = table.into_iter().map(node).collect();
        nodes.sort_by_key(|node| node.key_at);
        Value::Table(nodes)
    }

    /// Fills in the value of a node and its position.
    fn node(&mut self, mut node: Node, parsed: Spanned<DeValue<'_>>) -> Node {
        node.at = Position(parsed.span().start);
        let out_of_range = || "the number is out of range".to_owned();
        let value = match parsed.into_inner() {
            DeValue::String(text) => interpolate(&text, self.variables).map(Value::Text),
            DeValue::Integer(digits) => {
                let integer = i64::from_str_radix(digits.as_str(), digits.radix());
                integer.map(Value::Integer).map_err(|_| out_of_range())
            }
            DeValue::Float(digits) => {
                let float = digits.as_str().parse().ok().filter(|float: &f64| float.is_finite());
                float.map(Value::Float).ok_or_else(out_of_range)
            }
            DeValue::Boolean(boolean) => Ok(Value::Boolean(boolean)),
            DeValue::Datetime(_) => Ok(Value::Datetime),
            DeValue::Array(elements) => {
                let elements = elements.into_iter().enumerate();
                let element = |(index, parsed)| self.node(node.element(index), parsed);
                Ok(Value::Array(elements.map(element).collect()))
            }
            DeValue::Table(table) => Ok(self.table(&node.path, table)),
        };
        match value {
            Ok(value) => node.value = value,
            Err(message) => self.faults.push(node.fault(message)),
        }
        node
    }
}

/// A key below another one, quoted where TOML would quote it.
fn join(path: &str, key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if is_bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
