//! Scripted sessions: command lines with the output and exit code a real engine gives, compared line by line.
//!
//! A session is a text file of steps. A step is a line `$ COMMAND` and the lines it must print, standard output and
//! error together. In an expected line `*` stands for any characters and `?` for
//! one; a line `...` for any number of lines; a last
//! line `[N]` for the exit code (0 when absent). Lines that begin with `#` and blank lines between steps are prose.
//! A command that a shell would wait for ever on is killed after [`STEP_DEADLINE`].

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Longest a step may take under emulation.
pub const STEP_DEADLINE: Duration = Duration::from_secs(90);

/// One command and what it must give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line number of the command in the file, from 1.
    pub line: usize,
    /// The command, for `sh -c`.
    pub command: String,
    /// Expected lines, with wildcards.
    pub expected: Vec<String>,
    /// Expected exit code.
    pub code: i32,
}

/// What a step really gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output and error.
    pub output: String,
    /// Exit code, 124 when the deadline passed.
    pub code: i32,
}

/// Split a session file into steps.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: index + 1, command: command.to_owned(), expected: Vec::new(), code: 0 });
            open = true;
        } else if line.trim().is_empty() || (line.starts_with('#') && !open) {
            open = false;
        } else if open {
            let step = steps.last_mut().context("an expected line needs a command above it")?;
            match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::parse) {
                Some(Ok(code)) => step.code = code,
                _ => step.expected.push(line.to_owned()),
            }
        } else {
            bail!("line {}: neither a command, nor expected output, nor prose: {line:?}", index + 1);
        }
    }
    Ok(steps)
}

/// Does `text` match `pattern`, where `*` stands for any characters and `?` for one?
pub fn line_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where to go on after the last star, when what follows it did not match here.
    let mut retry: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at + 1, seen));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    at = after_star;
                    seen = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&left| left == '*')
}

/// Do the lines match the expected ones, where `...` stands for any number of lines?
pub fn lines_match(expected: &[String], lines: &[&str]) -> bool {
    let Some((first, others)) = expected.split_first() else { return lines.is_empty() };
    if first == "..." {
        return (0..=lines.len()).any(|skip| lines_match(others, &lines[skip..]));
    }
    match lines.split_first() {
        Some((line, rest)) => line_matches(first, line.trim_end()) && lines_match(others, rest),
        None => false,
    }
}

/// Run one command with this environment added.
pub fn run_step(command: &str, environment: &[(String, String)], directory: &Path) -> Result<Outcome> {
    let merged = tempfile::NamedTempFile::new().context("temporary file for output")?;
    let out = merged.reopen().context("temporary file for output")?;
    let err = out.try_clone().context("temporary file for output")?;
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("sh -c {command:?}"))?;
    let deadline = Instant::now() + STEP_DEADLINE;
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().unwrap_or(-1);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break 124;
        }
        // A child of unknown length: nothing to wait on but its end, polled.
        std::thread::sleep(Duration::from_millis(10));
    };
    let output = String::from_utf8_lossy(&std::fs::read(merged.path())?).into_owned();
    Ok(Outcome { output, code })
}

/// Run a whole session; gives the number of steps, or every step that differed.
pub fn run(text: &str, environment: &[(String, String)], directory: &Path) -> Result<usize> {
    let steps = parse(text)?;
    let mut failures = String::new();
    for step in &steps {
        let outcome = run_step(&step.command, environment, directory)?;
        let lines: Vec<&str> = outcome.output.lines().collect();
        if outcome.code != step.code || !lines_match(&step.expected, &lines) {
            let wanted = step.expected.join("\n  ");
            write!(
                failures,
                "line {}: $ {}\n wanted [{}]:\n  {wanted}\n got [{}]:\n  {}\n",
                step.line,
                step.command,
                step.code,
                outcome.code,
                lines.join("\n  ")
            )?;
        }
    }
    if !failures.is_empty() {
        bail!("{failures}");
    }
    Ok(steps.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_any_characters() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("*", "", true),
            ("a*b*c", "a-b-c", true),
            ("a*a", "a", false),
            ("a??d", "abcd", true),
            ("a?d", "abcd", false),
            ("Exited (*) * ago*", "Exited (3) 2 seconds ago", true),
        ] {
            assert_eq!(line_matches(pattern, text), expected, "{pattern} ~ {text}");
        }
    }

    #[test]
    fn dots_stand_for_any_lines() {
        let pattern: Vec<String> = ["a", "...", "d"].map(str::to_owned).to_vec();
        assert!(lines_match(&pattern, &["a", "d"]));
        assert!(lines_match(&pattern, &["a", "b", "c", "d"]));
        assert!(!lines_match(&pattern, &["a", "b"]));
    }

    #[test]
    fn a_session_has_steps_with_lines_and_codes() {
        let steps = parse("# prose\n\n$ echo a\na\n\n$ false\n[1]\n").expect("parses");
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0].expected, ["a"]);
        assert_eq!(steps[1].code, 1);
    }

    #[test]
    fn a_wrong_output_and_a_wrong_code_are_told() {
        let here = std::env::temp_dir();
        assert_eq!(run("$ echo a\na\n", &[], &here).expect("matches"), 1);
        assert!(run("$ echo a\nb\n", &[], &here).is_err());
        assert!(run("$ exit 3\n[2]\n", &[], &here).is_err());
    }
}
