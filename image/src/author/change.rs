//! Changes to an image's configuration in the words of a Dockerfile, as `docker commit --change` takes them.

use std::collections::BTreeMap;

use crate::config::{Empty, Healthcheck, RunConfig};

/// Bytes of all changes together.
const LENGTH_MAX: usize = 256 << 10;
/// Ports of one range.
const PORTS_MAX: usize = 65_536;

/// A change that cannot be made. Texts are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An instruction that is none, or that would need a build.
    #[error("{0} is not a valid change command")]
    Instruction(String),
    /// Too few or too many words.
    #[error("{instruction} {what}")]
    Arguments {
        /// Which instruction.
        instruction: String,
        /// What is wrong.
        what: String,
    },
    /// Far more than any image says.
    #[error("the changes are longer than {LENGTH_MAX} bytes")]
    TooLong,
}

/// A configuration while it is changed.
struct Changing<'a> {
    config: &'a mut RunConfig,
    /// `CMD` was among the changes: a later `ENTRYPOINT` keeps it.
    cmd_set: bool,
}

impl RunConfig {
    /// Applies instructions, each on a line of its own.
    pub fn change<'a>(&mut self, changes: impl Iterator<Item = &'a str>) -> Result<(), ChangeError> {
        let mut changing = Changing { config: self, cmd_set: false };
        let mut length = 0;
        for change in changes {
            length += change.len();
            if length > LENGTH_MAX {
                return Err(ChangeError::TooLong);
            }
            for line in logical_lines(change) {
                changing.apply(&line)?;
            }
        }
        Ok(())
    }
}

/// Lines with continuations joined, without blank ones and comments.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') || (open.is_empty() && line.trim().is_empty()) {
            continue;
        }
        if let Some(part) = line.trim_end().strip_suffix('\\') {
            open.push_str(part);
            continue;
        }
        open.push_str(line);
        lines.push(std::mem::take(&mut open).trim().to_owned());
    }
    if !open.trim().is_empty() {
        lines.push(open.trim().to_owned());
    }
    lines
}

impl Changing<'_> {
    fn apply(&mut self, line: &str) -> Result<(), ChangeError> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (name, rest) = (word.to_ascii_uppercase(), rest.trim());
        let wrong = |what: &str| ChangeError::Arguments { instruction: name.clone(), what: what.to_owned() };
        match name.as_str() {
            "CMD" => {
                self.config.cmd = Some(self.command(rest)).filter(|words| !words.is_empty());
                self.cmd_set = true;
            }
            "ENTRYPOINT" => {
                self.config.entrypoint = Some(self.command(rest)).filter(|words| !words.is_empty());
                if !self.cmd_set {
                    self.config.cmd = None;
                }
            }
            "ENV" => {
                for (key, value) in self.pairs(rest).ok_or_else(|| wrong("must have two arguments"))? {
                    self.set_env(&key, &value);
                }
            }
            "LABEL" => {
                let pairs = self.pairs(rest).ok_or_else(|| wrong("must have two arguments"))?;
                self.config.labels.extend(pairs);
            }
            "EXPOSE" => {
                let words = words(&self.expand(rest));
                if words.is_empty() {
                    return Err(wrong("requires at least one argument"));
                }
                for word in words {
                    let ports = ports(&word).ok_or_else(|| wrong(&format!("has an invalid port: {word}")))?;
                    self.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
                }
            }
            "VOLUME" => {
                let list = json_list(rest).unwrap_or_else(|| words(&self.expand(rest)));
                if list.is_empty() || list.iter().any(|path| path.trim().is_empty()) {
                    return Err(wrong("requires at least one argument"));
                }
                self.config.volumes.extend(list.into_iter().map(|path| (path, Empty {})));
            }
            "USER" => self.config.user = self.single(rest).ok_or_else(|| wrong(EXACTLY_ONE))?,
            "STOPSIGNAL" => self.config.stop_signal = self.single(rest).ok_or_else(|| wrong(EXACTLY_ONE))?,
            "WORKDIR" => {
                let path = self.single(rest).ok_or_else(|| wrong(EXACTLY_ONE))?;
                self.config.working_dir = joined(&self.config.working_dir, &path);
            }
            "HEALTHCHECK" => self.config.healthcheck = Some(health(rest).map_err(|what| wrong(&what))?),
            "ONBUILD" => {
                let trigger = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
                if matches!(trigger.as_str(), "" | "ONBUILD" | "FROM" | "MAINTAINER") {
                    return Err(wrong("needs an instruction that may be a trigger"));
                }
                self.config.on_build.push(rest.to_owned());
            }
            _ => return Err(ChangeError::Instruction(word.to_owned())),
        }
        Ok(())
    }

    /// A command: a JSON list as it is, other text for a shell.
    fn command(&self, text: &str) -> Vec<String> {
        if text.is_empty() {
            return Vec::new();
        }
        json_list(text).unwrap_or_else(|| {
            let shell = &self.config.shell;
            let mut words =
                if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
            words.push(text.to_owned());
            words
        })
    }

    fn single(&self, text: &str) -> Option<String> {
        let text = unquoted(&self.expand(text));
        (!text.is_empty()).then_some(text)
    }

    /// `key=value …`, or the old form `key value to the end of the line`.
    fn pairs(&self, text: &str) -> Option<Vec<(String, String)>> {
        let first = raw_words(text).into_iter().next()?;
        if !first.contains('=') {
            let (key, value) = text.split_once(char::is_whitespace)?;
            return Some(vec![(key.to_owned(), unquoted(&self.expand(value.trim())))]);
        }
        raw_words(text)
            .into_iter()
            .map(|word| {
                let (key, value) = word.split_once('=')?;
                let key = unquoted(key);
                (!key.is_empty()).then(|| (key, unquoted(&self.expand(value))))
            })
            .collect()
    }

    fn set_env(&mut self, key: &str, value: &str) {
        let line = format!("{key}={value}");
        let same = |old: &&mut String| old.split('=').next() == Some(key);
        match self.config.env.iter_mut().find(same) {
            Some(old) => *old = line,
            None => self.config.env.push(line),
        }
    }

    /// Replaces `$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}` by what the environment says.
    fn expand(&self, text: &str) -> String {
        let lookup: BTreeMap<&str, &str> =
            self.config.env.iter().filter_map(|line| line.split_once('=')).collect();
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut single_quoted = false;
        while let Some(character) = rest.chars().next() {
            let after = rest.get(character.len_utf8()..).unwrap_or_default();
            match character {
                '\'' => single_quoted = !single_quoted,
                '\\' if !single_quoted && after.starts_with('$') => {
                    out.push('$');
                    rest = after.get(1..).unwrap_or_default();
                    continue;
                }
                '$' if !single_quoted => {
                    if let Some((value, length)) = variable(after, &lookup) {
                        out.push_str(&value);
                        rest = after.get(length..).unwrap_or_default();
                        continue;
                    }
                }
                _ => {}
            }
            out.push(character);
            rest = after;
        }
        out
    }
}

