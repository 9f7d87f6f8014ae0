//! Values into `Deserialize` types, with every fault found.
//!
//! Serde stops at the first error. So [`read`] reports the error, replaces the value by a [`Value::Placeholder`], and
//! reads again until it finds no further fault. The deserializers of `toml` cannot do that: their error is one text,
//! which quotes the value and does not tell a missing key from a wrong type.
//!
//! Limit: a type without a placeholder value, such as an address, hides a required key that is missing beside it.

use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};

use crate::error::Fault;
use crate::suggest::suggestion;
use crate::value::{Entry, Node, Value, join, reject_unknown_keys};

/// Strings shorter than this are words, not secrets, and stay in the message of a type's own check.
const MIN_SECRET_BYTES: usize = 4;

/// Reads a value; `None` when it has a fault, reported now or before.
pub(crate) fn read<T: DeserializeOwned>(path: &str, node: &mut Node, faults: &mut Vec<Fault>) -> Option<T> {
    let before = faults.len();
    loop {
        let reported = faults.len();
        match read_node(PhantomData::<T>, path, node, faults) {
            Ok(value) => return (faults.len() == before && !node.has_placeholder()).then_some(value),
            Err(_) if faults.len() > reported => {}
            Err(_) => {
                debug_assert!(faults.len() > before || node.has_placeholder(), "a fault went unreported");
                return None;
            }
        }
    }
}

/// Reads an integer and refuses 0, for keys where 0 would mean "never" or "nothing":
/// `#[serde(deserialize_with = "at_least_one")]`.
///
/// # Errors
/// When the value is no integer of the field's type, or below 1.
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

/// Reads one value and reports its fault at its position.
fn read_node<'de, S: DeserializeSeed<'de>>(
    seed: S,
    path: &str,
    node: &mut Node,
    faults: &mut Vec<Fault>,
) -> Result<S::Value, ReadError> {
    let deserializer = NodeDeserializer { path, node: &mut *node, faults: &mut *faults };
    seed.deserialize(deserializer).map_err(|error| error.report(path, node, faults))
}

/// An error of serde, on its way to the value that it is about.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// Another kind of value was expected.
    WrongType {
        expected: String,
    },
    /// The value is wrong.
    WrongValue(String),
    /// The value is wrong, as the type's own check says, whose message may quote it.
    Refused(String),
    MissingKey(&'static str),
    /// The fault is reported.
    Reported,
}

impl ReadError {
    /// Reports the error and changes the value, so that reading it again finds the next fault.
    fn report(self, path: &str, node: &mut Node, faults: &mut Vec<Fault>) -> Self {
        let message = match (self, &mut node.value) {
            (Self::MissingKey(key), Value::Table(entries)) => {
                if entries.iter().all(|entry| entry.key != key) {
                    let message = "this key is required".to_owned();
                    faults.push(Fault { at: node.at, key: join(path, key), message });
                    entries.push(Entry::placeholder(key, node.at));
                }
                return Self::Reported;
            }
            (Self::MissingKey(_) | Self::Reported, _) => return Self::Reported,
            (Self::WrongType { expected }, value) => format!("expected {expected}, found {}", value.kind()),
            (Self::Refused(message), Value::Text(text)) if text.len() >= MIN_SECRET_BYTES => {
                message.replace(text.as_str(), "…")
            }
            (Self::WrongValue(message) | Self::Refused(message), _) => message,
        };
        // Otherwise it is the placeholder that is refused.
        if !node.has_placeholder() {
            faults.push(Fault { at: node.at, key: path.to_owned(), message });
            node.value = Value::Placeholder;
        }
        Self::Reported
    }
}

impl Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<M: Display>(message: M) -> Self {
        Self::Refused(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::WrongType { expected: name(expected, false) }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = name(expected, true);
        Self::WrongValue(match found {
            Unexpected::Unsigned(number) => format!("expected {expected}, found {number}"),
            Unexpected::Signed(number) => format!("expected {expected}, found {number}"),
            Unexpected::Float(number) => format!("expected {expected}, found {number}"),
            _ => format!("expected {expected}"),
        })
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::WrongValue(format!("unknown value; {}", suggestion(found, known, "known values")))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::MissingKey(key)
    }
}

/// Returns an expectation of serde and its derives in terms of TOML, `exact` with the range of a number.
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

/// Serde's view of a value.
struct NodeDeserializer<'n> {
    path: &'n str,
    node: &'n mut Node,
    faults: &'n mut Vec<Fault>,
}

