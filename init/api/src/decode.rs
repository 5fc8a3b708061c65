//! Decoding requests as forgivingly as the reference engine, which is written in Go: keys match in any case, `null`
//! stands for the zero value of anything, unknown keys are ignored.
//!
//! Works on a parsed [`Value`] through a deserializer that, where a struct is asked for, gives each key the spelling
//! of the struct's field and leaves out keys whose value is `null`.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

/// Decodes `value` into `T` by the rules of this module.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(Loose(value))
}

/// Parses `text` and decodes it into `T` by the rules of this module.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    from_value(serde_json::from_slice(text)?)
}

struct Loose(Value);

impl IntoDeserializer<'_, Error> for Loose {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Loose {
    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Loose))),
            Value::Object(entries) => visitor
                .visit_map(MapDeserializer::new(entries.into_iter().map(|(key, value)| (key, Loose(value))))),
            plain => plain.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Loose {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries = match self.0 {
            Value::Object(entries) => entries,
            Value::Null => serde_json::Map::new(),
            other => return Loose(other).any(visitor),
        };
        // One entry per field at most: the last spelling wins, as in Go, and a repeated field is no error.
        let mut chosen: Vec<(&'static str, Loose)> = Vec::with_capacity(entries.len().min(fields.len()));
        for (key, value) in entries {
            if value.is_null() {
                continue;
            }
            let exact = fields.iter().find(|field| **field == key);
            let Some(field) = exact.or_else(|| fields.iter().find(|field| field.eq_ignore_ascii_case(&key)))
            else {
                continue;
            };
            match chosen.iter_mut().find(|(taken, _)| taken == field) {
                Some(slot) => slot.1 = Loose(value),
                None => chosen.push((field, Loose(value))),
            }
        }
        visitor.visit_map(MapDeserializer::new(chosen.into_iter()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Inner {
        count: i64,
        names: Option<Vec<String>>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Outer {
        on: bool,
        inner: Inner,
        list: Vec<Inner>,
        table: BTreeMap<String, Option<Inner>>,
    }

    fn decode(text: &str) -> Outer {
        from_slice(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_match_in_any_case_and_case_of_map_keys_is_kept() {
        let outer = decode(r#"{"ON":true,"inner":{"count":3},"Table":{"aB":{"COUNT":1},"ab":null}}"#);
        assert!(outer.on);
        assert_eq!(outer.inner.count, 3);
        assert_eq!(outer.table["aB"].as_ref().unwrap().count, 1);
        assert_eq!(outer.table["ab"], None);
    }

    #[test]
    fn null_is_the_zero_value_of_anything() {
        assert_eq!(decode(r#"{"On":null,"Inner":null,"List":null,"Table":null}"#), Outer::default());
    }

    #[test]
    fn unknown_and_repeated_keys_are_no_error() {
        assert!(decode(r#"{"Nope":{"x":1},"On":false,"on":true}"#).on);
    }

    #[test]
    fn a_wrong_type_is_an_error() {
        assert!(from_slice::<Outer>(br#"{"On":"yes"}"#).is_err());
    }
}
