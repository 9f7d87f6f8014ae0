//! Values into plug-ins' structs, with every fault found, not only serde's first.
//!
//! Serde stops at the first error. So the value that caused it is reported and marked [`Value::Reported`], which reads as
//! whatever the struct asks for, and the reading starts over until nothing new is found. Messages never repeat a string
//! of the configuration: any of them may be a secret.
//!
//! One thing escapes it: where a type cannot be made up (an address, say), a required key that is missing beside the
//! wrong value is reported only once that value is right.

use std::fmt::{self, Display};

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};

use super::made_up::MadeUp;
use super::suggest::{instead, nearest};
use super::value::{Entry, Node, Value, join};
use super::{Fault, Faults};

/// Reads `node`, whose key is `path`; `None` when something is wrong with it, all of which is in `faults` then.
pub(super) fn read<T: DeserializeOwned>(path: &str, node: &mut Node, faults: &mut Faults) -> Option<T> {
    let before = faults.len();
    loop {
        match T::deserialize(Reader(node)) {
            Ok(value) => return (!node.is_reported() && faults.len() == before).then_some(value),
            Err(error) => {
                if !repair(path, node, error, faults) {
                    debug_assert!(faults.len() > before || node.is_reported(), "a fault went unreported");
                    return None;
                }
            }
        }
    }
}

/// For fields of which zero would mean "never" or "nothing": `#[serde(deserialize_with = "at_least_one")]`.
///
/// # Errors
/// When there is no integer of the field's type, or it is below 1.
pub fn at_least_one<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + PartialOrd + From<u8>,
{
    let number = T::deserialize(deserializer)?;
    if number < T::from(1) {
        return Err(D::Error::invalid_value(Unexpected::Unsigned(0), &"an integer that is 1 or greater"));
    }
    Ok(number)
}

/// Reports the error and changes the value so that reading it again finds the next one. False when that is no use.
fn repair(path: &str, node: &mut Node, error: ReadError, faults: &mut Faults) -> bool {
    let Some((path, node)) = descend(path, node, &error.steps) else { return false };
    match error.problem.without_secrets(&node.value) {
        Problem::Value(message) | Problem::Refused(message) => {
            if node.is_reported() {
                return false;
            }
            faults.push(Fault { at: node.at, key: path, message });
            node.value = Value::Reported;
            !error.steps.is_empty()
        }
        Problem::UnknownKey { index, known } => {
            let Value::Table(entries) = &mut node.value else { return false };
            let Entry { key, at, node: _ } = entries.remove(index);
            faults.push(Fault { at, key: join(&path, &key), message: unknown_key(&key, known) });
            // The key that was meant is not missing then.
            if let Some(meant) = nearest(&key, known.iter().copied())
                && !entries.iter().any(|entry| entry.key == meant)
            {
                entries.push(reported(meant, at));
            }
            true
        }
        Problem::MissingKey(key) => {
            let Value::Table(entries) = &mut node.value else { return false };
            if entries.iter().any(|entry| entry.key == key) {
                return false;
            }
            faults.push(Fault { at: node.at, key: join(&path, key), message: "this key is required".to_owned() });
            entries.push(reported(key, node.at));
            true
        }
        Problem::AlreadyReported => false,
    }
}

pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    format!("unknown key; {}", instead(key, known, "known keys"))
}

pub(super) fn reported(key: &str, at: usize) -> Entry {
    Entry { key: key.to_owned(), at, node: Node { at, value: Value::Reported } }
}

/// The value that the steps, outermost last, lead to, and its key.
fn descend<'n>(path: &str, node: &'n mut Node, steps: &[usize]) -> Option<(String, &'n mut Node)> {
    let mut path = path.to_owned();
    let mut node = node;
    for &step in steps.iter().rev() {
        (path, node) = match &mut node.value {
            Value::Array(nodes) => (format!("{path}[{step}]"), nodes.get_mut(step)?),
            Value::Table(entries) => {
                let entry = entries.get_mut(step)?;
                (join(&path, &entry.key), &mut entry.node)
            }
            _ => return None,
        };
    }
    Some((path, node))
}

/// What serde found, and where: indices into tables and arrays, innermost first.
#[derive(Debug)]
pub(super) struct ReadError {
    problem: Problem,
    steps: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Problem {
    /// In our words.
    Value(String),
    /// In the words of the plug-in.
    Refused(String),
    UnknownKey {
        index: usize,
        known: &'static [&'static str],
    },
    MissingKey(&'static str),
    /// A made-up value did not please: the fault that made it necessary is reported.
    AlreadyReported,
}

impl Problem {
    /// A plug-in's own check may repeat the value. Shorter ones than this are words, not secrets.
    fn without_secrets(self, value: &Value) -> Self {
        match (self, value) {
            (Self::Refused(message), Value::Text(text)) if text.len() >= 4 => {
                Self::Refused(message.replace(text.as_str(), "…"))
            }
            (problem, _) => problem,
        }
    }
}

impl ReadError {
    pub(super) fn new(problem: Problem) -> Self {
        Self { problem, steps: Vec::new() }
    }

