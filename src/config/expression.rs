//! Cost expressions as they are written in the file, before `resolve` checks them.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::schema::{ErrorCostSetting, OnErrorSetting};
use super::value::expand;

/// Value of `cost.estimate` and `cost.settle`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ExpressionSetting {
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Sum(Vec<Self>),
    Max(Vec<Self>),
    Learned(Box<Self>),
}

/// Keys of an expression that is a map.
const OPERATORS: &[&str] = &["sum", "max", "learned"];

impl<'de> Deserialize<'de> for ExpressionSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExpressionVisitor)
    }
}

struct ExpressionVisitor;

impl<'de> Visitor<'de> for ExpressionVisitor {
    type Value = ExpressionSetting;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a place, a number, a list, { sum: [..] } or { max: [..] }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ExpressionSetting, E> {
        expand(text).map(ExpressionSetting::Text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ExpressionSetting, E> {
        Ok(ExpressionSetting::Number(number as f64))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ExpressionSetting, E> {
        Ok(ExpressionSetting::Number(number as f64))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<ExpressionSetting, E> {
        Ok(ExpressionSetting::Number(number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<ExpressionSetting, A::Error> {
        let list = Vec::deserialize(de::value::SeqAccessDeserializer::new(seq));
        list.map(ExpressionSetting::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ExpressionSetting, A::Error> {
        let one = || de::Error::custom("it is a map with one key: `sum`, `max` or `learned`");
        let name = map.next_key::<String>()?.ok_or_else(one)?;
        let read = match &*name {
            "sum" => ExpressionSetting::Sum(map.next_value()?),
            "max" => ExpressionSetting::Max(map.next_value()?),
            "learned" => ExpressionSetting::Learned(map.next_value()?),
            _ => return Err(de::Error::unknown_field(&name, OPERATORS)),
        };
        match map.next_key::<String>()? {
            Some(_) => Err(one()),
            None => Ok(read),
        }
    }
}

impl<'de> Deserialize<'de> for OnErrorSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnErrorVisitor)
    }
}

struct OnErrorVisitor;

impl<'de> Visitor<'de> for OnErrorVisitor {
    type Value = OnErrorSetting;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`keep`, `refund`, or a map such as { 4xx: refund, 429: keep }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OnErrorSetting, E> {
        match text {
            "keep" => Ok(OnErrorSetting::All(ErrorCostSetting::Keep)),
            "refund" => Ok(OnErrorSetting::All(ErrorCostSetting::Refund)),
            _ => Err(E::unknown_variant(text, &["keep", "refund"])),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OnErrorSetting, A::Error> {
        let mut rules = Vec::new();
        while let Some((StatusKey(status), cost)) = map.next_entry()? {
            rules.push((status, cost));
        }
        Ok(OnErrorSetting::ByStatus(rules))
    }
}

/// Key of a map by status, which YAML reads as a number or as text.
struct StatusKey(String);

impl<'de> Deserialize<'de> for StatusKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = StatusKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 429 or 4xx")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusKey, E> {
                Ok(StatusKey(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<StatusKey, E> {
                Ok(StatusKey(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<StatusKey, E> {
                Ok(StatusKey(number.to_string()))
            }
        }
        deserializer.deserialize_any(KeyVisitor)
    }
}
