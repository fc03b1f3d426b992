//! The soak: containers made, used and removed for a long time, with random faults, and
//! nothing that grows.
//!
//! ```text
//!   warm up ─► baseline ─► round, round, … ─► compare ─► round, … ─► compare ─► table
//! ```
//!
//! A round is chosen by a random number of the seed and the round's number, so that any
//! round can be repeated by itself.

mod measure;
mod random;
mod rounds;
mod table;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

pub use measure::Measured;
use random::Random;
pub use rounds::Caisson;

/// What is run, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    pub program: PathBuf,
    pub busybox: PathBuf,
    pub root: PathBuf,
    pub state: PathBuf,
    /// It ends at whichever comes first.
    pub rounds: u64,
    pub seconds: u64,
    pub seed: u64,
    /// Compare after this many rounds.
    pub every: u64,
    /// Begin with this round: to repeat one that failed.
    pub first: u64,
}

/// How a soak went.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Flat,
    Failed(Vec<String>),
}

/// Runs the plan where this process is; prints as it goes.
pub fn run(plan: &Plan) -> Verdict {
    let caisson = Caisson::new(plan);
    println!("seed {}, at most {} rounds in {} s", plan.seed, plan.rounds, plan.seconds);
    if let Err(problem) = caisson.prepare() {
        return Verdict::Failed(vec![problem]);
    }
    // Once through every kind: what is made once and kept is no growth.
    for kind in rounds::KINDS {
        if let Err(problem) = (kind.run)(&caisson, &mut Random::new(plan.seed)) {
            return Verdict::Failed(vec![format!("warm-up, {}: {problem}", kind.name)]);
        }
    }
    let baseline = measure::settled(&caisson, None);
    let mut table = table::Table::new(&baseline);
    let start = Instant::now();
    let mut round = plan.first;
    let mut counts = vec![0_u64; rounds::KINDS.len()];
    let mut problems = Vec::new();
    while round < plan.first + plan.rounds && start.elapsed() < Duration::from_secs(plan.seconds) {
        let mut random = Random::new(plan.seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let kind = random.below(rounds::KINDS.len() as u64) as usize;
        counts[kind] += 1;
        if let Err(problem) = (rounds::KINDS[kind].run)(&caisson, &mut random) {
            problems.push(format!("round {round}, {}: {problem}", rounds::KINDS[kind].name));
            caisson.clear();
        }
        round += 1;
        if (round - plan.first).is_multiple_of(plan.every) {
            table.add(round, &measure::settled(&caisson, Some(&baseline)));
        }
    }
    let last = measure::settled(&caisson, Some(&baseline));
    table.add(round, &last);
    println!("\n{table}");
    for (kind, count) in rounds::KINDS.iter().zip(&counts) {
        println!("{count:>6} x {}", kind.name);
    }
    println!(
        "{} rounds in {} s, seed {}",
        round - plan.first,
        start.elapsed().as_secs(),
        plan.seed
    );
    problems.extend(last.growth(&baseline));
    match problems.is_empty() {
        true => Verdict::Flat,
        false => Verdict::Failed(problems),
    }
}
