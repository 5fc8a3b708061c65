//! From rules to classic BPF.
//!
//! ```text
//! architecture is ours? ── no ─▶ kill
//! number has the x32 bit? ─ yes ▶ kill
//! binary tree over intervals of equal decision
//!   └─ leaf: return, or tests of arguments in order, or a return for the rest
//! ```

use std::collections::BTreeMap;

use berth_sys::seccomp::{Instruction, PROGRAM_MAX};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It runs.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// The process is killed.
    KillProcess,
    /// The thread is killed.
    KillThread,
    /// `SIGSYS`.
    Trap,
    /// It runs and is logged.
    Log,
    /// A tracer decides; without one it fails with `ENOSYS`.
    Trace(u16),
    /// A listener in user space decides.
    Notify,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less, unsigned.
    Less,
    /// Less or equal, unsigned.
    LessOrEqual,
    /// Greater, unsigned.
    Greater,
    /// Greater or equal, unsigned.
    GreaterOrEqual,
}

/// A comparison of one argument under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// Bits that count.
    pub mask: u64,
    /// How to compare.
    pub compare: Compare,
    /// With what.
    pub value: u64,
}

/// An action if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// What is decided about one call: the first test that holds, else the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Tests in order.
    pub tests: Vec<Test>,
    /// When none holds.
    pub otherwise: Action,
}

impl Decision {
    /// The same for all arguments.
    pub fn always(action: Action) -> Self {
        Self { tests: Vec::new(), otherwise: action }
    }
}

/// A whole profile for x86-64.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Calls that are not named.
    pub default: Action,
    /// Calls by number.
    pub calls: BTreeMap<u32, Decision>,
}

/// The profile cannot become a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More instructions than the kernel takes.
    #[error("the filter has {0} instructions, the kernel takes {PROGRAM_MAX}")]
    TooLong(usize),
    /// An argument that system calls do not have.
    #[error("system calls have six arguments, there is no number {0}")]
    NoSuchArgument(u8),
    /// So many conditions on one call that a jump does not reach.
    #[error("too many conditions on one system call")]
    TooManyConditions,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`.
pub(crate) const X86_64: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT`.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Jump targets inside one condition, replaced when its length is known.
const PASS: u8 = 254;
const FAIL: u8 = 255;

/// Compiles a profile.
///
/// # Errors
/// When it does not fit.
pub fn compile(profile: &Profile) -> Result<Vec<Instruction>, CompileError> {
    let kill = result(Action::KillProcess);
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, X86_64, 1, 0),
        kill,
        statement(LOAD, NUMBER),
        jump(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        kill,
    ];
    program.extend(tree(&intervals(profile))?);
    if program.len() > PROGRAM_MAX {
        return Err(CompileError::TooLong(program.len()));
    }
    Ok(program)
}

/// Runs of numbers with one decision, each with its first number; together they cover every number.
fn intervals(profile: &Profile) -> Vec<(u32, Decision)> {
    let default = Decision::always(profile.default);
    let mut intervals: Vec<(u32, Decision)> = Vec::new();
    let mut push = |first: u32, decision: &Decision| {
        if intervals.last().is_none_or(|(_, last)| last != decision) {
            intervals.push((first, decision.clone()));
        }
    };
    let mut next = 0;
    for (number, decision) in &profile.calls {
        if *number > next {
            push(next, &default);
        }
        push(*number, decision);
        next = number + 1;
    }
    push(next, &default);
    intervals
}

fn tree(intervals: &[(u32, Decision)]) -> Result<Vec<Instruction>, CompileError> {
    let middle = intervals.len() / 2;
    let (low, high) = intervals.split_at(middle);
    match (low, high) {
        ([], [(_, decision)]) => leaf(decision),
        (_, [(first, _), ..]) => {
            let (left, right) = (tree(low)?, tree(high)?);
            let mut code = Vec::with_capacity(left.len() + right.len() + 2);
            if let Ok(distance) = u8::try_from(left.len()) {
                code.push(jump(JUMP_GREATER_EQUAL, *first, distance, 0));
            } else {
                // Conditional jumps reach 255 instructions, the unconditional one all.
                code.push(jump(JUMP_GREATER_EQUAL, *first, 0, 1));
                let distance = u32::try_from(left.len()).map_err(|_| CompileError::TooLong(left.len()))?;
                code.push(statement(JUMP, distance));
            }
            code.extend(left);
            code.extend(right);
            Ok(code)
        }
        (_, []) => Ok(Vec::new()),
    }
}

