//! Filters of system calls: allow lists, at whose edge the process is killed (SIGSYS).
//!
//! A filter finds the call's number by halving. `seccompiler` compares one number after the
//! other; when a filter is installed the kernel runs it for every number there is, to
//! remember which calls are allowed whatever their arguments, and along a chain that takes
//! longer than all calls that the thread then makes.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// The calls that are allowed, and with which arguments.
#[derive(Default)]
pub struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    /// These calls with any arguments.
    pub fn any(&mut self, calls: &[i64]) {
        for &call in calls {
            self.0.insert(call, Vec::new());
        }
    }

    /// This call if all `conditions` hold; as often as called, with any of them.
    pub fn when(&mut self, call: i64, conditions: Vec<Condition>) {
        let rule = SeccompRule::new(conditions).expect("no rule here is without conditions");
        self.0.entry(call).or_default().push(rule);
    }

    /// The program that kills the process at every other call.
    pub fn compile(self) -> Result<BpfProgram, BackendError> {
        let leaves = self
            .0
            .into_iter()
            .map(|(number, chain)| Ok((number, filter(BTreeMap::from([(number, chain)]))?)))
            .collect::<Result<Vec<_>, BackendError>>()?;
        let Some((_, first)) = leaves.first() else { return filter(BTreeMap::new()) };
        let mut program = first[..HEAD].to_vec();
        append(&mut program, &leaves);
        Ok(program)
    }
}

/// The argument has this value. All the numbers compared are ints in the kernel's eyes.
pub fn equals(argument: u8, value: u32) -> Condition {
    condition(argument, Length::Dword, Compare::Eq, value.into())
}

/// The bits of `mask` have this `value`.
pub fn bits(argument: u8, mask: u32, value: u32) -> Condition {
    condition(argument, Length::Dword, Compare::MaskedEq(mask.into()), value.into())
}

/// No pointer.
pub fn null(argument: u8) -> Condition {
    condition(argument, Length::Qword, Compare::Eq, 0)
}

fn condition(argument: u8, length: Length, compare: Compare, value: u64) -> Condition {
    Condition::new(argument, length, compare, value).expect("a system call has the argument")
}

/// The instructions that every program of `seccompiler` begins with: load and compare the
/// architecture, kill, load the number.
const HEAD: usize = 4;

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, BackendError> {
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)?.try_into()
}

/// Appends what decides among `leaves`, which are in the order of their numbers: with the
/// call's number in the accumulator, and ending in a verdict on every way.
fn append(program: &mut BpfProgram, leaves: &[(i64, BpfProgram)]) {
    if let [(_, leaf)] = leaves {
        program.extend_from_slice(&leaf[HEAD..]);
        return;
    }
    let (low, high) = leaves.split_at(leaves.len() / 2);
    let middle = u32::try_from(high[0].0).expect("a system call's number is small");
    let mut below = BpfProgram::new();
    append(&mut below, low);
    // A conditional jump reaches 255 instructions far, this one any.
    program.push(sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
        jt: 0,
        jf: 1,
        k: middle,
    });
    program.push(sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JA) as u16,
        jt: 0,
        jf: 0,
        k: below.len() as u32,
    });
    program.append(&mut below);
    append(program, high);
}
