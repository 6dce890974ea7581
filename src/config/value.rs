//! Scalar values in YAML: strings in which `${NAME}` stands for an environment variable, and
//! quantities that are parsed from such strings.
//!
//! Variables are expanded after parsing. So their values cannot change the structure of the
//! document, and errors keep their positions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::Environment;
use crate::spool::BufferSpec;
use crate::units::parse_duration;

thread_local! {
    /// Variables that the document names while this thread parses it. A thread-local is needed
    /// because serde cannot pass them to the visitor of a string.
    static VARIABLES: RefCell<BTreeMap<String, Option<String>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Runs `parse` with the environment variables that `text` names as `${NAME}`.
pub(super) fn with_environment<T>(
    environment: &Environment,
    text: &str,
    parse: impl FnOnce() -> T,
) -> T {
    let variables = text.split("${").skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        Some((name.to_owned(), environment(name)))
    });
    VARIABLES.set(variables.collect());
    let parsed = parse();
    VARIABLES.take();
    parsed
}

/// Replaces `${NAME}` with the variable's value and `$$` with one `$`. Fails if a variable is not
/// set or a brace is missing.
pub(super) fn expand(text: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let Some(braced) = after.strip_prefix('{') else {
            expanded.push('$');
            rest = after.strip_prefix('$').unwrap_or(after);
            continue;
        };
        let Some((name, after)) = braced.split_once('}') else {
            return Err(format!("`${{{braced}` has no closing brace"));
        };
        let value = VARIABLES.with_borrow(|known| known.get(name).cloned().flatten());
        expanded +=
            &value.ok_or_else(|| format!("the environment variable `{name}` is not set"))?;
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Reads buffers and expands the variables in their URLs and header fields.
pub(super) fn buffers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<BufferSpec>, D::Error> {
    let mut all = Vec::<BufferSpec>::deserialize(deserializer)?;
    for buffer in &mut all {
        let fields = buffer.headers.iter_mut().flat_map(|f| f.values_mut());
        for text in buffer.url.iter_mut().chain(fields) {
            *text = expand(text).map_err(de::Error::custom)?;
        }
    }
    Ok(all)
}

/// Quantity that is parsed from a string. Its error message contains the correct form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FromText<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for FromText<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = deserializer.deserialize_any(ScalarVisitor(PhantomData));
        parsed.map(Self)
    }
}

/// Visitor for a string, or for a number without a unit, which the parser of `T` then reports.
struct ScalarVisitor<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        expand(text).map_err(E::custom)?.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Plain text in which variables are expanded.
pub(super) type Text = FromText<String>;

/// Duration with its unit, such as "30s".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DurationText(pub(super) Duration);

impl FromStr for DurationText {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text).map(Self)
    }
}

/// Share in millionths, which is written as a percentage such as "20%".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Percent(pub(super) u32);

impl FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number: Option<f64> = text.strip_suffix('%').and_then(|n| n.trim().parse().ok());
        let percent = number.filter(|percent| (0.0..=100.0).contains(percent));
        let share = percent.map(|percent| Self((percent * 10_000.0).round() as u32));
        share.ok_or_else(|| format!("`{text}` is not a share from 0% to 100%; write it as \"20%\""))
    }
}

/// Address to listen on, in which `localhost` stands for 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listen(pub(super) SocketAddr);

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.strip_prefix("localhost:").and_then(|p| p.parse().ok());
        let local = port.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = local.map_or_else(|| text.parse(), Ok);
        address.map(Self).map_err(|_error| {
            format!("`{text}` is not an address and port; write it as \"127.0.0.1:8080\" or \"[::]:8080\"")
        })
    }
}

/// One string, or a list of strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![expand(text).map_err(E::custom)?]))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<OneOrMany, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut list = Vec::new();
                while let Some(FromText(item)) = seq.next_element::<Text>()? {
                    list.push(item);
                }
                Ok(OneOrMany(list))
            }
        }
        deserializer.deserialize_any(ListVisitor)
    }
}
