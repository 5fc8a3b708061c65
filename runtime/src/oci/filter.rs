//! `linux.seccomp` to a filter of this runtime's own compiler.

use std::collections::BTreeMap;

use super::OciError;
use super::spec::{ArgumentSpec, SeccompSpec, SyscallSpec};
use crate::capability;
use crate::plan::Seccomp;
use crate::seccomp::calls::number;
use crate::seccomp::compile::{Action, Compare, Condition, Decision, Profile, Test, compile};

/// A listener in user space decides.
const NOTIFY: &str = "SCMP_ACT_NOTIFY";

/// The architecture as Go names it.
const ARCHITECTURE: &str = "amd64";

/// Compiles a profile in Docker's format (`--security-opt seccomp=`), which the specification's is a part of, for a
/// container with these capabilities.
pub fn docker_filter(json: &str, capabilities: u64) -> Result<Seccomp, OciError> {
    let spec: SeccompSpec = serde_json::from_str(json)
        .map_err(|source| OciError::Json { path: "seccomp profile".into(), source })?;
    filter(&spec, capabilities)
}

/// Compiles a profile. Names of other architectures are skipped, as every runtime does; foreign ABIs are killed
/// whatever the profile says of them.
pub fn filter(spec: &SeccompSpec, capabilities: u64) -> Result<Seccomp, OciError> {
    let mut actions =
        std::iter::once(&spec.default_action).chain(spec.syscalls.iter().map(|rule| &rule.action));
    if spec.listener_path.is_none() && actions.any(|name| name == NOTIFY) {
        return Err(OciError::Spec(format!("linux.seccomp.listenerPath is needed for {NOTIFY}")));
    }
    if spec.default_action == NOTIFY {
        return Err(OciError::Spec(format!("linux.seccomp.defaultAction cannot be {NOTIFY}")));
    }
    let default = action(&spec.default_action, spec.default_errno_ret)?;
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in spec.syscalls.iter().filter(|rule| counts(rule, capabilities)) {
        add_rule(&mut calls, rule, default)?;
    }
    let program = compile(&Profile { default, calls });
    let program = program.map_err(|error| OciError::Spec(format!("seccomp: {error}")))?;
    Ok(Seccomp::Program(program.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect()))
}

/// Whether a rule counts for a container with these capabilities.
fn counts(rule: &SyscallSpec, capabilities: u64) -> bool {
    let has = |name: &String| capability::bit(name).is_ok_and(|bit| capabilities >> bit & 1 == 1);
    let here = |name: &String| name == ARCHITECTURE;
    let included = rule.includes.as_ref().is_none_or(|wanted| {
        wanted.caps.iter().all(has) && (wanted.arches.is_empty() || wanted.arches.iter().any(here))
    });
    let excluded = rule
        .excludes
        .as_ref()
        .is_some_and(|unwanted| unwanted.caps.iter().any(has) || unwanted.arches.iter().any(here));
    included && !excluded
}

/// Rules without arguments decide the rest of a call, rules with arguments are tests before it.
fn add_rule(
    calls: &mut BTreeMap<u32, Decision>,
    rule: &SyscallSpec,
    default: Action,
) -> Result<(), OciError> {
    let action = action(&rule.action, rule.errno_ret)?;
    // The process itself hands over the descriptor on which the questions come.
    if action == Action::Notify && rule.names.iter().any(|name| name == "sendmsg") {
        return Err(OciError::Spec(format!("linux.seccomp.syscalls: sendmsg cannot be {NOTIFY}")));
    }
    let conditions = rule.args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    for number in rule.names.iter().filter_map(|name| number(name)) {
        let decision = calls.entry(number).or_insert_with(|| Decision::always(default));
        if conditions.is_empty() {
            decision.otherwise = action;
        } else {
            decision.tests.push(Test { conditions: conditions.clone(), action });
        }
    }
    Ok(())
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, OciError> {
    const EPERM: u16 = 1;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        NOTIFY => Action::Notify,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        other => return Err(OciError::Spec(format!("seccomp action {other:?}"))),
    })
}

