//! Values into `Deserialize` types, with every fault found.
//!
//! Serde stops at the first error. So [`read`] reports the error, replaces the value by a [`NodeValue::Placeholder`],
//! and reads again until it finds no further fault. The deserializers of `toml` cannot do that: their error is one
//! text, which quotes the value and does not tell a missing key from a wrong type.
//!
//! Limit: a type without a placeholder value, such as an address, hides a required key that is missing beside it.

use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, Expected, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

use crate::error::{Fault, TextPosition};
use crate::suggest::suggestion;
use crate::value::{Node, NodeValue};

/// The shortest string that a type's own message must not quote. Shorter ones are no secrets.
const MIN_SECRET_BYTES: usize = 4;

/// Reads a value; `None` when it has a fault, reported now or before.
pub(crate) fn read<T: DeserializeOwned>(node: &mut Node, faults: &mut Vec<Fault>) -> Option<T> {
    let before = faults.len();
    loop {
        let reported = faults.len();
        let result = read_node(PhantomData::<T>, node, faults);
        if result.is_ok() || faults.len() == reported {
            debug_assert!(result.is_ok() || faults.len() > before || node.has_placeholder(), "an unreported fault");
            return result.ok().filter(|_| faults.len() == before && !node.has_placeholder());
        }
    }
}

/// Returns the keys of a struct; none for a type that is not read as a struct. Tests of documentation use it.
pub fn field_names<T: DeserializeOwned>() -> Vec<String> {
    let mut node = Node::new("", "", TextPosition::default(), NodeValue::Placeholder);
    // A struct makes the placeholder a table of its keys.
    let _ = read::<T>(&mut node, &mut Vec::new());
    node.children().iter().map(|child| child.key.clone()).collect()
}

/// Reads an integer and refuses 0, for keys where 0 would mean "never" or "nothing":
/// `#[serde(deserialize_with = "at_least_one")]`.
///
/// # Errors
/// A value that is no integer of the field's type, or below 1.
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
    node: &mut Node,
    faults: &mut Vec<Fault>,
) -> Result<S::Value, ReadError> {
    let result = seed.deserialize(NodeDeserializer { node: &mut *node, faults: &mut *faults });
    result.map_err(|error| error.report(node, faults))
}

