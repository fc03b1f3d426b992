//! Writes the directory blocks, the inodes and, last of all, the superblock.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::crc32c::crc32c;
use super::data::DataWriter;
use super::inode::{self, Layout};
use super::layout::{self, Plan, Slot};
use super::{BLOCK, BLOCK_BITS, BLOCK_U64, ErofsError, directory};
use crate::tree::{FileData, NodeId, NodeKind, Place, Tail, Tree};

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_OFFSET: usize = 1024;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
/// No block: the chunk is a hole.
const NULL_ADDRESS: u32 = u32::MAX;

/// What a finished image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageInfo {
    pub(crate) inodes: u64,
    pub(crate) bytes: u64,
}

/// Completes the image that `data` began. `image` is not synced.
pub(crate) fn write_image(
    image: &File,
    data: DataWriter<'_>,
    tree: &Tree,
    uuid: [u8; 16],
) -> Result<ImageInfo, ErofsError> {
    let (directory_block, tails) = data.finish()?;
    let plan = layout::plan(tree, directory_block)?;
    let mut out = Output::new(image, u64::from(directory_block) * BLOCK_U64);
    write_directories(&mut out, tree, &plan)?;
    write_inodes(&mut out, tree, &plan, tails)?;
    out.pad_to(u64::from(plan.blocks) * BLOCK_U64)?;
    out.flush()?;
    let block = superblock(&plan, uuid);
    image.write_all_at(&block, 0).map_err(ErofsError::Write)?;
    let bytes = u64::from(plan.blocks) * BLOCK_U64;
    Ok(ImageInfo { inodes: plan.slots.len() as u64, bytes })
}

