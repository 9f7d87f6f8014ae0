//! The values of a document with their keys and positions, in the order of the file.
//!
//! A [`Node`] owns its full key and its position, so each fault can be reported from the node alone. [`Converter`]
//! makes nodes from parsed TOML. A [`NodeValue::Placeholder`] stands for each value whose fault is reported.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{Fault, TextPosition};
use crate::interpolate::{Variables, interpolate};
use crate::suggest::{did_you_mean, suggestion};

/// A value with its key.
pub(crate) struct Node {
    /// The full key, such as `sinks.store.url` or `subjects[2]`.
    pub(crate) path: String,
    /// The last part of the key; empty for an element of an array.
    pub(crate) key: String,
    pub(crate) key_at: TextPosition,
    pub(crate) at: TextPosition,
    pub(crate) value: NodeValue,
}

pub(crate) enum NodeValue {
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
    /// Creates a value at the position of its key, below the table `path`.
    pub(crate) fn new(path: &str, key: &str, at: TextPosition, value: NodeValue) -> Self {
        Self { path: join(path, key), key: key.to_owned(), key_at: at, at, value }
    }

    /// Creates an element of this array, without its value.
    fn element(&self, index: usize) -> Self {
        let path = format!("{}[{index}]", self.path);
        Self { path, key: String::new(), key_at: self.at, at: self.at, value: NodeValue::Placeholder }
    }

    pub(crate) fn fault(&self, message: String) -> Fault {
        Fault { at: self.at, key: self.path.clone(), message }
    }

    /// Returns the values of an array or a table; none of any other value.
    pub(crate) fn children(&self) -> &[Self] {
        match &self.value {
            NodeValue::Array(nodes) | NodeValue::Table(nodes) => nodes,
            _ => &[],
        }
    }

    /// Returns the value of a key in a table.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let NodeValue::Table(nodes) = &mut self.value else { return None };
        nodes.iter_mut().find(|node| node.key == key)
    }

    /// Takes the value of a key out of a table.
    pub(crate) fn take(&mut self, key: &str) -> Option<Self> {
        let NodeValue::Table(nodes) = &mut self.value else { return None };
        let index = nodes.iter().position(|node| node.key == key)?;
        Some(nodes.remove(index))
    }

    /// Returns whether this value, or one within, is a placeholder.
    pub(crate) fn has_placeholder(&self) -> bool {
        matches!(self.value, NodeValue::Placeholder) || self.children().iter().any(Self::has_placeholder)
    }

    /// Returns the position of the value with this full key, or of its nearest parent.
    pub(crate) fn position_of(&self, path: &str) -> TextPosition {
        let leads_there = |child: &&Self| {
            let rest = path.strip_prefix(child.path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.children().iter().find(leads_there).map_or(self.at, |child| child.position_of(path))
    }

    /// Reports and removes a table's unknown keys, or those of them that `applies` selects.
    ///
    /// A known key near an unknown one gets a placeholder, and is not missing.
    pub(crate) fn reject_unknown_keys(
        &mut self,
        known: &[&str],
        applies: impl Fn(&str) -> bool,
        faults: &mut Vec<Fault>,
    ) {
        let NodeValue::Table(nodes) = &mut self.value else { return };
        let is_unknown = |node: &mut Self| !known.contains(&node.key.as_str()) && applies(&node.key);
        let unknown: Vec<Self> = nodes.extract_if(.., is_unknown).collect();
        for Self { path, key, key_at: at, .. } in unknown {
            let message = format!("unknown key; {}", suggestion(&key, known, "known keys"));
            faults.push(Fault { at, key: path, message });
            if let Some(meant) = did_you_mean(&key, known.iter().copied())
                && nodes.iter().all(|node| node.key != meant)
            {
                nodes.push(Self::new(&self.path, meant, at, NodeValue::Placeholder));
            }
        }
    }
}

impl NodeValue {
    /// Returns the kind of value with its article, for messages.
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
    pub(crate) fn table(&mut self, path: &str, table: DeTable<'_>) -> NodeValue {
        let node = |(key, parsed): (Spanned<DeString<'_>>, _)| {
            self.node(Node::new(path, key.get_ref(), TextPosition(key.span().start), NodeValue::Placeholder), parsed)
        };
        let mut nodes: Vec<Node> = table.into_iter().map(node).collect();
        nodes.sort_by_key(|node| node.key_at);
        NodeValue::Table(nodes)
    }

    /// Fills in the value of a node and its position.
    fn node(&mut self, mut node: Node, parsed: Spanned<DeValue<'_>>) -> Node {
        node.at = TextPosition(parsed.span().start);
        let out_of_range = || "the number is out of range".to_owned();
        let value = match parsed.into_inner() {
            DeValue::String(text) => interpolate(&text, self.variables).map(NodeValue::Text),
            DeValue::Integer(digits) => {
                let integer = i64::from_str_radix(digits.as_str(), digits.radix());
                integer.map(NodeValue::Integer).map_err(|_| out_of_range())
            }
            DeValue::Float(digits) => {
                let float = digits.as_str().parse().ok().filter(|float: &f64| float.is_finite());
                float.map(NodeValue::Float).ok_or_else(out_of_range)
            }
            DeValue::Boolean(boolean) => Ok(NodeValue::Boolean(boolean)),
            DeValue::Datetime(_) => Ok(NodeValue::Datetime),
            DeValue::Array(elements) => {
                let elements = elements.into_iter().enumerate();
                let element = |(index, parsed)| self.node(node.element(index), parsed);
                Ok(NodeValue::Array(elements.map(element).collect()))
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

/// Returns a key below another one, quoted where TOML would quote it.
fn join(path: &str, key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if is_bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