const EXACTLY_ONE: &str = "requires exactly one argument";

/// The value of what stands behind a dollar sign, and how many bytes that is.
fn variable(text: &str, lookup: &BTreeMap<&str, &str>) -> Option<(String, usize)> {
    let name_end = |text: &str| {
        text.find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .unwrap_or(text.len())
    };
    let Some(inner) = text.strip_prefix('{') else {
        let end = name_end(text);
        let name = text.get(..end).filter(|name| !name.is_empty())?;
        return Some((lookup.get(name).copied().unwrap_or_default().to_owned(), end));
    };
    let close = inner.find('}')?;
    let inner = inner.get(..close)?;
    let (name, modifier) = inner.split_at(name_end(inner));
    let value = lookup.get(name).copied().filter(|value| !value.is_empty());
    let value = match (modifier.get(..2), modifier.get(2..)) {
        (Some(":-"), Some(word)) => value.unwrap_or(word),
        (Some(":+"), Some(word)) => value.map_or("", |_| word),
        _ if modifier.is_empty() => value.unwrap_or_default(),
        _ => return None,
    };
    Some((value.to_owned(), close + 2))
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// Words with their quotes still on; white space within quotes does not part them.
fn raw_words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, character) if character.is_whitespace() => {
                if !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), character) if character == open => quote = None,
            (None | Some('"'), '\\') => {
                word.push('\\');
                word.extend(characters.next());
                continue;
            }
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        all.push(word);
    }
    all
}

fn words(text: &str) -> Vec<String> {
    raw_words(text).iter().map(|word| unquoted(word)).collect()
}

/// Text without quotes and the backslashes that protect a character.
fn unquoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), character) if character == open => quote = None,
            (None | Some('"'), '\\') => out.extend(characters.next()),
            _ => out.push(character),
        }
    }
    out
}

/// `80`, `80/udp` or `8000-8010/tcp` as keys of `ExposedPorts`.
fn ports(text: &str) -> Option<Vec<String>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return None;
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    let ports = (first..=last).take(PORTS_MAX).map(|port| format!("{port}/{protocol}"));
    (first <= last).then(|| ports.collect())
}

