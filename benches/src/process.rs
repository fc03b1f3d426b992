//! Running a child to its end, with the CPU time that it and its threads took.

use std::{
    process::{Child, Command},
    time::Instant,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// What a process spent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spent {
    /// User and system time; a vCPU's guest time is part of it. Under `-icount` a second
    /// is 10⁹ instructions.
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
}

/// Runs `command` to a successful end.
pub fn run(command: &mut Command) -> anyhow::Result<Spent> {
    run_by(command, Command::spawn)
}

/// As [`run`], started by `spawn`.
pub fn run_by(
    command: &mut Command,
    spawn: fn(&mut Command) -> std::io::Result<Child>,
) -> anyhow::Result<Spent> {
    let start = Instant::now();
    let child = spawn(command).with_context(|| format!("start {command:?}"))?;
    let (status, cpu_seconds) = wait(&child).with_context(|| format!("wait for {command:?}"))?;
    let wall_seconds = start.elapsed().as_secs_f64();
    ensure!(libc::WIFEXITED(status), "{command:?}: ended by signal {}", libc::WTERMSIG(status));
    let code = libc::WEXITSTATUS(status);
    ensure!(code == 0, "{command:?}: exit code {code}");
    Ok(Spent { cpu_seconds, wall_seconds })
}

fn wait(child: &Child) -> std::io::Result<(i32, f64)> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value to be overwritten.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values; the pid is a child that was not reaped.
    let reaped = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    if reaped < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((status, seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}

/// The middle of the figures (the lower one of two).
pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_no_measurement() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("it failed");
        assert!(error.to_string().contains("exit code 3"), "{error:#}");
        assert!(run(&mut Command::new("true")).is_ok());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![]), None);
    }
}
