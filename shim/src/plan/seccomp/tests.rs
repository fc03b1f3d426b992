//! What compiled profiles decide, by running them.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const EPERM: u32 = RET_ERRNO | 1;
const ENOSYS: u32 = RET_ERRNO | 38;

fn compiled(profile: serde_json::Value) -> Result<SeccompProgram, PlanError> {
    compile(&serde_json::from_value(profile).unwrap())
}

/// Classic BPF as the kernel runs it, as far as these programs use it.
fn run(program: &SeccompProgram, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut accumulator, mut counter) = (0_u32, 0_usize);
    loop {
        let (code, jt, jf, k) = program.instructions[counter];
        counter += 1;
        let condition = match code {
            0x20 => {
                let at = k as usize;
                accumulator = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x06 => return k,
            0x05 => {
                counter += k as usize;
                continue;
            }
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            other => panic!("unknown instruction {other:#x}"),
        };
        counter += usize::from(if condition { jt } else { jf });
    }
}

fn call(program: &SeccompProgram, name: &str, args: &[u64]) -> u32 {
    let nr = Sysno::iter().find(|call| call.name() == name).unwrap().id() as u32;
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(program, X86_64, nr, all)
}

/// Docker's default profile in miniature.
fn docker_like() -> SeccompProgram {
    compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["read", "write", "openat", "close", "exit_group", "no_such_call", "openat2"],
              "action": "SCMP_ACT_ALLOW" },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }] },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_EQ" }] },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
        ],
    }))
    .unwrap()
}

#[test]
fn a_profile_decides_as_it_reads() {
    let program = docker_like();
    for (name, args, expected) in [
        ("read", &[][..], ALLOW),
        ("exit_group", &[], ALLOW),
        ("mount", &[], EPERM),
        ("personality", &[0], ALLOW),
        ("personality", &[0xffff_ffff], ALLOW),
        ("personality", &[8], EPERM),
        ("personality", &[1 << 32], EPERM),
        ("clone", &[0x11], ALLOW),
        ("clone", &[0x1000_0000], EPERM),
        ("clone3", &[], ENOSYS),
        ("socket", &[2], ALLOW),
        ("socket", &[40], EPERM),
    ] {
        assert_eq!(call(&program, name, args), expected, "{name} {args:?}");
    }
    assert_eq!(program.flags, FLAG_SPEC_ALLOW);
}

#[test]
fn other_architectures_and_unheard_of_calls_do_not_slip_through() {
    let program = docker_like();
    assert_eq!(run(&program, I386, 3, [0; 6]), KILL_PROCESS);
    // openat2 is the newest that the profile names.
    let newest = Sysno::openat2.id() as u32;
    assert_eq!(run(&program, X86_64, newest, [0; 6]), ALLOW);
    assert_eq!(run(&program, X86_64, newest + 1, [0; 6]), ENOSYS);
    // x32's read.
    assert_eq!(run(&program, X86_64, FIRST_X32, [0; 6]), ENOSYS);
    assert_eq!(run(&program, X86_64, u32::MAX, [0; 6]), ENOSYS);
}

#[test]
fn a_profile_that_allows_by_default_denies_what_it_names() {
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["reboot"], "action": "SCMP_ACT_TRAP" },
            { "names": ["ptrace"], "action": "SCMP_ACT_LOG" },
        ],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
    }))
    .unwrap();
    assert_eq!(call(&program, "mount", &[]), KILL_PROCESS);
    assert_eq!(call(&program, "reboot", &[]), 0x0003_0000);
    assert_eq!(call(&program, "ptrace", &[]), 0x7ffc_0000);
    assert_eq!(run(&program, X86_64, 9999, [0; 6]), ALLOW);
    assert_eq!(run(&program, X86_64, FIRST_X32 + 1, [0; 6]), ENOSYS);
    assert_eq!(program.flags, FLAG_LOG);
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_all_hold() {
    let arg =
        |index: u32, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let profile = |args: Vec<serde_json::Value>| {
        compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args }],
        }))
        .unwrap()
    };
    let either = profile(vec![arg(1, 5), arg(1, 6)]);
    let verdicts: Vec<_> = [5, 6, 7].map(|value| call(&either, "ioctl", &[0, value])).into();
    assert_eq!(verdicts, [ALLOW, ALLOW, EPERM]);
    let both = profile(vec![arg(0, 1), arg(1, 5)]);
    let verdicts: Vec<_> =
        [[1, 5], [1, 6], [0, 5]].map(|values| call(&both, "ioctl", &values)).into();
    assert_eq!(verdicts, [ALLOW, EPERM, EPERM]);
}

