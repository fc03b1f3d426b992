//! Which devices a container may use: a BPF program on its cgroup
//! (`BPF_CGROUP_DEVICE`), made from the plan's rules.
//!
//! Each rule decides the access bits it covers that no later rule has decided, so the
//! program walks them from the last to the first and keeps the undecided bits in a
//! register. What no rule allows is denied.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use caisson_agent_protocol::plan::{DeviceKind, DeviceRule};

use crate::sys;

/// One instruction, as `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination register in the low half, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const BPF_DEVCG_ACC_MKNOD: i32 = 1;
const BPF_DEVCG_ACC_READ: i32 = 2;
const BPF_DEVCG_ACC_WRITE: i32 = 4;
const BPF_DEVCG_DEV_BLOCK: i32 = 1;
const BPF_DEVCG_DEV_CHAR: i32 = 2;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
const AND: u8 = 0x54; // 32-bit ALU, immediate
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_IF_EQUAL: u8 = 0x16; // 32-bit jump, immediate
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, immediate }
}

/// The rules that hold in every container, after the plan's (runtime-spec, default
/// devices): the standard devices, ptys, and making nodes, which gives no access.
pub fn default_rules() -> Vec<DeviceRule> {
    let rule = |kind, major, minor, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    };
    let mut rules = vec![
        rule(DeviceKind::Char, None, None, "m"),
        rule(DeviceKind::Block, None, None, "m"),
        rule(DeviceKind::Char, Some(5), Some(0), "rwm"), // tty
        rule(DeviceKind::Char, Some(5), Some(2), "rwm"), // ptmx
        rule(DeviceKind::Char, Some(136), None, "rwm"),  // pts
    ];
    // null, zero, full, random, urandom
    rules.extend([3, 5, 7, 8, 9].map(|minor| rule(DeviceKind::Char, Some(1), Some(minor), "rwm")));
    rules
}

/// Whether the last of `rules` allows everything, so that no program is needed.
pub fn allows_everything(rules: &[DeviceRule]) -> bool {
    rules.last().is_some_and(|rule| {
        rule.allow
            && rule.kind.is_none()
            && rule.major.is_none()
            && rule.minor.is_none()
            && rule.read
            && rule.write
            && rule.mknod
    })
}

