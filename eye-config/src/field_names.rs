//! The keys of a struct, without a value of it.

use serde::de::{DeserializeOwned, Deserializer, Visitor};

use crate::deserialize::ReadError;

/// Returns the keys of a struct; none for a type that is not read as a struct. Tests of documentation use it.
pub fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // Always an error: the deserializer has no value to give.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

/// A deserializer that records the keys that a struct asks for, and fails.
struct FieldNames<'f>(&'f mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::Reported)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ReadError> {
        *self.0 = fields;
        Err(ReadError::Reported)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
