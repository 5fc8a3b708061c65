//! An interpreter of classic BPF as the kernel runs it on system calls, to test filters without installing them.

use berth_sys::seccomp::Instruction;

/// A system call as a filter sees it.
pub(crate) struct Call {
    pub(crate) number: u32,
    pub(crate) architecture: u32,
    pub(crate) arguments: [u64; 6],
}

impl Call {
    /// `struct seccomp_data` at an offset.
    fn word(&self, offset: u32) -> u32 {
        let argument = |index: u32| self.arguments[usize::try_from(index / 8).unwrap()];
        match offset {
            0 => self.number,
            4 => self.architecture,
            8 | 12 => 0,
            16..64 if offset.is_multiple_of(8) => (argument(offset - 16) & 0xffff_ffff) as u32,
            16..64 if offset % 8 == 4 => (argument(offset - 20) >> 32) as u32,
            _ => panic!("load at {offset}"),
        }
    }
}

/// Runs a program to its return value. Panics where the kernel's checker would have refused the program.
pub(crate) fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            _ => panic!("instruction {code:x}"),
        }
    }
}
