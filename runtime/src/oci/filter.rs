//! `linux.seccomp` to a filter of this runtime's own compiler.

use std::collections::BTreeMap;

use super::OciError;
use super::spec::{ArgumentSpec, SeccompSpec, SyscallSpec};
use crate::plan::Seccomp;
use crate::seccomp::calls::number;
use crate::seccomp::compile::{Action, Compare, Condition, Decision, Profile, Test, compile};

/// Compiles a profile. Names of other architectures are skipped, as every runtime does; foreign ABIs are killed
/// whatever the profile says of them.
pub fn filter(spec: &SeccompSpec) -> Result<Seccomp, OciError> {
    let default = action(&spec.default_action, spec.default_errno_ret)?;
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in &spec.syscalls {
        add_rule(&mut calls, rule, default)?;
    }
    let program = compile(&Profile { default, calls });
    let program = program.map_err(|error| OciError::Spec(format!("seccomp: {error}")))?;
    Ok(Seccomp::Program(program.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect()))
}

/// Rules without arguments decide the rest of a call, rules with arguments are tests before it.
fn add_rule(
    calls: &mut BTreeMap<u32, Decision>,
    rule: &SyscallSpec,
    default: Action,
) -> Result<(), OciError> {
    let action = action(&rule.action, rule.errno_ret)?;
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
        let Seccomp::Program(program) = filter(&spec).unwrap() else { panic!("a program") };
        assert!(program.iter().any(|(code, _, _, k)| (*code, *k) == (0x06, 0x0005_0000 + 38)));
    }

    #[test]
    fn unknown_actions_and_comparisons_are_refused() {
        let spec = SeccompSpec { default_action: "SCMP_ACT_MAYBE".to_owned(), ..SeccompSpec::default() };
        assert!(filter(&spec).is_err());
        let args = vec![ArgumentSpec { op: "LIKE".to_owned(), ..ArgumentSpec::default() }];
        let allow = "SCMP_ACT_ALLOW".to_owned();
        let syscalls = vec![SyscallSpec {
            names: vec!["read".to_owned()],
            action: allow.clone(),
            args,
            errno_ret: None,
        }];
        assert!(filter(&SeccompSpec { default_action: allow, syscalls, default_errno_ret: None }).is_err());
    }
}
