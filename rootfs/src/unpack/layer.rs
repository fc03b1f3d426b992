//! A layer as it comes becomes an EROFS image.

use std::fs::File;
use std::io::{self, Read, Write};

use super::expand::{expand, stalled};
use super::job::Job;
use super::process::Worker;
use super::stream::{Feed, pipe};
use super::{UnpackError, Unpacker};
use crate::digest::{Algorithm, Hasher};
use crate::layer::{Converted, uuid_of};
use crate::limits::Limits;

/// Converts `source`. `image` is an empty file, opened for the confined process alone;
/// `scratch` is another one. `copy` gets the uncompressed bytes.
pub(crate) fn unpack_layer(
    unpacker: &Unpacker,
    source: impl Read,
    algorithm: Algorithm,
    image: File,
    scratch: &File,
    copy: Option<&mut File>,
    limits: &Limits,
) -> Result<Converted, UnpackError> {
    let exchange = |source| UnpackError::Exchange { action: "connect", source };
    let written = image.try_clone().map_err(exchange)?;
    let (input, feed) = pipe().map_err(exchange)?;
    let feed = Feed::new(feed).map_err(exchange)?;
    let job = Job::Layer { limits: limits.clone() };
    let mut worker = Worker::start(unpacker, job, input, image.into(), Some(scratch))?;
    let mut plain = Plain { hasher: Hasher::new(algorithm), bytes: 0, copy, feed: Some(feed) };
    let passed = expand(unpacker, source, limits, limits.layer_bytes, |data| plain.take(data));
    let Plain { hasher, bytes: uncompressed_bytes, feed, .. } = plain;
    if feed.is_none() {
        // It gave up on what it read; that explains why the rest was not passed on, unless
        // there is a cause before it.
        return match passed {
            Err(error) if !matches!(error, UnpackError::Answer) => Err(error),
            _ => Err(worker.finish().err().unwrap_or(UnpackError::Answer)),
        };
    }
    passed?;
    drop(feed);
    let diff_id = hasher.finish();
    worker.identify(uuid_of(&diff_id));
    let report = worker.finish()?;
    let image_bytes = image_bytes(&written, limits)?;
    Ok(Converted { diff_id, uncompressed_bytes, image_bytes, opaque: report.opaque })
}

/// The size of an image that a confined process says it has completed.
pub(super) fn image_bytes(image: &File, limits: &Limits) -> Result<u64, UnpackError> {
    let bytes = image.metadata().map_err(UnpackError::Image)?.len();
    let whole = bytes > 0 && bytes.is_multiple_of(crate::erofs::BLOCK as u64);
    if whole && bytes <= limits.image_bytes { Ok(bytes) } else { Err(UnpackError::Answer) }
}

/// The uncompressed layer: digested, copied, passed on.
struct Plain<'a> {
    hasher: Hasher,
    bytes: u64,
    copy: Option<&'a mut File>,
    /// `None` once the converter takes no more.
    feed: Option<Feed>,
}

impl Plain<'_> {
    fn take(&mut self, data: &[u8]) -> Result<(), UnpackError> {
        let feed = self.feed.as_mut().ok_or(UnpackError::Answer)?;
        self.hasher.update(data);
        self.bytes += data.len() as u64;
        if let Some(copy) = &mut self.copy {
            copy.write_all(data).map_err(UnpackError::Copy)?;
        }
        match feed.write_all(data) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.feed = None;
                Err(UnpackError::Answer)
            }
            result => result.map_err(stalled),
        }
    }
}
