//! Decompressing: a confined process does it, this one counts what goes in and comes out.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::job::Job;
use super::process::Worker;
use super::stream::{Drain, Feed, PATIENCE, pipe};
use super::{UnpackError, Unpacker};
use crate::compress::{Bounds, Compression, HEAD_BYTES};
use crate::limits::Limits;

const BUFFER_BYTES: usize = 1 << 18;

/// Passes `source` to `sink`, decompressed if it is compressed, within the limits and up to
/// `max_bytes`.
pub(crate) fn expand<S>(
    unpacker: &Unpacker,
    mut source: impl Read,
    limits: &Limits,
    max_bytes: u64,
    mut sink: S,
) -> Result<Compression, UnpackError>
where
    S: FnMut(&[u8]) -> Result<(), UnpackError> + Send,
{
    let bounds = Bounds::new(limits, max_bytes);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    while filled < HEAD_BYTES {
        match read(&mut source, &mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    let compression = Compression::detect(&buffer[..filled])?;
    if compression != Compression::None {
        let job = Job::Decompress { compression, window_log: limits.zstd_window_log };
        expand_confined(unpacker, job, source, buffer, filled, bounds, sink)?;
        return Ok(compression);
    }
    let mut total = 0;
    while filled > 0 {
        total += filled as u64;
        bounds.check(total, total)?;
        sink(&buffer[..filled])?;
        filled = read(&mut source, &mut buffer)?;
    }
    Ok(compression)
}

/// `buffer` holds the first `filled` bytes of what `source` continues.
fn expand_confined<S>(
    unpacker: &Unpacker,
    job: Job,
    mut source: impl Read,
    mut buffer: Vec<u8>,
    mut filled: usize,
    bounds: Bounds,
    sink: S,
) -> Result<(), UnpackError>
where
    S: FnMut(&[u8]) -> Result<(), UnpackError> + Send,
{
    let exchange = |source| UnpackError::Exchange { action: "connect", source };
    let (input, feed) = pipe().map_err(exchange)?;
    let (plain, output) = pipe().map_err(exchange)?;
    let feed = Feed::new(feed).map_err(exchange)?;
    let worker = Worker::start(unpacker, job, input, output, None)?;
    let (packed, is_fed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (fed, pumped) = std::thread::scope(|scope| {
        let pump = scope.spawn(|| pump(plain, &packed, &is_fed, bounds, sink));
        let mut feed = feed;
        let fed = loop {
            // Counted first: what comes out must never seem to come from nothing.
            packed.fetch_add(filled as u64, Ordering::Relaxed);
            match feed.write_all(&buffer[..filled]) {
                Ok(()) => {}
                // It has had enough, or has ended: its answer says which.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break Ok(()),
                Err(error) => break Err(stalled(error)),
            }
            match read(&mut source, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => filled = count,
                Err(error) => break Err(error),
            }
        };
        is_fed.store(true, Ordering::Relaxed);
        drop(feed);
        (fed, pump.join())
    });
    // A source that fails and a sink that will not take more explain all the rest.
    fed?;
    pumped.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    worker.finish().map(drop)
}

/// Passes on what comes out.
fn pump<S>(
    plain: OwnedFd,
    packed: &AtomicU64,
    is_fed: &AtomicBool,
    bounds: Bounds,
    mut sink: S,
) -> Result<(), UnpackError>
where
    S: FnMut(&[u8]) -> Result<(), UnpackError>,
{
    let mut plain = Drain { reader: plain, is_fed };
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut unpacked = 0_u64;
    loop {
        let count = match plain.read(&mut buffer).map_err(stalled)? {
            0 => return Ok(()),
            count => count,
        };
        unpacked += count as u64;
        bounds.check(packed.load(Ordering::Relaxed), unpacked)?;
        sink(&buffer[..count])?;
    }
}

fn read(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize, UnpackError> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(UnpackError::Read),
        }
    }
}

pub(super) fn stalled(error: io::Error) -> UnpackError {
    match error.kind() {
        io::ErrorKind::TimedOut => UnpackError::Hung { seconds: PATIENCE.as_secs() },
        _ => UnpackError::Exchange { action: "exchange data with", source: error },
    }
}
