//! A directory of another engine becomes an EROFS image.

use std::fs::File;
use std::os::fd::OwnedFd;

use super::job::Job;
use super::layer::image_bytes;
use super::process::Worker;
use super::{UnpackError, Unpacker};
use crate::convert_tree::TreeStats;
use crate::limits::Limits;

/// Converts `directory` into `image`, an empty file; `scratch` is another one.
pub(crate) fn unpack_tree(
    unpacker: &Unpacker,
    directory: OwnedFd,
    uuid: [u8; 16],
    image: File,
    scratch: &File,
    limits: &Limits,
) -> Result<TreeStats, UnpackError> {
    let exchange = |source| UnpackError::Exchange { action: "connect", source };
    let written = image.try_clone().map_err(exchange)?;
    let job = Job::Tree { limits: limits.clone(), uuid };
    let worker = Worker::start(unpacker, job, directory, image.into(), Some(scratch))?;
    let report = worker.finish()?;
    let image_bytes = image_bytes(&written, limits)?;
    Ok(TreeStats { inodes: report.inodes, file_bytes: report.file_bytes, image_bytes })
}
