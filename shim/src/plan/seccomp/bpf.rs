//! Classic BPF over `struct seccomp_data`.
//!
//! ```text
//!   load arch; not x86-64: kill
//!   load nr
//!   binary tree over nr ──► leaf: return
//!                      └──► leaf: test arguments, rule by rule; return
//! ```
//!
//! Code is built bottom-up from pieces that each end in a return, so that a piece can be
//! jumped over by its length and never falls through.

use oci_spec::runtime::LinuxSeccompOperator as Operator;

/// (code, jt, jf, k)
pub(super) type Instruction = (u16, u8, u8, u32);

/// `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

/// What happens to the system calls from `first` up to the next range.
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) leaf: Leaf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Return(u32),
    /// The first rule whose conditions all hold decides.
    Test {
        rules: Vec<Rule>,
        otherwise: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
    pub(super) second: u64,
}

/// The program for ranges that begin at 0 and ascend. The error is a length that the
/// kernel does not take.
pub(super) fn program(ranges: Vec<Range>) -> Result<Vec<Instruction>, usize> {
    let mut program = vec![
        (LOAD, 0, 0, ARCH),
        (JUMP_EQ, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, RET_KILL_PROCESS),
        (LOAD, 0, 0, NR),
    ];
    program.extend(tree(&ranges));
    if program.len() > MAX_INSTRUCTIONS { Err(program.len()) } else { Ok(program) }
}

fn tree(ranges: &[Range]) -> Vec<Instruction> {
    if let [range] = ranges {
        return leaf(&range.leaf);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (mut code, high_code) = (Vec::new(), tree(high));
    let low_code = tree(low);
    match u8::try_from(low_code.len()) {
        Ok(over) => code.push((JUMP_GE, over, 0, high[0].first)),
        // A conditional jump reaches 255 instructions, an unconditional one all.
        Err(_) => code.extend([
            (JUMP_GE, 0, 1, high[0].first),
            (JUMP, 0, 0, u32::try_from(low_code.len()).unwrap_or(u32::MAX)),
        ]),
    }
    code.extend(low_code);
    code.extend(high_code);
    code
}

fn leaf(leaf: &Leaf) -> Vec<Instruction> {
    match leaf {
        Leaf::Return(action) => vec![(RETURN, 0, 0, *action)],
        Leaf::Test { rules, otherwise } => {
            let mut code = Vec::new();
            for rule in rules {
                code.extend(test(rule));
            }
            code.push((RETURN, 0, 0, *otherwise));
            code
        }
    }
}

/// Returns the rule's action if all conditions hold; else goes on behind the piece.
fn test(rule: &Rule) -> Vec<Instruction> {
    // From the last condition to the first: each knows how far the rule's end is.
    let mut code = vec![(RETURN, 0, 0, rule.action)];
    for condition in rule.conditions.iter().rev() {
        let rest =
            u8::try_from(code.len()).expect("a rule has at most 6 conditions of 6 instructions");
        let mut piece = compare(condition, rest);
        piece.extend(code);
        code = piece;
    }
    code
}

/// Goes on behind itself if the condition holds, else `rest` instructions further.
fn compare(condition: &Condition, rest: u8) -> Vec<Instruction> {
    let low_offset = ARGS + 8 * u32::from(condition.argument);
    let (load_low, load_high) = ((LOAD, 0, 0, low_offset), (LOAD, 0, 0, low_offset + 4));
    let (low, high) = halves(condition.value);
    // The forms below: the high word decides unless it is equal, then the low word does.
    // Distances: within the piece first, then over what remains of it and of the rule.
    match condition.operator {
        Operator::ScmpCmpEq => {
            vec![load_high, (JUMP_EQ, 0, 2 + rest, high), load_low, (JUMP_EQ, 0, rest, low)]
        }
        Operator::ScmpCmpNe => {
            vec![load_high, (JUMP_EQ, 0, 2, high), load_low, (JUMP_EQ, rest, 0, low)]
        }
        Operator::ScmpCmpGt => vec![
            load_high,
            (JUMP_GT, 3, 0, high),
            (JUMP_EQ, 0, 2 + rest, high),
            load_low,
            (JUMP_GT, 0, rest, low),
        ],
        Operator::ScmpCmpGe => vec![
            load_high,
            (JUMP_GT, 3, 0, high),
            (JUMP_EQ, 0, 2 + rest, high),
            load_low,
            (JUMP_GE, 0, rest, low),
        ],
        Operator::ScmpCmpLt => vec![
            load_high,
            (JUMP_GT, 3 + rest, 0, high),
            (JUMP_EQ, 0, 2, high),
            load_low,
            (JUMP_GE, rest, 0, low),
        ],
        Operator::ScmpCmpLe => vec![
            load_high,
            (JUMP_GT, 3 + rest, 0, high),
            (JUMP_EQ, 0, 2, high),
            load_low,
            (JUMP_GT, rest, 0, low),
        ],
        // `value` is the mask, `second` what the masked argument must be.
        Operator::ScmpCmpMaskedEq => {
            let (second_low, second_high) = halves(condition.second);
            vec![
                load_high,
                (AND, 0, 0, high),
                (JUMP_EQ, 0, 3 + rest, second_high),
                load_low,
                (AND, 0, 0, low),
                (JUMP_EQ, 0, rest, second_low),
            ]
        }
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