fn leaf(decision: &Decision) -> Result<Vec<Instruction>, CompileError> {
    let mut code = Vec::new();
    for test in &decision.tests {
        code.extend(test_code(test)?);
    }
    code.push(result(decision.otherwise));
    Ok(code)
}

/// The conditions one after the other, then the return; a condition that fails jumps behind the return.
fn test_code(test: &Test) -> Result<Vec<Instruction>, CompileError> {
    let mut code = vec![result(test.action)];
    for condition in test.conditions.iter().rev() {
        let mut one = condition_code(condition)?;
        let length = one.len();
        let behind = code.len();
        for (index, instruction) in one.iter_mut().enumerate() {
            let after = length - index - 1;
            for target in [&mut instruction.jt, &mut instruction.jf] {
                let distance = match *target {
                    PASS => after,
                    FAIL => after + behind,
                    near => usize::from(near),
                };
                *target = u8::try_from(distance).map_err(|_| CompileError::TooManyConditions)?;
            }
        }
        one.extend(code);
        code = one;
    }
    Ok(code)
}

/// One comparison of 64 bits by two of 32, upper half first. Jumps to [`PASS`] or [`FAIL`] are still open.
fn condition_code(condition: &Condition) -> Result<Vec<Instruction>, CompileError> {
    if condition.argument > 5 {
        return Err(CompileError::NoSuchArgument(condition.argument));
    }
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let (mask_high, mask_low) = halves(condition.mask);
    let (high, low) = halves(condition.value);
    let mut code = vec![statement(LOAD, offset + 4)];
    if mask_high != u32::MAX {
        code.push(statement(AND, mask_high));
    }
    let load_low = |code: &mut Vec<Instruction>| {
        code.push(statement(LOAD, offset));
        if mask_low != u32::MAX {
            code.push(statement(AND, mask_low));
        }
    };
    match condition.compare {
        Compare::Equal | Compare::NotEqual => {
            let equal = condition.compare == Compare::Equal;
            let (same, different) = if equal { (PASS, FAIL) } else { (FAIL, PASS) };
            code.push(jump(JUMP_EQUAL, high, 0, different));
            load_low(&mut code);
            code.push(jump(JUMP_EQUAL, low, same, different));
        }
        Compare::Greater | Compare::GreaterOrEqual | Compare::Less | Compare::LessOrEqual => {
            let (above, low_code) = match condition.compare {
                Compare::Greater => (PASS, JUMP_GREATER),
                Compare::GreaterOrEqual => (PASS, JUMP_GREATER_EQUAL),
                Compare::Less => (FAIL, JUMP_GREATER_EQUAL),
                _ => (FAIL, JUMP_GREATER),
            };
            let below = if above == PASS { FAIL } else { PASS };
            code.push(jump(JUMP_GREATER, high, above, 0));
            code.push(jump(JUMP_EQUAL, high, 0, below));
            load_low(&mut code);
            code.push(jump(low_code, low, above, below));
        }
    }
    Ok(code)
}

