//! Lines on standard error. What a guest can trigger goes through a [`GuestLog`], which keeps
//! the lines few however often it is triggered.

use std::{
    fmt,
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

/// Writes a line. One that cannot be written is lost: nobody reads standard error, which
/// must not end a VM.
pub fn line(line: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "caisson-vmm: {line}");
}

/// Writes the 1st, 10th, 100th, … line it is given: at most twenty in the life of a VM,
/// without a clock, and the count of the rest is not lost.
#[derive(Debug)]
pub struct GuestLog {
    /// What the lines are about.
    subject: &'static str,
    count: AtomicU64,
}

impl GuestLog {
    pub const fn new(subject: &'static str) -> Self {
        Self { subject, count: AtomicU64::new(0) }
    }

    /// Writes a line, if its number is a power of ten.
    pub fn write(&self, line: fmt::Arguments) {
        let number = self.count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if is_power_of_ten(number) {
            self::line(format_args!("{}, number {number}: {line}", self.subject));
        }
    }

    /// Lines given so far, written or not.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

fn is_power_of_ten(number: u64) -> bool {
    number != 0 && 10_u64.pow(number.ilog10()) == number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_are_written() {
        let written: Vec<u64> = (0..=100_000).filter(|&number| is_power_of_ten(number)).collect();
        assert_eq!(written, [1, 10, 100, 1_000, 10_000, 100_000]);
        assert!(!is_power_of_ten(u64::MAX));
    }

    #[test]
    fn every_line_is_counted() {
        let log = GuestLog::new("test");
        for _ in 0..25 {
            log.write(format_args!("line"));
        }
        assert_eq!(log.count(), 25);
    }
}
