//! A filter that finds the system call's number by halving.
//!
//! `seccompiler` compares one number after the other. When a filter is installed the kernel
//! runs it for every number there is, to remember which calls are allowed whatever their
//! arguments; along a chain that takes longer than all calls that the thread then makes.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// The instructions that every program of `seccompiler` begins with: load and compare the
/// architecture, kill, load the number.
const HEAD: usize = 4;

/// Allows the calls of `rules`, those with a rule if one holds, and kills the process at
/// any other.
pub(super) fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, BackendError> {
    let leaves = rules
        .into_iter()
        .map(|(number, chain)| Ok((number, filter(BTreeMap::from([(number, chain)]))?)))
        .collect::<Result<Vec<_>, BackendError>>()?;
    let Some((_, first)) = leaves.first() else { return filter(BTreeMap::new()) };
    let mut program = first[..HEAD].to_vec();
    append(&mut program, &leaves);
    Ok(program)
}

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