fn condition(spec: &ArgumentSpec) -> Result<Condition, OciError> {
    let plain = |compare| Condition { argument: spec.index, mask: u64::MAX, compare, value: spec.value };
    Ok(match spec.op.as_str() {
        "SCMP_CMP_EQ" => plain(Compare::Equal),
        "SCMP_CMP_NE" => plain(Compare::NotEqual),
        "SCMP_CMP_LT" => plain(Compare::Less),
        "SCMP_CMP_LE" => plain(Compare::LessOrEqual),
        "SCMP_CMP_GT" => plain(Compare::Greater),
        "SCMP_CMP_GE" => plain(Compare::GreaterOrEqual),
        "SCMP_CMP_MASKED_EQ" => Condition {
            argument: spec.index,
            mask: spec.value,
            compare: Compare::Equal,
            value: spec.value_two,
        },
        other => return Err(OciError::Spec(format!("seccomp comparison {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_specification_compiles() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#;
        let spec: SeccompSpec = serde_json::from_str(json).unwrap();
        let Seccomp::Program(program) = filter(&spec, 0).unwrap() else { panic!("a program") };
        assert!(program.iter().any(|(code, _, _, k)| (*code, *k) == (0x06, 0x0005_0000 + 38)));
    }

    #[test]
    fn unknown_actions_and_comparisons_are_refused() {
        let spec = SeccompSpec { default_action: "SCMP_ACT_MAYBE".to_owned(), ..SeccompSpec::default() };
        assert!(filter(&spec, 0).is_err());
        let args = vec![ArgumentSpec { op: "LIKE".to_owned(), ..ArgumentSpec::default() }];
        let allow = "SCMP_ACT_ALLOW".to_owned();
        let names = vec!["read".to_owned()];
        let syscalls = vec![SyscallSpec { names, action: allow.clone(), args, ..SyscallSpec::default() }];
        let spec = SeccompSpec { default_action: allow, syscalls, ..SeccompSpec::default() };
        assert!(filter(&spec, 0).is_err());
    }

    #[test]
    fn questions_need_somebody_who_answers() {
        let compiled = |listener: &str, name: &str| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",{listener}"syscalls":[{{"names":["{name}"],"action":"{NOTIFY}"}}]}}"#
            );
            filter(&serde_json::from_str(&text).unwrap(), 0).map_err(|error| error.to_string())
        };
        let listener = r#""listenerPath":"/run/x","#;
        assert!(compiled(listener, "mkdir").is_ok());
        assert!(compiled("", "mkdir").unwrap_err().contains("listenerPath"));
        assert!(compiled(listener, "sendmsg").unwrap_err().contains("sendmsg"));
    }

    /// Docker's default profile (github.com/moby/profiles, seccomp/default.json, Apache-2.0).
    const DOCKER: &str = include_str!("../seccomp/docker-default.json");

    fn instructions(seccomp: Seccomp) -> Vec<berth_sys::seccomp::Instruction> {
        let Seccomp::Program(program) = seccomp else { panic!("a program") };
        let one = |(code, jt, jf, k)| berth_sys::seccomp::Instruction { code, jt, jf, k };
        program.into_iter().map(one).collect()
    }

    #[test]
    fn our_default_profile_allows_nothing_that_dockers_refuses() {
        use crate::seccomp::compile::X86_64;
        use crate::seccomp::interpret::{Call, run};
        use crate::seccomp::profile;
        const ALLOW: u32 = 0x7fff_0000;
        let singles = (0..capability::NAMES.len()).map(|bit| 1 << bit);
        let mut tighter = 0;
        for capabilities in singles.chain([0, capability::DEFAULT, capability::ALL]) {
            let ours = compile(&profile::default(capabilities)).unwrap();
            let theirs = instructions(docker_filter(DOCKER, capabilities).unwrap());
            for number in 0..600 {
                for first in [0, 1, 2, 8, 10, 16, 17, 38, 40, 44, 0x2_0000, 0x1000_0000, 0x3d_0f00, u64::MAX]
                {
                    for third in [0, 6, u64::MAX] {
                        let arguments = [first, 1, third, 0, 0, 0];
                        let call = Call { number, architecture: X86_64, arguments };
                        let (mine, other) = (run(&ours, &call), run(&theirs, &call));
                        assert!(mine != ALLOW || other == ALLOW, "{number} {first:x} with {capabilities:x}");
                        tighter += u32::from(mine != ALLOW && other == ALLOW);
                    }
                }
            }
        }
        assert!(tighter > 0, "the comparison sees no difference at all");
    }
}
