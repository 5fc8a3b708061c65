//! The `filters` parameter of lists and prunes.

use std::collections::BTreeMap;

use regex_lite::{Regex, RegexBuilder};

use crate::server::errors::ApiError;
use crate::server::query::{is_true, parse_time_ns};

/// Compiled size limit of a name pattern, bytes: patterns come from outside.
const MAX_PATTERN_BYTES: usize = 64 * 1024;

/// Filters by name. Clients send `{"k":["v"]}` or, older ones and Go, `{"k":{"v":true}}`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filters {
    values: BTreeMap<String, Vec<String>>,
}

impl Filters {
    /// Parses the parameter; a filter that is not `known` is an error.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        let invalid = || ApiError::invalid("invalid filter");
        let parsed: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|_| invalid())?;
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in parsed {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let list = match value {
                serde_json::Value::Null => Vec::new(),
                serde_json::Value::Object(set) => set
                    .into_iter()
                    .filter(|(_, on)| *on != serde_json::Value::Bool(false))
                    .map(|(v, _)| v)
                    .collect(),
                serde_json::Value::Array(list) => {
                    let text = |value| match value {
                        serde_json::Value::String(text) => Ok(text),
                        _ => Err(invalid()),
                    };
                    list.into_iter().map(text).collect::<Result<_, _>>()?
                }
                _ => return Err(invalid()),
            };
            if !list.is_empty() {
                values.insert(key, list);
            }
        }
        Ok(Self { values })
    }

    /// The values of `key`; empty when it is not given.
    pub(crate) fn get(&self, key: &str) -> &[String] {
        self.values.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether `key` is given.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Whether `key` is not given or has `value` exactly.
    pub(crate) fn exact(&self, key: &str, value: &str) -> bool {
        !self.has(key) || self.get(key).iter().any(|wanted| wanted == value)
    }

    /// Whether `key` is not given or one of its patterns is found in one of `values`.
    pub(crate) fn matches(&self, key: &str, values: &[&str]) -> bool {
        !self.has(key)
            || self.get(key).iter().any(|pattern| match compile(pattern) {
                Some(regex) => values.iter().any(|value| regex.is_match(value)),
                None => values.contains(&pattern.as_str()),
            })
    }

    /// A filter that says yes or no; `Err` for any other word, with `key` named.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key).first().map(String::as_str) {
            None => Ok(None),
            Some("1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(Some(true)),
            Some("0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(Some(false)),
            Some(other) => Err(ApiError::invalid(format!("invalid filter '{key}={other}'"))),
        }
    }

    /// Whether `labels` have everything `label` asks for and nothing that `label!` names.
    pub(crate) fn labels_match(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let has = |wanted: &String| {
            let (key, value) = wanted.split_once('=').map_or((wanted.as_str(), None), |(k, v)| (k, Some(v)));
            let found = labels.and_then(|labels| labels.get(key));
            found.is_some_and(|found| value.is_none_or(|value| value == found))
        };
        self.get("label").iter().all(has) && !self.get("label!").iter().any(has)
    }

    /// The time of `until`: nothing younger is to be pruned.
    pub(crate) fn until_ns(&self, now_ns: i64) -> Result<Option<i64>, ApiError> {
        match self.get("until") {
            [] => Ok(None),
            [text] => match parse_time_ns(text, now_ns) {
                Some(time) => Ok(Some(time)),
                None => Err(ApiError::invalid(format!("invalid filter 'until={text}'"))),
            },
            _ => Err(ApiError::invalid("more than one until filter specified")),
        }
    }

    /// Whether a filter is given and says yes.
    pub(crate) fn says_yes(&self, key: &str) -> bool {
        self.get(key).first().is_some_and(|value| is_true(value))
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = ["name", "label", "label!", "until", "dangling"];

    fn parse(text: &str) -> Filters {
        Filters::parse(Some(text), &KNOWN).unwrap()
    }

    #[test]
    fn both_forms_are_read() {
        for text in [r#"{"name":["a","b"]}"#, r#"{"name":{"a":true,"b":true,"c":false}}"#] {
            assert_eq!(parse(text).get("name"), ["a", "b"]);
        }
        assert!(!parse(r#"{"name":[]}"#).has("name"));
    }

    #[test]
    fn unknown_and_broken_filters_are_refused_in_docker_words() {
        let message = |text| Filters::parse(Some(text), &KNOWN).unwrap_err().message;
        assert_eq!(message("{bad"), "invalid filter");
        assert_eq!(message(r#"{"nope":["x"]}"#), "invalid filter 'nope'");
        assert_eq!(message(r#"{"name":[1]}"#), "invalid filter");
    }

    #[test]
    fn names_match_as_patterns_with_and_without_slash() {
        for (pattern, fits) in
            [("web", true), ("^web", true), ("^/web1$", true), ("^eb", false), ("w.b", true)]
        {
            let filters = Filters::parse(Some(&format!(r#"{{"name":[{pattern:?}]}}"#)), &KNOWN).unwrap();
            assert_eq!(filters.matches("name", &["web1", "/web1"]), fits, "{pattern}");
        }
        // No pattern at all still matches itself.
        assert!(parse(r#"{"name":["a("]}"#).matches("name", &["a("]));
    }

    #[test]
    fn labels_are_all_needed_and_unwanted_ones_none() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        for (text, fits) in [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=1","b"]}"#, true),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["b="]}"#, true),
            (r#"{"label!":["a=2"]}"#, true),
            (r#"{"label!":["a"]}"#, false),
        ] {
            assert_eq!(parse(text).labels_match(Some(&labels)), fits, "{text}");
        }
        assert!(!parse(r#"{"label":["a"]}"#).labels_match(None));
    }
}
