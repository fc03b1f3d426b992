//! The runtime-spec's seccomp profile into one BPF program.
//!
//! One program is enough, whatever actions the rules have: the system call's number is
//! looked up in a binary tree of ranges, and each leaf returns an action or tests
//! arguments. The rules mean what they mean to runc:
//!
//! - a rule without arguments decides its call; rules with arguments are tried in order;
//! - several conditions on one argument are alternatives, on different ones all must hold;
//! - names that this kernel does not know are skipped;
//! - calls newer than any that the profile names get `ENOSYS` rather than the default
//!   error, so that libraries fall back.

mod bpf;

use std::collections::{BTreeMap, HashMap};

use caisson_agent_protocol::plan::SeccompProgram;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall, Spec,
};
use syscalls::Sysno;

use super::{PlanError, invalid, unsupported};
use bpf::{Condition, Leaf, Range, Rule};

const FIELD: &str = "linux.seccomp";

const RET_ERRNO: u32 = 0x0005_0000;
const RET_DATA: u32 = 0xffff;

/// `SECCOMP_FILTER_FLAG_*`.
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// Numbers from here on are of the x32 ABI, which the guest's kernel does not have.
const FIRST_X32: u32 = 0x4000_0000;

/// The filters of the container's processes: none or one.
pub(super) fn of(spec: &Spec) -> Result<Vec<SeccompProgram>, PlanError> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.map(compile).transpose().map(|program| program.into_iter().collect())
}

fn compile(profile: &LinuxSeccomp) -> Result<SeccompProgram, PlanError> {
    if profile.listener_path().is_some() {
        let problem = "a notification listener on the host cannot serve processes in a VM";
        return Err(unsupported(format!("{FIELD}.listenerPath"), problem));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut calls = Calls::new(default);
    for rule in profile.syscalls().iter().flatten() {
        calls.add(rule)?;
    }
    let program = bpf::program(calls.into_ranges(profile.default_action()));
    let instructions = program.map_err(|length| {
        invalid(FIELD, format!("the profile needs {length} instructions, over the kernel's limit"))
    })?;
    Ok(SeccompProgram { flags: flags(profile)?, instructions })
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, PlanError> {
    let Some(flags) = profile.flags() else { return Ok(FLAG_SPEC_ALLOW) };
    flags.iter().try_fold(0, |all, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => Ok(all | FLAG_LOG),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Ok(all | FLAG_SPEC_ALLOW),
        // The process has one thread when its filter is installed.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Ok(all),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            let problem = "only means something to a notification listener";
            Err(unsupported(format!("{FIELD}.flags {flag}"), problem))
        }
    })
}

/// The kernel's number for an action.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, PlanError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        let problem = "a notification listener on the host cannot serve processes in a VM";
        return Err(unsupported(format!("{FIELD} {action}"), problem));
    }
    if let Some(errno) = errno.filter(|&errno| errno > RET_DATA) {
        return Err(invalid(format!("{FIELD}.errnoRet"), format!("{errno} is above {RET_DATA}")));
    }
    Ok(action.as_u32(errno))
}

/// What the profile says of each system call.
struct Calls {
    default: u32,
    numbers: HashMap<&'static str, u32>,
    by_number: BTreeMap<u32, Call>,
}

#[derive(Default)]
struct Call {
    unconditional: Option<u32>,
    rules: Vec<Rule>,
}

impl Calls {
    fn new(default: u32) -> Self {
        let numbers = Sysno::iter().map(|call| (call.name(), call.id() as u32)).collect();
        Self { default, numbers, by_number: BTreeMap::new() }
    }

    fn add(&mut self, syscall: &LinuxSyscall) -> Result<(), PlanError> {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let alternatives = alternatives(syscall.args().as_deref().unwrap_or_default())?;
        for name in syscall.names() {
            let Some(&number) = self.numbers.get(name.as_str()) else { continue };
            let call = self.by_number.entry(number).or_default();
            if !alternatives.is_empty() {
                let rules = alternatives
                    .iter()
                    .map(|conditions| Rule { conditions: conditions.clone(), action });
                call.rules.extend(rules);
                continue;
            }
            // Of several without arguments libseccomp keeps the first.
            call.unconditional.get_or_insert(action);
        }
        Ok(())
    }

    /// The whole number space as adjoining ranges of equal treatment.
    fn into_ranges(self, default_action: LinuxSeccompAction) -> Vec<Range> {
        // An unknown new call is only "not there" where the profile would refuse it.
        let refuses = !matches!(
            default_action,
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        );
        let newest = self.by_number.keys().next_back().copied();
        let unknown = match newest {
            Some(newest) if refuses => Some(newest + 1),
            _ => None,
        };
        let nosys = Leaf::Return(RET_ERRNO | libc::ENOSYS as u32);
        let mut ranges = Vec::new();
        let mut push = |first: u32, leaf: Leaf| {
            // Neighbours with one verdict are one range.
            if !matches!(ranges.last(), Some(Range { leaf: last, .. }) if *last == leaf) {
                ranges.push(Range { first, leaf });
            }
        };
        let mut next = 0;
        for (number, call) in self.by_number {
            if number > next {
                push(next, Leaf::Return(self.default));
            }
            push(number, call.leaf(self.default));
            next = number + 1;
        }
        match unknown {
            Some(first) => push(first, nosys.clone()),
            None => push(next, Leaf::Return(self.default)),
        }
        push(FIRST_X32, nosys);
        ranges
    }
}

impl Call {
    fn leaf(self, default: u32) -> Leaf {
        match self.unconditional {
            Some(action) => Leaf::Return(action),
            None => Leaf::Test { rules: self.rules, otherwise: default },
        }
    }
}

/// The conjunctions of which one must hold; empty if there are no conditions.
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, PlanError> {
    let conditions = args.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let repeated = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
    Ok(match () {
        () if conditions.is_empty() => vec![],
        () if repeated => conditions.into_iter().map(|condition| vec![condition]).collect(),
        () => vec![conditions],
    })
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, PlanError> {
    let argument = u8::try_from(arg.index()).ok().filter(|&index| index < 6).ok_or_else(|| {
        invalid(format!("{FIELD}.syscalls.args"), format!("{} is no argument's index", arg.index()))
    })?;
    Ok(Condition {
        argument,
        operator: arg.op(),
        value: arg.value(),
        // Only MASKED_EQ has a second value.
        second: arg.value_two().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests;