#[test]
fn a_rule_without_arguments_decides_whatever_stands_beside_it() {
    let conditional = json!({ "names": ["read"], "action": "SCMP_ACT_KILL",
        "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }] });
    let plain = json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW" });
    for syscalls in [[conditional.clone(), plain.clone()], [plain.clone(), conditional]] {
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls });
        assert_eq!(call(&compiled(profile).unwrap(), "read", &[0]), ALLOW);
    }
    let other = json!({ "names": ["read"], "action": "SCMP_ACT_KILL" });
    let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [plain, other] });
    assert_eq!(call(&compiled(profile).unwrap(), "read", &[0]), ALLOW);
}

#[test]
fn a_profile_over_every_call_fits_and_decides() {
    let names: Vec<_> = Sysno::iter().map(|call| call.name()).collect();
    let odd: Vec<_> = names.iter().step_by(2).collect();
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            { "names": odd, "action": "SCMP_ACT_ALLOW" },
            // Far more code than a conditional jump reaches.
            { "names": names, "action": "SCMP_ACT_LOG",
              "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] },
        ],
    }))
    .unwrap();
    assert!(program.instructions.len() > 512);
    for (at, name) in names.iter().enumerate() {
        let expected = if at % 2 == 0 { ALLOW } else { 0x7ffc_0000 };
        assert_eq!(call(&program, name, &[1]), expected, "{name}");
        let expected = if at % 2 == 0 { ALLOW } else { EPERM };
        assert_eq!(call(&program, name, &[2]), expected, "{name}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let base = || json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [] });
    let with = |field: &str, value: serde_json::Value| {
        let mut profile = base();
        profile[field] = value;
        compiled(profile).unwrap_err().to_string()
    };
    assert!(with("listenerPath", json!("/run/x.sock")).contains("listenerPath"));
    assert!(with("defaultAction", json!("SCMP_ACT_NOTIFY")).contains("SCMP_ACT_NOTIFY"));
    assert!(with("defaultErrnoRet", json!(70_000)).contains("70000"));
    let sixth = json!([{ "names": ["read"], "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }]);
    assert!(with("syscalls", sixth).contains("6 is no argument"));
    let many: Vec<_> = (0..2000)
        .map(|value| {
            json!({ "names": ["read"], "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
        })
        .collect();
    assert!(with("syscalls", json!(many)).contains("over the kernel's limit"));
    for unknown in ["SCMP_ACT_PARDON", "allow"] {
        let profile = json!({ "defaultAction": unknown });
        assert!(serde_json::from_value::<LinuxSeccomp>(profile).is_err());
    }
}

/// Whether (argument, value, second value) match.
type Holds = fn(u64, u64, u64) -> bool;

fn operators() -> impl Strategy<Value = (&'static str, Holds)> {
    prop_oneof![
        Just(("SCMP_CMP_NE", (|arg, value, _| arg != value) as Holds)),
        Just(("SCMP_CMP_LT", (|arg, value, _| arg < value) as _)),
        Just(("SCMP_CMP_LE", (|arg, value, _| arg <= value) as _)),
        Just(("SCMP_CMP_EQ", (|arg, value, _| arg == value) as _)),
        Just(("SCMP_CMP_GE", (|arg, value, _| arg >= value) as _)),
        Just(("SCMP_CMP_GT", (|arg, value, _| arg > value) as _)),
        Just(("SCMP_CMP_MASKED_EQ", (|arg, mask, second| arg & mask == second) as _)),
    ]
}

/// Words whose halves are often equal, so that each branch is taken.
fn word() -> impl Strategy<Value = u64> {
    let half =
        || prop_oneof![Just(0_u64), Just(1), Just(2), Just(0xffff_ffff), 0..=0xffff_ffff_u64];
    (half(), half()).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn comparisons_are_those_of_64_bit_numbers(
        (operator, holds) in operators(),
        (arg, value, second) in (word(), word(), word()),
        (other_arg, other) in (word(), word()),
    ) {
        let program = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 2, "value": value, "valueTwo": second, "op": operator },
                { "index": 5, "value": other, "op": "SCMP_CMP_GE" },
            ] }],
        })).unwrap();
        let expected = if holds(arg, value, second) && other_arg >= other { ALLOW } else { EPERM };
        prop_assert_eq!(call(&program, "ioctl", &[0, 0, arg, 0, 0, other_arg]), expected);
    }
}