    fn value(message: impl Display) -> Self {
        Self::new(Problem::Value(message.to_string()))
    }

    fn within(mut self, step: usize) -> Self {
        self.steps.push(step);
        self
    }
}

impl Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.problem)
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<M: Display>(message: M) -> Self {
        Self::new(Problem::Refused(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::value(format_args!("expected {}, found {}", name(expected, false), kind(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = name(expected, true);
        match found {
            Unexpected::Unsigned(number) => Self::value(format_args!("expected {expected}, found {number}")),
            Unexpected::Signed(number) => Self::value(format_args!("expected {expected}, found {number}")),
            Unexpected::Float(number) => Self::value(format_args!("expected {expected}, found {number}")),
            _ => Self::value(format_args!("expected {expected}")),
        }
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::value(format_args!("unknown value; {}", instead(found, known, "known values")))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Problem::MissingKey(key))
    }
}

/// What serde and its derives expect, in the words of TOML; `exact` adds the range of a number.
fn name(expected: &dyn Expected, exact: bool) -> String {
    let text = expected.to_string();
    let (least, width) = match text.strip_prefix("a nonzero ") {
        Some(width) => (1, width),
        None => (0, text.as_str()),
    };
    let most: u64 = match width {
        "u8" => u8::MAX.into(),
        "u16" => u16::MAX.into(),
        "u32" => u32::MAX.into(),
        "u64" | "usize" => u64::MAX,
        "i8" | "i16" | "i32" | "i64" | "isize" => return "an integer".to_owned(),
        "f32" | "f64" => return "a number".to_owned(),
        "a map" => return "a table".to_owned(),
        "a sequence" => return "an array".to_owned(),
        text if text.starts_with("struct ") => return "a table".to_owned(),
        text if text.starts_with("enum ") => return "a string".to_owned(),
        text => return text.to_owned(),
    };
    match exact {
        false => "an integer".to_owned(),
        true if most == u64::MAX => format!("an integer that is {least} or greater"),
        true => format!("an integer from {least} to {most}"),
    }
}

fn kind(found: Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number with a fraction",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a string",
        Unexpected::Seq => "an array",
        Unexpected::Map => "a table",
        _ => "something else",
    }
}

macro_rules! read_plainly {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            match &self.0.value {
                Value::Reported => MadeUp.$method(visitor),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

/// A value as serde reads it.
struct Reader<'n>(&'n Node);

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Integer(integer) => match (i64::try_from(*integer), u64::try_from(*integer)) {
                (Ok(integer), _) => visitor.visit_i64(integer),
                (_, Ok(integer)) => visitor.visit_u64(integer),
                _ => Err(ReadError::value("the number is out of range")),
            },
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Datetime => {
                Err(ReadError::value(format_args!("expected {}, found {}", name(&visitor, false), self.0.value.kind())))
            }
            Value::Array(nodes) => visitor.visit_seq(Elements { nodes, next: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries::new(entries)),
            Value::Reported => MadeUp.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Reported => MadeUp.deserialize_option(visitor),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Table(entries) => match entries.iter().position(|entry| !fields.contains(&entry.key.as_str())) {
                Some(index) => Err(ReadError::new(Problem::UnknownKey { index, known: fields })),
                None => self.deserialize_any(visitor),
            },
            Value::Reported => MadeUp.deserialize_struct(name, fields, visitor),
            // Serde would read an array as a struct without keys.
            Value::Array(_) => Err(ReadError::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Text(text) => visitor.visit_enum(StrDeserializer::new(text)),
            Value::Table(entries) => visitor.visit_enum(MapAccessDeserializer::new(Entries::new(entries))),
            Value::Reported => MadeUp.deserialize_enum(name, variants, visitor),
            other => Err(ReadError::value(format_args!("expected a string, found {}", other.kind()))),
        }
    }

    read_plainly! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_seq deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    serde::forward_to_deserialize_any! { unit_struct tuple tuple_struct }
}

struct Elements<'n> {
    nodes: &'n [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some(node) = self.nodes.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(Reader(node)).map(Some).map_err(|error| error.within(self.next - 1))
    }
}

/// Sound entries first: serde may refuse to go on after a reported one, whose made-up value does not please.
pub(super) struct Entries<'n> {
    entries: &'n [Entry],
    order: std::vec::IntoIter<usize>,
    current: usize,
}

impl<'n> Entries<'n> {
    pub(super) fn new(entries: &'n [Entry]) -> Self {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&index| entries[index].node.is_reported());
        Self { entries, order: order.into_iter(), current: 0 }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some(index) = self.order.next() else { return Ok(None) };
        self.current = index;
        let key: StrDeserializer<'_, ReadError> = self.entries[index].key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.within(index))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let index = self.current;
        seed.deserialize(Reader(&self.entries[index].node)).map_err(|error| error.within(index))
    }
}
