//! Kernel configurations as data: what the committed fragment asks for, and whether a final `.config` grants it.
//!
//! Kconfig drops an option whose dependencies are missing without a word, and switches one on that another selects.
//! A kernel that lacks an option fails far from the cause, so both are errors of the build.

use std::collections::BTreeMap;
use thiserror::Error;

/// Our configuration on top of `tinyconfig`, with the reason of each group.
pub(crate) const FRAGMENT: &str = include_str!("../../fragment.config");

/// What Kconfig writes for an option that is off.
const OFF: &str = "n";

/// A fragment that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum FragmentError {
    /// Neither a comment, a setting nor `# CONFIG_X is not set`.
    #[error("line {line} is neither a comment nor a setting: {text}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The line as it stands.
        text: String,
    },
    /// The same option twice; the second would win in silence.
    #[error("line {line} sets {option} again")]
    Twice {
        /// Counted from 1.
        line: usize,
        /// With its `CONFIG_` prefix.
        option: String,
    },
}

/// An option whose value is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deviation {
    /// With its `CONFIG_` prefix.
    pub(crate) option: String,
    /// What the fragment says.
    pub(crate) wanted: String,
    /// What the final configuration says; `n` also when it does not name the option.
    pub(crate) got: String,
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: wanted {}, got {}", self.option, self.wanted, self.got)
    }
}

/// Options and values of a `.config` or a fragment; an option that is not set has the value `n`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config(BTreeMap<String, String>);

impl Config {
    /// Reads a fragment strictly: a misspelt line or an option set twice is an error.
    pub(crate) fn fragment(text: &str) -> Result<Self, FragmentError> {
        let mut options = BTreeMap::new();
        for (index, text) in text.lines().enumerate() {
            let line = index + 1;
            let Some((option, value)) = setting(text) else {
                if text.trim().is_empty() || (text.starts_with('#') && !text.starts_with("# CONFIG_")) {
                    continue;
                }
                return Err(FragmentError::Line { line, text: text.to_owned() });
            };
            if options.insert(option.to_owned(), value.to_owned()).is_some() {
                return Err(FragmentError::Twice { line, option: option.to_owned() });
            }
        }
        Ok(Self(options))
    }

    /// Reads what Kconfig wrote; whatever is not a setting is a heading.
    pub(crate) fn written(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(setting)
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// Every option of `self` that `result` does not grant, in order of name.
    pub(crate) fn deviations(&self, result: &Self) -> Vec<Deviation> {
        let value = |option: &String| result.0.get(option).map_or(OFF, String::as_str);
        self.0
            .iter()
            .filter(|(option, wanted)| value(option) != wanted.as_str())
            .map(|(option, wanted)| Deviation {
                option: option.clone(),
                wanted: wanted.clone(),
                got: value(option).to_owned(),
            })
            .collect()
    }

    /// How many options it speaks of, set or not.
    pub(crate) fn named(&self) -> usize {
        self.0.len()
    }

    /// How many options are built in.
    pub(crate) fn built_in(&self) -> usize {
        self.0.values().filter(|value| *value == "y").count()
    }
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`.
fn setting(line: &str) -> Option<(&str, &str)> {
    if let Some(option) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
        return is_option(option).then_some((option, OFF));
    }
    line.split_once('=').filter(|(option, value)| is_option(option) && !value.is_empty())
}

fn is_option(text: &str) -> bool {
    let name = text.strip_prefix("CONFIG_").unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::{Config, Deviation, FRAGMENT, FragmentError};

    fn deviation(option: &str, wanted: &str, got: &str) -> Deviation {
        Deviation { option: option.to_owned(), wanted: wanted.to_owned(), got: got.to_owned() }
    }

    #[test]
    fn the_committed_fragment_reads() {
        let fragment = Config::fragment(FRAGMENT).expect("fragment");
        assert!(fragment.built_in() > 300, "{}", fragment.built_in());
    }

    #[test]
    fn an_option_that_did_not_survive_is_named() {
        let wanted =
            Config::fragment("# why\nCONFIG_A=y\nCONFIG_B=\"x y\"\nCONFIG_C=64\n").expect("fragment");
        let got = Config::written("#\n# Heading\n#\nCONFIG_B=\"x y\"\n# CONFIG_A is not set\n");
        assert_eq!(
            wanted.deviations(&got),
            [deviation("CONFIG_A", "y", "n"), deviation("CONFIG_C", "64", "n")]
        );
    }

    #[test]
    fn an_option_that_came_back_is_named() {
        let wanted = Config::fragment("# CONFIG_A is not set\n# CONFIG_B is not set\n").expect("fragment");
        let got = Config::written("CONFIG_A=m\n");
        assert_eq!(wanted.deviations(&got), [deviation("CONFIG_A", "n", "m")]);
    }

    #[test]
    fn odd_lines_are_refused() {
        let line = |line, text: &str| Err(FragmentError::Line { line, text: text.to_owned() });
        for text in ["CONFIG_A", "CONFIG_A=", "CONFIG-A=y", "A=y", "# CONFIG_A is not sett", " CONFIG_A=y"] {
            assert_eq!(Config::fragment(text), line(1, text), "{text}");
        }
        let again = FragmentError::Twice { line: 3, option: "CONFIG_A".to_owned() };
        assert_eq!(Config::fragment("CONFIG_A=y\n\n# CONFIG_A is not set"), Err(again));
    }
}