/// An error of serde, on its way to the value that it is about.
#[derive(Debug)]
enum ReadError {
    /// Another kind of value was expected: this one.
    WrongType(String),
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
    fn report(self, node: &mut Node, faults: &mut Vec<Fault>) -> Self {
        let message = match (self, &mut node.value) {
            (Self::MissingKey(key), NodeValue::Table(nodes)) => {
                if nodes.iter().all(|node| node.key != key) {
                    let missing = Node::new(&node.path, key, node.at, NodeValue::Placeholder);
                    faults.push(missing.fault("this key is required".to_owned()));
                    nodes.push(missing);
                }
                return Self::Reported;
            }
            (Self::MissingKey(_) | Self::Reported, _) => return Self::Reported,
            (Self::WrongType(expected), value) => format!("expected {expected}, found {}", value.kind()),
            (Self::Refused(message), NodeValue::Text(text)) if text.len() >= MIN_SECRET_BYTES => {
                message.replace(text.as_str(), "…")
            }
            (Self::WrongValue(message) | Self::Refused(message), _) => message,
        };
        // Otherwise the type refuses a placeholder, whose fault is reported.
        if !node.has_placeholder() {
            faults.push(node.fault(message));
            node.value = NodeValue::Placeholder;
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
        Self::WrongType(name(expected, false))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = name(expected, true);
        Self::WrongValue(match found {
            Unexpected::Unsigned(number) => format!("expected {expected}, found {number}"),
            Unexpected::Signed(number) => format!("expected {expected}, found {number}"),
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
    let (least, width) = text.strip_prefix("a nonzero ").map_or((0, text.as_str()), |width| (1, width));
    match width {
        "u64" | "usize" if exact => format!("an integer that is {least} or greater"),
        "u8" if exact => format!("an integer from {least} to {}", u8::MAX),
        "u16" if exact => format!("an integer from {least} to {}", u16::MAX),
        "u32" if exact => format!("an integer from {least} to {}", u32::MAX),
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => "an integer".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a sequence" => "an array".to_owned(),
        text if text == "a map" || text.starts_with("struct ") => "a table".to_owned(),
        text => text.to_owned(),
    }
}

/// Serde's view of a value.
struct NodeDeserializer<'n> {
    node: &'n mut Node,
    faults: &'n mut Vec<Fault>,
}

/// Methods that need the type only to visit a placeholder, grouped by that placeholder.
macro_rules! deserialize_any_or_placeholder {
    ($($visit:ident $placeholder:tt: $($method:ident)*;)*) => {$($(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            match self.node.value {
                NodeValue::Placeholder => visitor.$visit $placeholder,
                _ => self.deserialize_any(visitor),
            }
        }
    )*)*};
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &mut self.node.value {
            NodeValue::Text(text) => visitor.visit_str(text),
            NodeValue::Integer(integer) => visitor.visit_i64(*integer),
            NodeValue::Float(float) => visitor.visit_f64(*float),
            NodeValue::Boolean(boolean) => visitor.visit_bool(*boolean),
            NodeValue::Datetime => Err(ReadError::invalid_type(Unexpected::Other("a date or time"), &visitor)),
            NodeValue::Array(nodes) => visitor.visit_seq(Children::new(nodes, self.faults)),
            NodeValue::Table(nodes) => {
                // Placeholders last: serde may stop at one that its type refuses.
                nodes.sort_by_key(Node::has_placeholder);
                visitor.visit_map(Children::new(nodes, self.faults))
            }
            NodeValue::Placeholder => visitor.visit_str(""),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            NodeValue::Placeholder => visitor.visit_none(),
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
        let Node { path, at, value, .. } = &mut *self.node;
        match value {
            NodeValue::Placeholder => {
                let placeholder = |key: &&str| Node::new(path, key, *at, NodeValue::Placeholder);
                *value = NodeValue::Table(fields.iter().map(placeholder).collect());
            }
            // Serde would read an array as a struct without keys.
            NodeValue::Array(_) => return Err(ReadError::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.node.reject_unknown_keys(fields, |_| true, self.faults),
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
            NodeValue::Text(text) => text.as_str(),
            NodeValue::Placeholder => variants.first().copied().unwrap_or_default(),
            _ => return Err(ReadError::WrongType("a string".to_owned())),
        };
        visitor.visit_enum(StrDeserializer::new(variant))
    }

    deserialize_any_or_placeholder! {
        visit_bool(false): deserialize_bool;
        visit_u64(1): deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
            deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128;
        visit_f64(1.0): deserialize_f32 deserialize_f64;
        visit_char('x'): deserialize_char;
        visit_unit(): deserialize_unit;
        visit_seq(SeqDeserializer::new(std::iter::empty::<()>())): deserialize_seq;
        visit_map(MapDeserializer::new(std::iter::empty::<((), ())>())): deserialize_map;
    }

    serde::forward_to_deserialize_any! {
        str string bytes byte_buf unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Serde's view of an array or a table.
struct Children<'n> {
    nodes: std::slice::IterMut<'n, Node>,
    /// The value of the key that was read last.
    value: Option<&'n mut Node>,
    faults: &'n mut Vec<Fault>,
}

impl<'n> Children<'n> {
    fn new(nodes: &'n mut [Node], faults: &'n mut Vec<Fault>) -> Self {
        Self { nodes: nodes.iter_mut(), value: None, faults }
    }
}

impl<'de> SeqAccess<'de> for Children<'_> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        self.nodes.next().map(|node| read_node(seed, node, self.faults)).transpose()
    }
}

impl<'de> MapAccess<'de> for Children<'_> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        let key = seed.deserialize(StrDeserializer::<ReadError>::new(&node.key));
        let key = key.map_err(|error| error.report(node, self.faults))?;
        self.value = Some(node);
        Ok(Some(key))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let node = self.value.take().ok_or_else(|| ReadError::custom("a value without a key"))?;
        read_node(seed, node, self.faults)
    }
}