/// The blocks that do not lie beside their inodes, in the order that the plan gave out.
fn write_directories(out: &mut Output<'_>, tree: &Tree, plan: &Plan) -> Result<(), ErofsError> {
    for slot in &plan.slots {
        match &tree.node(slot.id).kind {
            NodeKind::Directory(_) => {
                let inline = slot.numbers.layout == Layout::FlatInline;
                encode_directory(tree, plan, slot, |block, last| {
                    if last && inline {
                        return Ok(());
                    }
                    out.write(block)?;
                    out.align()
                })?;
            }
            NodeKind::Symlink(target) if slot.numbers.layout == Layout::FlatPlain => {
                out.write(target)?;
                out.align()?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// `emit` gets each block, and whether it is the last.
fn encode_directory(
    tree: &Tree,
    plan: &Plan,
    slot: &Slot,
    mut emit: impl FnMut(&[u8], bool) -> Result<(), ErofsError>,
) -> Result<(), ErofsError> {
    let NodeKind::Directory(children) = &tree.node(slot.id).kind else {
        unreachable!("callers pass directories");
    };
    let parent = plan.parents[&slot.id];
    let describe = |id: NodeId| {
        let nid = plan.nids[id.index()].expect("a named node is in the plan");
        (nid, inode::file_type(&tree.node(id).kind))
    };
    let mut left = slot.numbers.size.div_ceil(BLOCK_U64);
    directory::encode(directory::entries(children, slot.id, parent), describe, |block| {
        left -= 1;
        emit(block, left == 0)
    })
}

fn write_inodes(
    out: &mut Output<'_>,
    tree: &Tree,
    plan: &Plan,
    tails: File,
) -> Result<(), ErofsError> {
    let meta = u64::from(plan.meta_block) * BLOCK_U64;
    let mut tails = Tails { reader: BufReader::with_capacity(1 << 18, tails), position: None };
    let mut bytes = Vec::new();
    for slot in &plan.slots {
        let node = tree.node(slot.id);
        out.pad_to(meta + slot.position)?;
        bytes.clear();
        inode::encode(node, &slot.numbers, slot.compact, &mut bytes);
        match &node.kind {
            NodeKind::Directory(_) if slot.numbers.layout == Layout::FlatInline => {
                encode_directory(tree, plan, slot, |block, last| {
                    if last {
                        bytes.extend_from_slice(block);
                    }
                    Ok(())
                })?;
            }
            NodeKind::Symlink(target) if slot.numbers.layout == Layout::FlatInline => {
                bytes.extend_from_slice(target);
            }
            NodeKind::File(FileData { place: Place::Flat { tail: Some(tail), .. }, .. }) => {
                tails.read(*tail, &mut bytes)?;
            }
            NodeKind::File(data) => encode_chunk_map(data, &mut bytes),
            _ => {}
        }
        out.write(&bytes)?;
    }
    Ok(())
}

/// The block of each chunk; flat files have no map.
fn encode_chunk_map(data: &FileData, out: &mut Vec<u8>) {
    let Place::Chunked { first_block, chunk_bits, holes } = &data.place else { return };
    let blocks_per_chunk = 1_u32 << (chunk_bits - BLOCK_BITS);
    let mut next_block = *first_block;
    let mut holes = holes.iter().peekable();
    for chunk in 0..layout::chunk_count(data.size, *chunk_bits) as u32 {
        while holes.next_if(|(first, count)| first + count <= chunk).is_some() {}
        let hole = holes.peek().is_some_and(|(first, _)| *first <= chunk);
        let address = if hole { NULL_ADDRESS } else { next_block };
        out.extend(address.to_le_bytes());
        if !hole {
            next_block += blocks_per_chunk;
        }
    }
}

fn superblock(plan: &Plan, uuid: [u8; 16]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |offset: usize, bytes: &[u8]| {
        let start = SUPERBLOCK_OFFSET + offset;
        block[start..start + bytes.len()].copy_from_slice(bytes);
    };
    let root = plan.nids[NodeId::ROOT.index()].expect("the root is in the plan");
    let root = u16::try_from(root).expect("the root is the first inode");
    put(0x00, &MAGIC.to_le_bytes());
    put(0x08, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
    put(0x0c, &[BLOCK_BITS]);
    put(0x0e, &root.to_le_bytes());
    put(0x10, &(plan.slots.len() as u64).to_le_bytes());
    put(0x18, &plan.time.seconds.to_le_bytes());
    put(0x20, &plan.time.nanoseconds.to_le_bytes());
    put(0x24, &plan.blocks.to_le_bytes());
    put(0x28, &plan.meta_block.to_le_bytes());
    put(0x30, &uuid);
    let incompat = if plan.chunked { INCOMPAT_CHUNKED_FILE } else { 0 };
    put(0x50, &incompat.to_le_bytes());
    let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
    block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// Reads tails, which come in the order in which they were collected.
struct Tails {
    reader: BufReader<File>,
    position: Option<u64>,
}

impl Tails {
    fn read(&mut self, tail: Tail, out: &mut Vec<u8>) -> Result<(), ErofsError> {
        let start = out.len();
        out.resize(start + usize::from(tail.length), 0);
        let moved = match self.position {
            None => self.reader.seek(SeekFrom::Start(tail.offset)).map(drop),
            // A gap is the tail of a file that was replaced.
            Some(position) => self.reader.seek_relative(tail.offset as i64 - position as i64),
        };
        moved
            .and_then(|()| self.reader.read_exact(&mut out[start..]))
            .map_err(ErofsError::ReadBack)?;
        self.position = Some(tail.offset + u64::from(tail.length));
        Ok(())
    }
}

/// Appends to the image from a position on.
struct Output<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    flushed: u64,
}

impl<'f> Output<'f> {
    fn new(file: &'f File, position: u64) -> Output<'f> {
        Output { file, buffer: Vec::new(), flushed: position }
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.buffer.write_all(bytes).map_err(ErofsError::Write)?;
        if self.buffer.len() >= 1 << 20 { self.flush() } else { Ok(()) }
    }

    /// Zeros up to `position`, which lies not much more than a block ahead.
    fn pad_to(&mut self, position: u64) -> Result<(), ErofsError> {
        let gap = (position - self.position()) as usize;
        self.buffer.resize(self.buffer.len() + gap, 0);
        self.write(&[])
    }

    fn align(&mut self) -> Result<(), ErofsError> {
        self.pad_to(self.position().next_multiple_of(BLOCK_U64))
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        self.file.write_all_at(&self.buffer, self.flushed).map_err(ErofsError::Write)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