fn result(action: Action) -> Instruction {
    let value = match action {
        Action::Allow => 0x7fff_0000,
        Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Log => 0x7ffc_0000,
        Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
        Action::Notify => 0x7fc0_0000,
    };
    statement(RETURN, value)
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::super::interpret::{Call, run};
    use super::*;

    const ERRNO: Action = Action::Errno(1);

    fn profile(calls: &[(u32, Decision)]) -> Profile {
        Profile { default: ERRNO, calls: calls.iter().cloned().collect() }
    }

    fn decide(program: &[Instruction], number: u32, arguments: [u64; 6]) -> Instruction {
        statement(RETURN, run(program, &Call { number, architecture: X86_64, arguments }))
    }

    #[test]
    fn every_number_gets_its_own_decision_also_where_jumps_are_long() {
        // Every second call allowed: the most intervals there can be, far more than a short jump spans.
        let calls: Vec<_> =
            (0..1000).step_by(2).map(|number| (number, Decision::always(Action::Allow))).collect();
        let program = compile(&profile(&calls)).unwrap();
        for number in 0..1100 {
            let expected = if number < 1000 && number % 2 == 0 { Action::Allow } else { ERRNO };
            assert_eq!(decide(&program, number, [0; 6]), result(expected), "{number}");
        }
    }

    #[test]
    fn foreign_abis_are_killed_whatever_the_profile_says() {
        let allow_all = Profile { default: Action::Allow, calls: BTreeMap::new() };
        let program = compile(&allow_all).unwrap();
        let kill = result(Action::KillProcess).k;
        let i386 = 0x4000_0003;
        let foreign = Call { number: 1, architecture: i386, arguments: [0; 6] };
        assert_eq!(run(&program, &foreign), kill);
        for number in [X32_BIT, X32_BIT + 1, u32::MAX] {
            assert_eq!(decide(&program, number, [0; 6]).k, kill);
        }
        assert_eq!(decide(&program, X32_BIT - 1, [0; 6]), result(Action::Allow));
    }

    #[test]
    fn comparisons_are_those_of_64_bit_numbers() {
        let values = [0, 1, 2, 0xffff_ffff, 1 << 32, (1 << 32) + 1, (2 << 32) + 1, u64::MAX - 1, u64::MAX];
        let compares = [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
        ];
        let truth = |compare, left: u64, right: u64| match compare {
            Compare::Equal => left == right,
            Compare::NotEqual => left != right,
            Compare::Less => left < right,
            Compare::LessOrEqual => left <= right,
            Compare::Greater => left > right,
            Compare::GreaterOrEqual => left >= right,
        };
        for compare in compares {
            for value in values {
                for mask in [u64::MAX, 0xffff_ffff, 1 << 32 | 1] {
                    let condition = Condition { argument: 3, mask, compare, value };
                    let test = Test { conditions: vec![condition], action: Action::Allow };
                    let decision = Decision { tests: vec![test], otherwise: ERRNO };
                    let program = compile(&profile(&[(7, decision)])).unwrap();
                    for argument in values {
                        let expected =
                            if truth(compare, argument & mask, value) { Action::Allow } else { ERRNO };
                        let got = decide(&program, 7, [9, 9, 9, argument, 9, 9]);
                        assert_eq!(got, result(expected), "{argument:x} & {mask:x} {compare:?} {value:x}");
                    }
                }
            }
        }
    }

    #[test]
    fn all_conditions_must_hold_and_the_first_test_wins() {
        let equal = |argument, value| Condition { argument, mask: u64::MAX, compare: Compare::Equal, value };
        let decision = Decision {
            tests: vec![
                Test { conditions: vec![equal(0, 1), equal(1, 2)], action: Action::Allow },
                Test { conditions: vec![equal(0, 1)], action: Action::Errno(38) },
            ],
            otherwise: ERRNO,
        };
        let program = compile(&profile(&[(5, decision)])).unwrap();
        assert_eq!(decide(&program, 5, [1, 2, 0, 0, 0, 0]), result(Action::Allow));
        assert_eq!(decide(&program, 5, [1, 3, 0, 0, 0, 0]), result(Action::Errno(38)));
        assert_eq!(decide(&program, 5, [2, 2, 0, 0, 0, 0]), result(ERRNO));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let condition = Condition { argument: 6, mask: 0, compare: Compare::Equal, value: 0 };
        let test = |conditions| Decision {
            tests: vec![Test { conditions, action: Action::Allow }],
            otherwise: ERRNO,
        };
        let bad = compile(&profile(&[(1, test(vec![condition]))]));
        assert_eq!(bad, Err(CompileError::NoSuchArgument(6)));
        let condition = Condition { argument: 0, ..condition };
        let many = compile(&profile(&[(1, test(vec![condition; 100]))]));
        assert_eq!(many, Err(CompileError::TooManyConditions));
        let calls: Vec<_> =
            (0..5000).step_by(2).map(|number| (number, Decision::always(Action::Allow))).collect();
        assert!(matches!(compile(&profile(&calls)), Err(CompileError::TooLong(_))));
    }
}
