//! The shim's log: lines on stderr, as many as the bound allows.
//!
//! The CLI and containerd's start call point stderr at `<bundle>/shim.log`. A guest can
//! make the shim log, so the whole log is bounded and so is each line.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use log::{LevelFilter, Log, Metadata, Record};

/// The log's name in the bundle.
pub const FILE: &str = "shim.log";

/// The environment variable with the level: `off`, `error`, `warn`, `info`, `debug`,
/// `trace`.
pub const VARIABLE: &str = "CAISSON_LOG";

const MAX_LOG_BYTES: usize = 1 << 20;
const MAX_LINE_BYTES: usize = 4096;

struct Bounded {
    written: AtomicUsize,
    /// containerd's FIFO, beside stderr.
    fifo: OnceLock<File>,
}

static LOGGER: Bounded = Bounded { written: AtomicUsize::new(0), fifo: OnceLock::new() };

/// Installs the logger; `debug` raises the default level from `info`.
pub fn install(debug: bool) {
    let default = if debug { LevelFilter::Debug } else { LevelFilter::Info };
    let level = std::env::var(VARIABLE).ok().and_then(|level| level.parse().ok());
    // Another logger can only be there in a test.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level.unwrap_or(default));
    }
}

/// Points stderr at `<bundle>/shim.log`, and copies each line to containerd's FIFO `log`
/// there if containerd reads it.
pub fn write_into_bundle(bundle: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(bundle.join(FILE))?;
    // SAFETY: both descriptors are open; stderr stays open, as std expects.
    if unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Never waits: not for a reader to come, and not for it to read.
    let fifo =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log"));
    if let Ok(fifo) = fifo
        && fifo.metadata()?.file_type().is_fifo()
    {
        let _ = LOGGER.fifo.set(fifo);
    }
    Ok(())
}

impl Log for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // ttrpc logs each message at trace and each closed connection at error.
        let wanted = self.enabled(record.metadata())
            && (!record.target().starts_with("ttrpc") || log::max_level() == LevelFilter::Trace);
        if !wanted {
            return;
        }
        let line = line(record);
        let before = self.written.fetch_add(line.len(), Ordering::Relaxed);
        if before < MAX_LOG_BYTES {
            // Nobody is left to tell when the log itself cannot be written.
            let _ = io::stderr().write_all(line.as_bytes());
            if let Some(mut fifo) = self.fifo.get() {
                let _ = fifo.write_all(line.as_bytes());
            }
            if before + line.len() >= MAX_LOG_BYTES {
                let _ = io::stderr().write_all(b"the log has reached its limit and ends here\n");
            }
        }
    }

    fn flush(&self) {}
}

fn line(record: &Record<'_>) -> String {
    let mut text = crate::text::inert(record.args().to_string().as_bytes()).replace('\n', "\n  ");
    if text.len() > MAX_LINE_BYTES {
        let end = (0..=MAX_LINE_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    let time = crate::time::rfc3339_nanos(crate::time::now_unix_nanos());
    format!("{time} {:5} {text}\n", record.level())
}
