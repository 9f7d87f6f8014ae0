//! Deserializers that need no value: one makes values up, the other only asks for a struct's keys.

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};

use super::read::{Entries, Problem, ReadError, reported};
use super::value::Entry;

/// The keys that a struct has; none for what is not read as a struct. For tests that documentation is complete.
pub fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Whether the made-up values please the struct does not matter.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

/// Some value of whatever type is asked for, in place of one that is reported.
pub(super) struct MadeUp;

macro_rules! made_up {
    ($($method:ident => $visit:ident($($value:expr)?),)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            visitor.$visit($($value)?).map_err(made_up_error)
        }
    )*};
}

fn made_up_error(_: ReadError) -> ReadError {
    ReadError::new(Problem::AlreadyReported)
}

impl<'de> Deserializer<'de> for MadeUp {
    type Error = ReadError;

    made_up! {
        deserialize_any => visit_str(""),
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
        deserialize_option => visit_none(),
        deserialize_seq => visit_seq(SeqDeserializer::new(std::iter::empty::<()>())),
        deserialize_map => visit_map(Entries::new(&[])),
        deserialize_unit => visit_unit(),
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
        let entries: Vec<Entry> = fields.iter().map(|field| reported(field, 0)).collect();
        visitor.visit_map(Entries::new(&entries)).map_err(made_up_error)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let first: StrDeserializer<'_, ReadError> = variants.first().copied().unwrap_or_default().into_deserializer();
        visitor.visit_enum(first).map_err(made_up_error)
    }

    serde::forward_to_deserialize_any! {
        str string bytes byte_buf unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Looks at the keys that a struct asks for, and reads nothing.
struct FieldNames<'f>(&'f mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::new(Problem::AlreadyReported))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