/// `path` below `directory`, unless it is absolute, without `.` and `..`.
fn joined(directory: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/{directory}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn health(text: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    let mut rest = text.trim();
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        let (name, value) = flag.split_once('=').ok_or_else(|| format!("flag --{flag} has no value"))?;
        let wrong = || format!("flag --{name} has an invalid value: {value}");
        match name {
            "interval" => check.interval = duration_ns(value).ok_or_else(wrong)?,
            "timeout" => check.timeout = duration_ns(value).ok_or_else(wrong)?,
            "start-period" => check.start_period = duration_ns(value).ok_or_else(wrong)?,
            "start-interval" => check.start_interval = duration_ns(value).ok_or_else(wrong)?,
            "retries" => check.retries = value.parse().map_err(|_| wrong())?,
            _ => return Err(format!("has an unknown flag: {name}")),
        }
        rest = after.trim_start();
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (kind.to_ascii_uppercase().as_str(), command.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", "") => return Err("has no command after CMD".to_owned()),
        ("CMD", command) => match json_list(command) {
            Some(words) => [vec!["CMD".to_owned()], words].concat(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        _ => return Err(format!("has an unknown type {kind:?} (try CMD)")),
    };
    Ok(check)
}

/// `1m30s`, `500ms` and the like.
fn duration_ns(text: &str) -> Option<i64> {
    let span: jiff::SignedDuration = text.parse().ok()?;
    i64::try_from(span.as_nanos()).ok().filter(|nanoseconds| *nanoseconds >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> RunConfig {
        let mut config = RunConfig {
            env: vec!["PATH=/bin".into(), "HOME=/root".into()],
            cmd: Some(vec!["sh".into()]),
            ..RunConfig::default()
        };
        config.change(lines.iter().copied()).unwrap();
        config
    }

    fn refused(line: &str) -> String {
        RunConfig::default().change(std::iter::once(line)).unwrap_err().to_string()
    }

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn commands_are_lists_or_for_a_shell() {
        assert_eq!(changed(&[r#"CMD ["a", "b c"]"#]).cmd, Some(list(&["a", "b c"])));
        assert_eq!(changed(&["cmd a  b"]).cmd, Some(list(&["/bin/sh", "-c", "a  b"])));
        let config = changed(&[r#"ENTRYPOINT ["x"]"#]);
        assert_eq!((config.entrypoint, config.cmd), (Some(list(&["x"])), None));
        let config = changed(&[r#"CMD ["y"]"#, r#"ENTRYPOINT ["x"]"#]);
        assert_eq!((config.entrypoint, config.cmd), (Some(list(&["x"])), Some(list(&["y"]))));
    }

    #[test]
    fn the_environment_is_changed_and_used() {
        assert_eq!(
            changed(&["ENV PATH=/opt:$PATH A=\"b c\" D='$HOME'", "ENV OLD  two words"]).env,
            ["PATH=/opt:/bin", "HOME=/root", "A=b c", "D=$HOME", "OLD=two words"]
        );
        assert_eq!(changed(&["ENV X=${NO:-d}${HOME:+e}\\$f"]).env.last().unwrap(), "X=de$f");
        assert_eq!(changed(&["USER ${HOME}"]).user, "/root");
    }

    #[test]
    fn sets_grow() {
        let config = changed(&["EXPOSE 80 53/udp 90-92", "VOLUME [\"/a\", \"/b c\"]", "VOLUME /d"]);
        let ports: Vec<&str> = config.exposed_ports.keys().map(String::as_str).collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "90/tcp", "91/tcp", "92/tcp"]);
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/a", "/b c", "/d"]);
        let labels = changed(&["LABEL a=1 \"b c\"=\"d e\"", "LABEL a=2"]).labels;
        assert_eq!(labels, BTreeMap::from([("a".into(), "2".into()), ("b c".into(), "d e".into())]));
    }

    #[test]
    fn directories_follow_one_another() {
        assert_eq!(changed(&["WORKDIR /a", "WORKDIR b/../c"]).working_dir, "/a/c");
    }

    #[test]
    fn health_checks_are_read_with_their_times() {
        let check =
            changed(&["HEALTHCHECK --interval=1m30s --retries=3 CMD true || false"]).healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (90_000_000_000, 3));
        assert_eq!(check.test, ["CMD-SHELL", "true || false"]);
        assert_eq!(changed(&["HEALTHCHECK NONE"]).healthcheck.unwrap().test, ["NONE"]);
    }

    #[test]
    fn lines_may_go_on_and_be_remarks() {
        assert_eq!(changed(&["# a remark\nENV A=1 \\\n  B=2\n\nUSER me"]).env[2..], ["A=1", "B=2"]);
    }

    #[test]
    fn what_is_no_change_is_refused() {
        assert_eq!(refused("RUN ls"), "RUN is not a valid change command");
        assert_eq!(refused("ENV"), "ENV must have two arguments");
        assert_eq!(refused("EXPOSE 99999"), "EXPOSE has an invalid port: 99999");
        assert_eq!(refused("USER"), "USER requires exactly one argument");
        assert_eq!(refused("ONBUILD FROM x"), "ONBUILD needs an instruction that may be a trigger");
        assert_eq!(
            refused(&"x".repeat(LENGTH_MAX + 1)),
            format!("the changes are longer than {LENGTH_MAX} bytes")
        );
    }
}
