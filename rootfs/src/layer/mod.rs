//! From a layer's tar stream to one EROFS image.
//!
//! ```text
//! tar bytes ─► tar::Reader ─► LayerBuilder ─► Tree + DataWriter ─► erofs::write_image
//! ```
//!
//! The result follows the overlay's conventions: a whiteout is a character device 0:0, an
//! opaque directory has `trusted.overlay.opaque`.

mod builder;
mod path;
mod whiteout;

use std::fs::File;
use std::io::{self, BufReader, Read};

use thiserror::Error;

use self::builder::LayerBuilder;
use crate::digest::Digest;
use crate::erofs::{DataWriter, ErofsError, ImageInfo, write_image};
use crate::limits::Limits;
use crate::tar::{Reader, TarError};
use crate::tree::{Tree, TreeError};
pub(crate) use caisson_archive::name::display;

#[derive(Debug, Error)]
pub(crate) enum LayerError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("entry \"{}\": {reason}", display(.path))]
    Entry { path: Vec<u8>, reason: &'static str },
    #[error("entry \"{}\": a hard link to \"{}\", {reason}", display(.path), display(.target))]
    HardLink { path: Vec<u8>, target: Vec<u8>, reason: &'static str },
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Converted {
    /// The digest of the whole uncompressed stream.
    pub(crate) diff_id: Digest,
    pub(crate) uncompressed_bytes: u64,
    pub(crate) image_bytes: u64,
    /// The root is opaque: nothing below this layer is visible.
    pub(crate) opaque: bool,
}

/// A layer whose entries are all read.
pub(crate) struct Contents<'f> {
    image: &'f File,
    tree: Tree,
    data: DataWriter<'f>,
    /// The root is opaque.
    pub(crate) opaque: bool,
}

/// Reads an uncompressed layer to its end. Its data goes to `image`, an empty file; `tails`
/// is another one, for the time being.
pub(crate) fn read_layer<'f>(
    source: impl Read,
    image: &'f File,
    tails: File,
    limits: &Limits,
) -> Result<Contents<'f>, LayerError> {
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, source), limits.tar());
    let mut builder = LayerBuilder::new(DataWriter::new(image, tails), limits);
    while let Some(entry) = reader.next_entry()? {
        builder.add(entry, &mut reader)?;
    }
    // What follows the archive's end belongs to the diff id all the same.
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
    let (tree, data, opaque) = builder.finish();
    Ok(Contents { image, tree, data, opaque })
}

impl Contents<'_> {
    /// Completes the image.
    pub(crate) fn write(self, uuid: [u8; 16]) -> Result<ImageInfo, ErofsError> {
        write_image(self.image, self.data, &self.tree, uuid)
    }
}

/// A version 8 UUID (RFC 9562: custom) from a digest.
pub(crate) fn uuid_of(digest: &Digest) -> [u8; 16] {
    let mut uuid = digest.prefix16();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests;
