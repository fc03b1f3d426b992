//! Fuzzing: builds the targets once, runs each for a while, and tells of all in a table. A
//! target that fails leaves the input that made it fail, and the command that repeats it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use crate::{process, workspace};

/// No input takes longer than this, or it counts as a failure.
const INPUT_TIMEOUT_SECONDS: u64 = 10;
/// Nor may a target use more memory.
const MEMORY_LIMIT_MIB: u64 = 2048;

/// Runs the targets of these names, or all.
pub(crate) fn run(names: &[String], seconds: u64) -> anyhow::Result<()> {
    let known = targets(&directory())?;
    let chosen = choose(names, &known)?;
    build(&chosen)?;
    let mut failed = Vec::new();
    let mut table = format!("{:<16} {:>12} {:>9} {:>9}\n", "target", "inputs", "edges", "result");
    for name in &chosen {
        eprintln!("-- {name}");
        let outcome = run_target(name, seconds)?;
        let result = if outcome.passed { "ok" } else { "FAILED" };
        table += &format!("{name:<16} {:>12} {:>9} {result:>9}\n", outcome.inputs, outcome.edges);
        if !outcome.passed {
            eprint!("{}", failure(name, &outcome));
            failed.push(name.as_str());
        }
    }
    eprint!("{table}");
    if !failed.is_empty() {
        bail!("fuzz targets failed: {}", failed.join(", "));
    }
    Ok(())
}

fn directory() -> PathBuf {
    workspace::root().join("fuzz")
}

/// The names of all targets.
fn targets(fuzz: &Path) -> anyhow::Result<BTreeSet<String>> {
    let directory = fuzz.join("targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn choose(names: &[String], known: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    if names.is_empty() {
        return Ok(known.iter().cloned().collect());
    }
    if let Some(unknown) = names.iter().find(|name| !known.contains(*name)) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        bail!("there is no fuzz target {unknown:?}; there are: {}", known.join(", "));
    }
    Ok(names.to_vec())
}

/// In the directory of the targets, where cargo finds their flags.
fn build(names: &[String]) -> anyhow::Result<()> {
    let mut build = process::cargo(["build", "--release"]);
    build.args(names.iter().flat_map(|name| ["--bin", name]));
    build.current_dir(directory()).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    process::run(&mut build)
}

struct Outcome {
    passed: bool,
    inputs: u64,
    edges: u64,
    /// The input that made it fail.
    artifact: Option<PathBuf>,
    log: String,
}

fn run_target(name: &str, seconds: u64) -> anyhow::Result<Outcome> {
    let fuzz = directory();
    let (corpus, artifacts) = (fuzz.join("corpus").join(name), fuzz.join("artifacts").join(name));
    let mut directories = vec![corpus.clone()];
    // What was found earlier and fixed is the best of seeds.
    let seeds = fuzz.join("seeds").join(name);
    if seeds.is_dir() {
        directories.push(seeds);
    }
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    // From the workspace's target directory, whatever CARGO_TARGET_DIR says: the flags of
    // the targets name it.
    let binary = workspace::root().join("target/fuzz/x86_64-unknown-linux-gnu/release").join(name);
    let mut command = Command::new(&binary);
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .args(directories)
        .current_dir(&fuzz)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let output = command.output().with_context(|| format!("start {}", binary.display()))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Outcome { passed: output.status.success(), ..read_log(log) })
}

/// What libFuzzer says of a run.
fn read_log(log: String) -> Outcome {
    let number_after = |line: &str, word: &str| {
        let rest = line.split_once(word)?.1.trim_start();
        rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
    };
    let last = |word: &str| log.lines().rev().find_map(|line| number_after(line, word));
    let written = "Test unit written to ";
    let artifact = log.lines().find_map(|line| line.split_once(written)).map(|(_, path)| path);
    Outcome {
        passed: false,
        inputs: last("stat::number_of_executed_units:").unwrap_or(0),
        edges: last(" cov: ").unwrap_or(0),
        artifact: artifact.map(|path| PathBuf::from(path.trim())),
        log,
    }
}

/// The end of the log, and how to see it again.
fn failure(name: &str, outcome: &Outcome) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = outcome.log.lines().collect();
    let mut text = lines[lines.len().saturating_sub(LINES)..].join("\n");
    text += "\n";
    match &outcome.artifact {
        Some(input) => text += &format!("repeat it with: fuzz/run {name} {}\n", input.display()),
        None => text += &format!("it left no input; run: fuzz/run {name}\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_described() {
        let fuzz = directory();
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let readme = fs::read_to_string(fuzz.join("README.md")).unwrap();
        for name in targets(&fuzz).unwrap() {
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
            assert!(readme.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_known_ones() {
        let known = BTreeSet::from(["block".to_owned(), "queue".to_owned()]);
        let error = choose(&["blocks".to_owned()], &known).unwrap_err().to_string();
        assert_eq!(error, "there is no fuzz target \"blocks\"; there are: block, queue");
        assert_eq!(choose(&[], &known).unwrap(), ["block", "queue"]);
        assert_eq!(choose(&["queue".to_owned()], &known).unwrap(), ["queue"]);
    }

    #[test]
    fn the_log_of_a_failure_names_its_input() {
        let log = "#2\tINITED cov: 190 ft: 191 corp: 1/1b exec/s: 0 rss: 44Mb\n\
                   #99\tNEW    cov: 250 ft: 260 corp: 2/9b\n\
                   thread '<unnamed>' panicked at targets/queue.rs:1:1\n\
                   Test unit written to /fuzz/artifacts/queue/crash-1\n\
                   stat::number_of_executed_units: 120\n";
        let outcome = read_log(log.to_owned());
        assert_eq!((outcome.inputs, outcome.edges), (120, 250));
        let text = failure("queue", &outcome);
        assert!(text.ends_with("repeat it with: fuzz/run queue /fuzz/artifacts/queue/crash-1\n"));
    }
}
