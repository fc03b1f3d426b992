//! On-disk inodes: compact (32 bytes) where the numbers fit, extended (64 bytes) otherwise.

use super::xattr;
use crate::tar::Timestamp;
use crate::tree::{Metadata, Node, NodeKind};

pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;
/// Inodes begin at multiples of this; a nid counts them.
pub(super) const SLOT: u64 = 32;

/// `i_format`'s data layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    FlatPlain = 0,
    FlatInline = 2,
    ChunkBased = 4,
}

/// What an inode needs beside its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) layout: Layout,
    pub(super) size: u64,
    /// `i_u`: first block, device number or chunk format.
    pub(super) union: u32,
    pub(super) ino: u32,
    pub(super) nlink: u32,
}

/// Whether the inode fits the compact form, whose time is the superblock's.
pub(super) fn is_compact(metadata: &Metadata, size: u64, nlink: u32, time: Timestamp) -> bool {
    let fits = |value: u32| u16::try_from(value).is_ok();
    metadata.mtime == time
        && fits(metadata.uid)
        && fits(metadata.gid)
        && fits(nlink)
        && u32::try_from(size).is_ok()
}

/// Appends the inode and its extended attributes.
pub(super) fn encode(node: &Node, numbers: &Numbers, compact: bool, out: &mut Vec<u8>) {
    let metadata = &node.metadata;
    let format = (numbers.layout as u16) << 1 | u16::from(!compact);
    let mode = type_bits(&node.kind) | metadata.mode;
    out.extend(format.to_le_bytes());
    out.extend(xattr::icount(&metadata.xattrs).to_le_bytes());
    out.extend(mode.to_le_bytes());
    if compact {
        // is_compact has checked that nothing is cut off.
        out.extend((numbers.nlink as u16).to_le_bytes());
        out.extend((numbers.size as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(numbers.union.to_le_bytes());
        out.extend(numbers.ino.to_le_bytes());
        out.extend((metadata.uid as u16).to_le_bytes());
        out.extend((metadata.gid as u16).to_le_bytes());
        out.extend([0; 4]);
    } else {
        out.extend([0; 2]);
        out.extend(numbers.size.to_le_bytes());
        out.extend(numbers.union.to_le_bytes());
        out.extend(numbers.ino.to_le_bytes());
        out.extend(metadata.uid.to_le_bytes());
        out.extend(metadata.gid.to_le_bytes());
        out.extend(metadata.mtime.seconds.to_le_bytes());
        out.extend(metadata.mtime.nanoseconds.to_le_bytes());
        out.extend(numbers.nlink.to_le_bytes());
        out.extend([0; 16]);
    }
    xattr::encode(&metadata.xattrs, out);
}

fn type_bits(kind: &NodeKind) -> u16 {
    match kind {
        NodeKind::Fifo => 0o010000,
        NodeKind::CharDevice { .. } => 0o020000,
        NodeKind::Directory(_) => 0o040000,
        NodeKind::BlockDevice { .. } => 0o060000,
        NodeKind::File(_) => 0o100000,
        NodeKind::Symlink(_) => 0o120000,
        NodeKind::Socket => 0o140000,
    }
}

/// The type in directory entries (`FT_*` of the kernel's fs_types.h).
pub(super) fn file_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::File(_) => 1,
        NodeKind::Directory(_) => 2,
        NodeKind::CharDevice { .. } => 3,
        NodeKind::BlockDevice { .. } => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
        NodeKind::Symlink(_) => 7,
    }
}

/// The kernel's `new_encode_dev`.
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_as_the_kernel_encodes_them() {
        assert_eq!(encode_device(1, 3), 0x103);
        assert_eq!(encode_device(0xfff, 0xf_ffff), 0xffff_ffff);
        assert_eq!(encode_device(8, 0x100), 0x10_0800);
        assert_eq!(encode_device(0, 0), 0);
    }
}