/// The program for `rules`, in which later ones win.
pub fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | kind), major, minor }
    let mut program = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        op(MOVE_REGISTER, UNDECIDED, KIND, 0, 0),
        op(SHIFT_RIGHT, UNDECIDED, 0, 0, 16),
        op(AND, KIND, 0, 0, 0xffff),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
    }
    program.extend([op(MOVE, RESULT, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

fn block(rule: &DeviceRule) -> Vec<Instruction> {
    let mut access = 0;
    for (set, bit) in [
        (rule.read, BPF_DEVCG_ACC_READ),
        (rule.write, BPF_DEVCG_ACC_WRITE),
        (rule.mknod, BPF_DEVCG_ACC_MKNOD),
    ] {
        access |= if set { bit } else { 0 };
    }
    let kind = match rule.kind {
        Some(DeviceKind::Char) => Some(BPF_DEVCG_DEV_CHAR),
        Some(DeviceKind::Block) => Some(BPF_DEVCG_DEV_BLOCK),
        Some(DeviceKind::Fifo) => return Vec::new(), // No device: never asked for.
        None => None,
    };
    let decide = if rule.allow {
        vec![
            op(AND, UNDECIDED, 0, 0, !access),
            op(JUMP_IF_NOT_EQUAL, UNDECIDED, 0, 2, 0),
            op(MOVE, RESULT, 0, 0, 1),
            op(EXIT, 0, 0, 0, 0),
        ]
    } else {
        vec![
            op(MOVE_REGISTER, SCRATCH, UNDECIDED, 0, 0),
            op(AND, SCRATCH, 0, 0, access),
            op(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0),
            op(MOVE, RESULT, 0, 0, 0),
            op(EXIT, 0, 0, 0, 0),
        ]
    };
    // The compared fields that the rule states; a mismatch jumps past the rest of it.
    let tests: Vec<_> = [
        (KIND, kind),
        (MAJOR, rule.major.map(|major| major as i32)),
        (MINOR, rule.minor.map(|minor| minor as i32)),
    ]
    .into_iter()
    .filter_map(|(register, value)| Some((register, value?)))
    .collect();
    let mut block = Vec::with_capacity(tests.len() + decide.len());
    for (index, (register, value)) in tests.iter().enumerate() {
        let skip = tests.len() - index - 1 + decide.len();
        block.push(op(JUMP_IF_NOT_EQUAL, *register, 0, skip as i16, *value));
    }
    block.extend(decide);
    block
}

/// Loads the program for `rules` and attaches it to `cgroup` for as long as that exists.
pub fn attach(cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    struct AttachAttr {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let program = load(&program(rules))?;
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is as long as stated and holds no pointers.
    sys::check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<AttachAttr>())
    })
    .map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;

    #[repr(C)]
    struct LoadAttr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `attr` is as long as stated; the instructions and the license that it
    // points to outlive the call.
    let fd = sys::check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
    })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel's interpreter would return.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i32; 11];
        let mut at = 0;
        loop {
            let now = program[at];
            at += 1;
            let to = usize::from(now.registers & 15);
            let from = usize::from(now.registers >> 4);
            let jump = |taken: bool| if taken { now.offset as usize } else { 0 };
            match now.code {
                LOAD_WORD => registers[to] = context[now.offset as usize / 4],
                AND => registers[to] &= now.immediate,
                SHIFT_RIGHT => registers[to] = (registers[to] as u32 >> now.immediate) as i32,
                MOVE => registers[to] = now.immediate,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_IF_EQUAL => at += jump(registers[to] == now.immediate),
                JUMP_IF_NOT_EQUAL => at += jump(registers[to] != now.immediate),
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The rules' meaning, bit by bit.
    fn model(rules: &[DeviceRule], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        [BPF_DEVCG_ACC_READ, BPF_DEVCG_ACC_WRITE, BPF_DEVCG_ACC_MKNOD]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| {
                let last = rules.iter().rev().find(|rule| {
                    let kind_fits = match rule.kind {
                        None => true,
                        Some(DeviceKind::Char) => kind == BPF_DEVCG_DEV_CHAR,
                        Some(DeviceKind::Block) => kind == BPF_DEVCG_DEV_BLOCK,
                        Some(DeviceKind::Fifo) => false,
                    };
                    let covers = match bit {
                        BPF_DEVCG_ACC_READ => rule.read,
                        BPF_DEVCG_ACC_WRITE => rule.write,
                        _ => rule.mknod,
                    };
                    kind_fits
                        && covers
                        && rule.major.is_none_or(|m| m as i32 == major)
                        && rule.minor.is_none_or(|m| m as i32 == minor)
                });
                last.is_some_and(|rule| rule.allow)
            })
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![
            Just(None),
            Just(Some(DeviceKind::Char)),
            Just(Some(DeviceKind::Block)),
            Just(Some(DeviceKind::Fifo))
        ];
        let number = || prop_oneof![Just(None), (0..3_u32).prop_map(Some)];
        (any::<[bool; 4]>(), kind, number(), number()).prop_map(
            |([allow, read, write, mknod], kind, major, minor)| DeviceRule {
                allow,
                kind,
                major,
                minor,
                read,
                write,
                mknod,
            },
        )
    }

    proptest! {
        #[test]
        fn the_program_means_the_rules(
            rules in proptest::collection::vec(rule(), 0..8),
            kind in 1..3_i32,
            access in 1..8_i32,
            major in 0..3_i32,
            minor in 0..3_i32,
        ) {
            prop_assert_eq!(
                run(&program(&rules), kind, access, major, minor),
                model(&rules, kind, access, major, minor)
            );
        }
    }

    #[test]
    fn by_default_null_works_and_a_disk_does_not() {
        let program = program(&default_rules());
        let read_write = BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE;
        assert!(run(&program, BPF_DEVCG_DEV_CHAR, read_write, 1, 3));
        assert!(run(&program, BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_ACC_MKNOD, 254, 0));
        assert!(!run(&program, BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_ACC_READ, 254, 0));
        assert!(!run(&program, BPF_DEVCG_DEV_CHAR, read_write, 1, 1), "/dev/mem");
    }

    #[test]
    fn a_privileged_container_needs_no_program() {
        let all = DeviceRule {
            allow: true,
            kind: None,
            major: None,
            minor: None,
            read: true,
            write: true,
            mknod: true,
        };
        assert!(allows_everything(std::slice::from_ref(&all)));
        assert!(!allows_everything(&[all.clone(), DeviceRule { allow: false, ..all }]));
        assert!(!allows_everything(&[]));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        match load(&program(&default_rules())) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                eprintln!("skipped: this host refuses bpf(2): {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
