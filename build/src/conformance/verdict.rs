//! What a program of the suite printed, and which programs say nothing about a runtime on control groups of
//! version 2.

use super::Runtime;
use anyhow::{Context, Result};

/// Before a program's output: runtime and program follow.
pub(super) const BEGIN: &str = "@@ begin";
/// After it: runtime, program and exit code follow.
pub(super) const END: &str = "@@ end";

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every check passed.
    Pass,
    /// Some check failed, and it is the runtime's.
    Fail,
    /// It cannot pass here, or its check is not what the specification says.
    Explained,
}

/// One program against one runtime.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) runtime: String,
    pub(crate) program: String,
    pub(crate) outcome: Outcome,
    /// The first thing that was wrong.
    pub(crate) detail: String,
}

const NO_V2: &str = "the suite reads control groups of version 1 only";

/// Programs that no runtime passes on control groups of version 2, each with its reason.
const EXPLAINED: &[(&str, &str)] = &[
    ("delete", "it wants `delete` of a created container refused; every runtime removes it"),
    ("delete_only_create_resources", NO_V2),
    ("delete_resources", NO_V2),
    ("hooks", "it reads the hooks' output after it has removed the bundle"),
    ("linux_cgroups_blkio", "blkio.leaf_weight is gone since Linux 5.0"),
    ("linux_cgroups_cpus", NO_V2),
    ("linux_cgroups_devices", NO_V2),
    ("linux_cgroups_hugetlb", NO_V2),
    ("linux_cgroups_memory", NO_V2),
    ("linux_cgroups_network", NO_V2),
    ("linux_cgroups_pids", NO_V2),
    ("linux_cgroups_relative_blkio", "blkio.leaf_weight is gone since Linux 5.0"),
    ("linux_cgroups_relative_cpus", NO_V2),
    ("linux_cgroups_relative_devices", NO_V2),
    ("linux_cgroups_relative_hugetlb", NO_V2),
    ("linux_cgroups_relative_memory", NO_V2),
    ("linux_cgroups_relative_network", NO_V2),
    ("linux_cgroups_relative_pids", NO_V2),
    ("linux_process_apparmor_profile", "the kernel runs without AppArmor, or without the profile it names"),
    ("poststart", "it wants the program's first output before the hook's, and nothing orders the two"),
    ("poststart_fail", "since 1.3 a failed poststart hook is an error; it wants a warning"),
    ("prestart", "prestart hooks run during `create` since 1.0.2; it wants them at `start`"),
    ("process_capabilities_fail", "since 1.1 unknown capabilities are skipped; it wants an error"),
];

/// Why a program cannot pass.
fn explanation(program: &str) -> Option<&'static str> {
    EXPLAINED.iter().find(|(name, _)| *name == program).map(|(_, reason)| *reason)
}

/// Reads the console of a run.
pub(crate) fn read(lines: &[String]) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let mut begun: Option<usize> = None;
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with(BEGIN) {
            begun = Some(number + 1);
        } else if let Some(rest) = line.strip_prefix(END) {
            let output = &lines[begun.take().context("an end without a beginning")?..number];
            let mut words = rest.split_whitespace();
            let mut word = || words.next().context("a line cut short").map(str::to_owned);
            let (runtime, program, code) = (word()?, word()?, word()?);
            verdicts.push(judge(runtime, program, &code, output));
        }
    }
    Ok(verdicts)
}

fn judge(runtime: String, program: String, code: &str, output: &[String]) -> Verdict {
    let failed = output.iter().map(|line| line.trim()).find(|line| line.starts_with("not ok"));
    let passed = output.iter().any(|line| line.starts_with("ok "));
    // Some programs say that something is wrong only beside their checks, of which they then have none.
    let error = output.iter().map(|line| line.trim()).find(|line| line.starts_with("\"error\":"));
    let detail = match (failed, code, passed, error) {
        (Some(line), ..) => line.to_owned(),
        (None, "0", true, _) | (None, "0", false, None) => String::new(),
        (None, "0", false, Some(error)) => error.to_owned(),
        (None, code, ..) => {
            let last = output.iter().rev().find(|line| !line.trim().is_empty());
            format!("exit {code}: {}", last.map_or("", String::as_str))
        }
    };
    let outcome = match (detail.is_empty(), explanation(&program)) {
        (true, _) => Outcome::Pass,
        (false, Some(_)) => Outcome::Explained,
        (false, None) => Outcome::Fail,
    };
    Verdict { runtime, program, outcome, detail }
}

/// Pass, fail and explained of one runtime.
pub(crate) fn count(verdicts: &[Verdict], runtime: Runtime) -> [usize; 3] {
    let of = |outcome| {
        verdicts.iter().filter(|one| one.runtime == runtime.name() && one.outcome == outcome).count()
    };
    [of(Outcome::Pass), of(Outcome::Fail), of(Outcome::Explained)]
}

#[cfg(test)]
mod tests {
    use super::Outcome::{Explained, Fail, Pass};
    use super::*;

    fn outcomes(text: &str) -> Vec<Outcome> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        read(&lines).expect("a console").iter().map(|verdict| verdict.outcome).collect()
    }

    #[test]
    fn a_failed_check_an_exit_code_and_an_error_beside_no_check_are_failures() {
        let text = "@@ begin crun a\nok 1 - x\n1..1\n@@ end crun a 0\n\
            @@ begin crun b\nok 1 - x\nnot ok 2 - y\n@@ end crun b 0\n\
            @@ begin crun c\nfailed\n@@ end crun c 1\n\
            @@ begin crun d\n  \"error\": \"no\"\n1..0\n@@ end crun d 0\n\
            @@ begin crun prestart\nnot ok 1\n@@ end crun prestart 0\n\
            @@ begin crun e\n1..0\n@@ end crun e 0\n";
        assert_eq!(outcomes(text), [Pass, Fail, Fail, Fail, Explained, Pass]);
    }

    #[test]
    fn programs_are_explained_once_each() {
        assert!(EXPLAINED.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
