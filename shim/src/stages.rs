//! Time stamps of a container's way through the processes, for `benches/boot`.
//!
//! Off, and free of charge, unless `CAISSON_STAGES` names a file.

use std::{fs::OpenOptions, io::Write, path::PathBuf, sync::OnceLock};

/// The environment variable that names the file to append to.
pub const VARIABLE: &str = "CAISSON_STAGES";

/// Appends `{"process", "stage", "usec"}` with the present CLOCK_MONOTONIC.
pub fn stamp(process: &str, stage: &str) {
    stamp_at(process, stage, monotonic_usec());
}

/// As [`stamp`], for a time that was taken elsewhere.
pub fn stamp_at(process: &str, stage: &str, usec: u64) {
    append(&serde_json::json!({ "process": process, "stage": stage, "usec": usec }));
}

/// Appends any object as one line.
pub fn append(value: &serde_json::Value) {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(path) = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) else {
        return;
    };
    // A measurement that cannot be written is missed by the bench, never by the user.
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{value}\n").as_bytes());
    }
}

/// CLOCK_MONOTONIC in microseconds.
pub fn monotonic_usec() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}
