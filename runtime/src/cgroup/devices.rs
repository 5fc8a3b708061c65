//! Which devices a group may use: rules become a program of extended BPF that the kernel asks at each access.
//!
//! Without compiler or assembler: the program is a list of comparisons, some four per rule.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use berth_sys::bpf::{self, Instruction};

/// Kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both.
    Any,
    /// Block devices.
    Block,
    /// Character devices.
    Character,
}

/// What is done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Making a node.
    pub mknod: bool,
}

impl Access {
    /// `rwm`.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };

    /// `BPF_DEVCG_ACC_*`.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// One rule. The last rule that fits an access decides; without one it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Allowed or refused.
    pub allow: bool,
    /// Which kind.
    pub kind: Kind,
    /// Major number; none for all.
    pub major: Option<u32>,
    /// Minor number; none for all.
    pub minor: Option<u32>,
    /// An allowing rule fits an access it covers whole, a refusing one an access it touches.
    pub access: Access,
}

/// What every container may use: making any node (harmless without access), the default nodes, terminals.
pub const DEFAULT: [Rule; 11] = [
    Rule { allow: true, kind: Kind::Character, major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Kind::Block, major: None, minor: None, access: MKNOD },
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(1)), // console
    character(5, Some(2)), // ptmx
    character(136, None),  // pts
];

/// Everything, for privileged containers.
pub const ALL: Rule = Rule { allow: true, kind: Kind::Any, major: None, minor: None, access: Access::ALL };

const MKNOD: Access = Access { read: false, write: false, mknod: true };

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Kind::Character, major: Some(major), minor, access: Access::ALL }
}

/// Most rules of one container. Jumps reach far further; this bounds what the kernel has to check.
pub const RULES_MAX: usize = 500;

/// Compiles the rules and attaches them to a group. Attaching twice only tightens: every program must allow.
///
/// # Errors
/// `InvalidInput` with more than [`RULES_MAX`] rules; what `bpf` says otherwise.
pub fn restrict(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> io::Result<()> {
    if rules.len() > RULES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more device rules than RULES_MAX"));
    }
    let program = bpf::load_device_filter(&compile(rules))?;
    bpf::attach_device_filter(cgroup, program.as_fd())
}

// Registers: 1 is the context and later a scratch, 2 the access, 3 the kind, 4 major, 5 minor.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x56; // of 32 bits
const JUMP_EQUAL: u8 = 0x16; // of 32 bits
const EXIT: u8 = 0x95;

/// `struct bpf_cgroup_dev_ctx`: `access << 16 | kind`, major, minor.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        load(2, 0),
        instruction(MOVE, 3 | 2 << 4, 0, 0),
        instruction(AND, 3, 0, 0xffff),
        instruction(SHIFT_RIGHT, 2, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(rule_code(rule));
    }
    program.extend(verdict(false));
    program
}

fn rule_code(rule: &Rule) -> Vec<Instruction> {
    let mut code = Vec::new();
    match rule.kind {
        Kind::Any => {}
        Kind::Block => code.push((JUMP_NOT_EQUAL, 3, 1)),
        Kind::Character => code.push((JUMP_NOT_EQUAL, 3, 2)),
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            code.push((JUMP_NOT_EQUAL, register, number.cast_signed()));
        }
    }
    let access = rule.access.bits();
    let (mask, jump) = if rule.allow { (7 & !access, JUMP_NOT_EQUAL) } else { (access, JUMP_EQUAL) };
    let tail =
        [instruction(MOVE, 1 | 2 << 4, 0, 0), instruction(AND, 1, 0, mask), instruction(jump, 1, 2, 0)];
    // A comparison that fails jumps behind the verdict: over the comparisons left, the tail and two instructions.
    let count = code.len();
    let jumps = code.iter().enumerate().map(|(index, (operation, register, number))| {
        let over = count - index - 1 + tail.len() + 2;
        instruction(*operation, *register, i16::try_from(over).unwrap_or(i16::MAX), *number)
    });
    jumps.chain(tail).chain(verdict(rule.allow)).collect()
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [instruction(SET, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0)]
}

fn load(register: u8, offset: i16) -> Instruction {
    instruction(LOAD_WORD, register | 1 << 4, offset, 0)
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for an access `(kind, major, minor, access bits)`.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 6];
        let mut at = 0usize;
        loop {
            let Instruction { code, registers: operands, offset, immediate } = program[at];
            let (target, source) = (usize::from(operands & 15), usize::from(operands >> 4));
            let same = registers[target] & 0xffff_ffff == u64::from(immediate.cast_unsigned());
            at += 1;
            match code {
                LOAD_WORD => registers[target] = u64::from(context[usize::try_from(offset / 4).unwrap()]),
                MOVE => registers[target] = registers[source],
                SET => registers[target] = u64::from(immediate.cast_unsigned()),
                AND => registers[target] &= u64::from(immediate.cast_unsigned()),
                SHIFT_RIGHT => registers[target] >>= immediate,
                JUMP_NOT_EQUAL if !same => at += usize::try_from(offset).unwrap(),
                JUMP_EQUAL if same => at += usize::try_from(offset).unwrap(),
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:x}"),
            }
        }
    }

    /// The rules by their definition.
    fn expected(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let fits = |rule: &&Rule| {
            let bits = rule.access.bits().cast_unsigned();
            let right_kind = match rule.kind {
                Kind::Any => true,
                Kind::Block => kind == 1,
                Kind::Character => kind == 2,
            };
            let right_access = if rule.allow { access & !bits == 0 } else { access & bits != 0 };
            right_kind
                && right_access
                && rule.major.is_none_or(|wanted| wanted == major)
                && rule.minor.is_none_or(|wanted| wanted == minor)
        };
        rules.iter().rev().find(fits).is_some_and(|rule| rule.allow)
    }

    #[test]
    fn programs_decide_as_the_rules_say() {
        let read = Access { read: true, write: false, mknod: false };
        let disk = Rule { allow: true, kind: Kind::Block, major: Some(8), minor: None, access: read };
        let deny = Rule { allow: false, kind: Kind::Any, major: Some(8), minor: Some(1), access: read };
        let huge =
            Rule { allow: true, kind: Kind::Character, major: Some(u32::MAX), minor: None, access: read };
        let lists: [Vec<Rule>; 6] = [
            vec![],
            vec![ALL],
            DEFAULT.to_vec(),
            vec![ALL, deny],
            vec![deny, disk],
            [DEFAULT.as_slice(), &[disk, deny, huge]].concat(),
        ];
        for rules in lists {
            let program = compile(&rules);
            for kind in [1, 2] {
                for major in [0, 1, 5, 8, 136, u32::MAX] {
                    for minor in [0, 1, 3, 7, 9] {
                        for access in 1..8 {
                            let got = run(&program, kind, major, minor, access);
                            let wanted = expected(&rules, kind, major, minor, access);
                            assert_eq!(got, wanted, "{rules:?} {kind} {major}:{minor} {access}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_default_opens_null_and_no_disk() {
        let program = compile(&DEFAULT);
        assert!(run(&program, 2, 1, 3, 6));
        assert!(run(&program, 2, 136, 99, 2));
        assert!(!run(&program, 1, 8, 0, 2));
        assert!(!run(&program, 2, 1, 1, 2), "mem");
    }
}
