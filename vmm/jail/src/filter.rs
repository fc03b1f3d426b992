//! Filters of system calls: allow lists, at whose edge the process is killed (SIGSYS).
//!
//! A filter finds the call's number by halving, among ranges that share a verdict.
//! `seccompiler` compares one number after the other; when a filter is installed the kernel
//! translates it, and runs it for every number there is to remember which calls are allowed
//! whatever their arguments. With a long chain both take longer than all calls that the
//! thread then makes.

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
        let mut program = filter(BTreeMap::from([(0, Vec::new())]))?;
        program.truncate(HEAD);
        let mut ranges = vec![(0, vec![KILL])];
        for (number, chain) in self.0 {
            let verdict = match chain.is_empty() {
                true => vec![ALLOW],
                false => filter(BTreeMap::from([(number, chain)]))?[HEAD..].to_vec(),
            };
            let number = u32::try_from(number).expect("a system call's number is small");
            begin(&mut ranges, number, verdict);
            begin(&mut ranges, number + 1, vec![KILL]);
        }
        append(&mut program, &ranges);
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

/// The calls from a number on, up to the next range's, and the instructions that end in a
/// verdict on them.
type Range = (u32, BpfProgram);

/// Lets the last of `ranges` end before `number`, from which on `verdict` holds. It is none of
/// its own if it goes on with the same.
fn begin(ranges: &mut Vec<Range>, number: u32, verdict: BpfProgram) {
    if ranges.last().is_some_and(|(first, _)| *first == number) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, before)| *before != verdict) {
        ranges.push((number, verdict));
    }
}

const ALLOW: sock_filter = end(libc::SECCOMP_RET_ALLOW);
const KILL: sock_filter = end(libc::SECCOMP_RET_KILL_PROCESS);

const fn end(verdict: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: verdict }
}

/// Appends what decides among `ranges`, which are in the order of their numbers: with the
/// call's number in the accumulator, and ending in a verdict on every way.
fn append(program: &mut BpfProgram, ranges: &[Range]) {
    if let [(_, verdict)] = ranges {
        program.extend_from_slice(verdict);
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let mut below = BpfProgram::new();
    append(&mut below, low);
    let from = |jt, jf| sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
        jt,
        jf,
        k: high[0].0,
    };
    // A conditional jump reaches 255 instructions far, an unconditional one any.
    match u8::try_from(below.len()) {
        Ok(distance) => program.push(from(distance, 0)),
        Err(_) => program.extend([
            from(0, 1),
            sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JA) as u16,
                jt: 0,
                jf: 0,
                k: below.len() as u32,
            },
        ]),
    }
    program.append(&mut below);
    append(program, high);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of call `number` whose arguments are zeros.
    fn verdict(program: &[sock_filter], number: u32) -> u32 {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    // The fields of `struct seccomp_data`: number, architecture, others.
                    accumulator =
                        [number, AUDIT_ARCH_X86_64].get(k as usize / 4).copied().unwrap_or(0);
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += branch(accumulator == k);
                }
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    at += branch(accumulator >= k);
                }
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code => panic!("an instruction that no filter here has: {code:#x}"),
            }
        }
    }

    fn allowed(program: &[sock_filter]) -> Vec<u32> {
        let numbers = (0..2000).chain([0x4000_0000, 0x4000_0001, u32::MAX]);
        numbers.filter(|&number| verdict(program, number) == libc::SECCOMP_RET_ALLOW).collect()
    }

    #[test]
    fn neighbours_are_allowed_by_one_range_and_nothing_beside_them() {
        let mut rules = Rules::default();
        rules.any(&[0, 1, 2, 7, 8, 20]);
        let program = rules.compile().unwrap();
        assert_eq!(allowed(&program), [0, 1, 2, 7, 8, 20]);
        // Six ranges, between which five comparisons decide.
        assert_eq!(program.len(), HEAD + 6 + 5);
    }

    #[test]
    fn a_call_whose_arguments_count_is_a_range_of_its_own() {
        let mut rules = Rules::default();
        rules.any(&[3, 5]);
        rules.when(4, vec![equals(1, 7)]);
        rules.when(6, vec![equals(1, 7)]);
        rules.when(6, vec![equals(1, 0)]);
        assert_eq!(allowed(&rules.compile().unwrap()), [3, 5, 6]);
    }

    #[test]
    fn a_filter_longer_than_a_conditional_jump_reaches_decides_the_same() {
        let calls: Vec<u32> = (1..2000).step_by(2).collect();
        let mut rules = Rules::default();
        rules.any(&calls.iter().map(|&call| call.into()).collect::<Vec<_>>());
        let program = rules.compile().unwrap();
        assert!(program.iter().any(|step| u32::from(step.code) == libc::BPF_JMP | libc::BPF_JA));
        assert_eq!(allowed(&program), calls);
    }

    #[test]
    fn without_a_rule_nothing_is_allowed() {
        assert_eq!(allowed(&Rules::default().compile().unwrap()), []);
    }
}
