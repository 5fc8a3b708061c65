//! The JSON of the Docker Engine API, requests and answers, one module per group of routes.
//!
//! Fields carry the names of the API's reference; what they mean is written there and not repeated here. Where the
//! reference engine leaves a field out when empty, so do we; everywhere else `null` and `[]` are kept apart by `Option`.
#![allow(missing_docs, reason = "fields are those of the Docker Engine API reference, version 1.51")]
#![allow(clippy::zero_sized_map_values, reason = "the values of these maps are `{}` on the wire")]

pub mod containers;
pub mod events;
pub mod exec;
pub mod images;
pub mod networks;
pub mod stats;
pub mod system;
pub mod volumes;

use serde::{Deserialize, Serialize};

/// `{}`, the value of maps that are sets in the reference engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Whether a value is the zero value, which the reference engine leaves out of some answers.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A list of strings that clients may send as a single string.
pub(crate) fn string_or_list<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Either>::deserialize(from)?.map(|either| match either {
        Either::One(single) => vec![single],
        Either::Many(list) => list,
    }))
}
