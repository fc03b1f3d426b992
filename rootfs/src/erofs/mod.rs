//! Writes EROFS images: uncompressed, 4 KiB blocks, what Linux 5.15 and later mount.
//!
//! ```text
//! block 0          superblock (at byte 1024)
//! blocks 1..d      file data, in the order it came
//! blocks d..m      directory blocks
//! blocks m..end    inodes, each with its xattrs and its inline tail or chunk map
//! ```
//!
//! File data is written as it comes, in one pass; names, inodes and the superblock follow
//! when all is known. The same tree and data give the same bytes.
//!
//! Reference: the kernel's `fs/erofs/erofs_fs.h` and the EROFS on-disk documentation.

mod crc32c;
mod data;
mod directory;
mod inode;
mod layout;
mod write;
mod xattr;

use std::io;

use thiserror::Error;

pub(crate) use self::data::{DataWriter, ReadData};
pub(crate) use self::write::{ImageInfo, write_image};
pub(crate) use self::xattr::is_representable;

pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;
const BLOCK_U64: u64 = BLOCK as u64;

#[derive(Debug, Error)]
pub(crate) enum ErofsError {
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
    #[error("cannot read back what was collected for the EROFS image")]
    ReadBack(#[source] io::Error),
    #[error("the EROFS image would be larger than 16 TiB")]
    TooLarge,
}
