//! `cargo xtask soak`: the soak, here where KVM runs guests, else in the machine.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

use caisson_tests::{
    runs_guests,
    soak::{self, Plan, Verdict},
};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// The staged `caisson`
    #[arg(long)]
    caisson: PathBuf,
    /// The busybox image
    #[arg(long)]
    busybox: PathBuf,
    /// Where store and state go
    #[arg(long)]
    directory: PathBuf,
    /// Stop after so many rounds
    #[arg(long, default_value_t = 1000)]
    rounds: u64,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 24 * 3600)]
    seconds: u64,
    /// Repeat the random choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Begin with this round
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Compare with the beginning after so many rounds
    #[arg(long, default_value_t = 50)]
    every: u64,
    /// Run right here
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let seed = *arguments.seed.get_or_insert_with(clock);
    match if arguments.inside || runs_guests() {
        here(&arguments, seed)
    } else {
        in_machine(&arguments, seed)
    } {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// A seed that no other run has.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn here(arguments: &Arguments, seed: u64) -> Result<(), String> {
    let plan = Plan {
        program: arguments.caisson.clone(),
        busybox: arguments.busybox.clone(),
        root: arguments.directory.join("root"),
        state: arguments.directory.join("state"),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        every: arguments.every.max(1),
        seed,
        first: arguments.first,
    };
    match soak::run(&plan) {
        Verdict::Flat => Ok(()),
        Verdict::Failed(problems) => Err(format!(
            "the soak has failed:\n  {}\nrepeat it: cargo xtask soak --seed {seed} --first ROUND --rounds 1",
            problems.join("\n  ")
        )),
    }
}

fn in_machine(arguments: &Arguments, seed: u64) -> Result<(), String> {
    fs::create_dir_all(&arguments.directory).map_err(|error| error.to_string())?;
    let machine = |words: &[&str]| {
        let mut caisson = Command::new(&arguments.caisson);
        caisson.arg("--root").arg(arguments.directory.join("root"));
        caisson.arg("--state").arg(arguments.directory.join("state"));
        caisson.arg("machine").args(words);
        caisson
    };
    succeed(&mut machine(&["start"]))?;
    let mut inside = machine(&["exec", "--"]);
    inside.arg(env::current_exe().map_err(|error| error.to_string())?);
    inside.arg("--inside").arg("--caisson").arg(&arguments.caisson);
    inside.arg("--busybox").arg(&arguments.busybox).arg("--directory").arg(&arguments.directory);
    for (option, value) in [
        ("--rounds", arguments.rounds),
        ("--seconds", arguments.seconds),
        ("--seed", seed),
        ("--first", arguments.first),
        ("--every", arguments.every),
    ] {
        inside.arg(option).arg(value.to_string());
    }
    let soaked = succeed(&mut inside);
    let stopped = succeed(&mut machine(&["stop"]));
    soaked.and(stopped)
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("start {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}