/// Methods that need to know the type only for the placeholder.
macro_rules! deserialize_any_or_placeholder {
    ($($method:ident => $visit:ident($($placeholder:expr)?),)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            match self.node.value {
                Value::Placeholder => visitor.$visit($($placeholder)?),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let Self { path, node, faults } = self;
        match &mut node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Integer(integer) => match i64::try_from(*integer) {
                Ok(integer) => visitor.visit_i64(integer),
                Err(_) => visitor.visit_u64(*integer as u64),
            },
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Datetime => Err(ReadError::invalid_type(Unexpected::Other("a date or time"), &visitor)),
            Value::Array(nodes) => visitor.visit_seq(Elements { path, nodes: nodes.iter_mut().enumerate(), faults }),
            Value::Table(entries) => visitor.visit_map(Entries::new(path, entries, faults)),
            Value::Placeholder => visitor.visit_str(""),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Placeholder => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &mut self.node.value {
            Value::Table(entries) => reject_unknown_keys(self.path, entries, fields, |_| true, self.faults),
            Value::Placeholder => {
                let mut entries: Vec<_> = fields.iter().map(|key| Entry::placeholder(key, self.node.at)).collect();
                return visitor.visit_map(Entries::new(self.path, &mut entries, self.faults));
            }
            // Serde would read an array as a struct without keys.
            Value::Array(_) => return Err(ReadError::invalid_type(Unexpected::Seq, &visitor)),
            _ => {}
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let variant = match &self.node.value {
            Value::Text(text) => text.as_str(),
            Value::Placeholder => variants.first().copied().unwrap_or_default(),
            _ => return Err(ReadError::WrongType { expected: "a string".to_owned() }),
        };
        visitor.visit_enum(StrDeserializer::new(variant))
    }

    deserialize_any_or_placeholder! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_u64(1),
        deserialize_i16 => visit_u64(1),
        deserialize_i32 => visit_u64(1),
        deserialize_i64 => visit_u64(1),
        deserialize_i128 => visit_u64(1),
        deserialize_u8 => visit_u64(1),
        deserialize_u16 => visit_u64(1),
        deserialize_u32 => visit_u64(1),
        deserialize_u64 => visit_u64(1),
        deserialize_u128 => visit_u64(1),
        deserialize_f32 => visit_f64(1.0),
        deserialize_f64 => visit_f64(1.0),
        deserialize_char => visit_char('x'),
        deserialize_seq => visit_seq(SeqDeserializer::new(std::iter::empty::<()>())),
        deserialize_map => visit_map(MapDeserializer::new(std::iter::empty::<((), ())>())),
        deserialize_unit => visit_unit(),
    }

    serde::forward_to_deserialize_any! {
        str string bytes byte_buf unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Serde's view of an array.
struct Elements<'n, I> {
    path: &'n str,
    nodes: I,
    faults: &'n mut Vec<Fault>,
}

impl<'de, 'n, I: Iterator<Item = (usize, &'n mut Node)>> SeqAccess<'de> for Elements<'n, I> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some((index, node)) = self.nodes.next() else { return Ok(None) };
        read_node(seed, &format!("{}[{index}]", self.path), node, self.faults).map(Some)
    }
}

/// Serde's view of a table.
struct Entries<'n> {
    path: &'n str,
    entries: std::slice::IterMut<'n, Entry>,
    value: Option<(String, &'n mut Node)>,
    faults: &'n mut Vec<Fault>,
}

impl<'n> Entries<'n> {
    /// Placeholders come last: serde may stop at one that its type refuses.
    fn new(path: &'n str, entries: &'n mut [Entry], faults: &'n mut Vec<Fault>) -> Self {
        entries.sort_by_key(|entry| entry.node.has_placeholder());
        Self { path, entries: entries.iter_mut(), value: None, faults }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some(Entry { key, node, .. }) = self.entries.next() else { return Ok(None) };
        let path = join(self.path, key);
        let deserializer: StrDeserializer<'_, ReadError> = key.as_str().into_deserializer();
        let key = seed.deserialize(deserializer).map_err(|error| error.report(&path, node, self.faults))?;
        self.value = Some((path, node));
        Ok(Some(key))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let Some((path, node)) = self.value.take() else { return Err(ReadError::custom("a value without a key")) };
        read_node(seed, &path, node, self.faults)
    }
}
