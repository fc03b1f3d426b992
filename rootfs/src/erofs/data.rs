//! File contents on their way into an image.
//!
//! Content is taken in pieces of 64 KiB. Pieces of zeros become holes of the image (chunk
//! based inodes) where whole chunks are zero, and holes of the image file elsewhere. The
//! tail of a small file waits in a second file until its inode's place is known.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::layout::inline_room;
use super::{BLOCK, BLOCK_BITS, BLOCK_U64, ErofsError};
use crate::tar::{Segment, Xattr};
use crate::tree::{FileData, Place, Tail};

const PIECE_BITS: u8 = 16;
const PIECE: usize = 1 << PIECE_BITS;
/// A larger file gets larger chunks, so that its map stays below 256 KiB.
const MAX_CHUNKS: u64 = 1 << 16;
/// Tails up to this length lie beside the inode; a longer one is worth a block.
const MAX_TAIL: u64 = 2048;
/// Zeros from here on are skipped rather than written.
const MIN_SKIP: u64 = PIECE as u64;

/// Supplies a file's bytes in order; 0 means there are no more.
pub(crate) trait ReadData {
    type Error;
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error>;
}

pub(crate) struct DataWriter<'f> {
    blocks: BlockWriter<'f>,
    tails: BufWriter<File>,
    tails_len: u64,
    piece: Box<[u8]>,
}

impl<'f> DataWriter<'f> {
    /// Data goes to `image` from block 1 on; `tails` is an empty file to write and read.
    pub(crate) fn new(image: &'f File, tails: File) -> DataWriter<'f> {
        DataWriter {
            blocks: BlockWriter { file: image, buffer: Vec::new(), position: BLOCK_U64 },
            tails: BufWriter::with_capacity(1 << 18, tails),
            tails_len: 0,
            piece: vec![0; PIECE].into(),
        }
    }

    /// Takes a file of `size` bytes: all of `source`, or `source` spread over `segments`,
    /// which are known to be in order and inside the file. The attributes will lie beside
    /// the inode, where the tail wants to go too.
    pub(crate) fn write_file<R, E>(
        &mut self,
        size: u64,
        segments: Option<&[Segment]>,
        xattrs: &[Xattr],
        source: &mut R,
    ) -> Result<FileData, E>
    where
        R: ReadData<Error = E>,
        E: From<ErofsError>,
    {
        let whole = [Segment { offset: 0, length: size }];
        let mut content = Content { source, segments: segments.unwrap_or(&whole), used: 0 };
        let max_tail = MAX_TAIL.min(inline_room(xattrs) as u64);
        let first_block = self.blocks.block()?;
        let chunk_bits = chunk_bits(size);
        let chunk = 1_u64 << chunk_bits;
        let mut holes: Vec<(u32, u32)> = Vec::new();
        let mut tail = None;
        let mut position = 0;
        while position < size {
            let index = (position >> chunk_bits) as u32;
            let end = size.min(position + chunk);
            // A file of one chunk is small: it is not worth a map.
            let may_be_hole = size > chunk;
            if may_be_hole && content.is_hole(position, end) {
                let next = content.next_data().unwrap_or(size).min(size);
                let last = if next == size {
                    size.div_ceil(chunk) as u32
                } else {
                    (next >> chunk_bits) as u32
                };
                add_hole(&mut holes, index, last - index);
                position = (u64::from(last) << chunk_bits).min(size);
                continue;
            }
            // Zero pieces wait: if all of the chunk is zero, it becomes a hole.
            let mut zeros = 0;
            let mut written = !may_be_hole;
            while position < end {
                let length = (end - position).min(PIECE as u64) as usize;
                content.read(position, &mut self.piece[..length])?;
                position += length as u64;
                let piece = &self.piece[..length];
                if is_zero(piece) {
                    zeros += length as u64;
                    continue;
                }
                self.blocks.zeros(zeros)?;
                zeros = 0;
                written = true;
                let inline = (length % BLOCK) as u64;
                if position == size && holes.is_empty() && inline != 0 && inline <= max_tail {
                    let (blocks, rest) = piece.split_at(length - inline as usize);
                    self.blocks.write(blocks)?;
                    self.tails.write_all(rest).map_err(ErofsError::Write)?;
                    tail = Some(Tail { offset: self.tails_len, length: inline as u16 });
                    self.tails_len += inline;
                } else {
                    self.blocks.write(piece)?;
                }
            }
            if written {
                self.blocks.zeros(zeros)?;
            } else {
                add_hole(&mut holes, index, 1);
            }
        }
        self.blocks.align()?;
        let place = if holes.is_empty() {
            Place::Flat { first_block, tail }
        } else {
            Place::Chunked { first_block, chunk_bits, holes }
        };
        Ok(FileData { size, place })
    }

    /// The first block behind all data, and the collected tails.
    pub(super) fn finish(mut self) -> Result<(u32, File), ErofsError> {
        self.blocks.flush()?;
        let block = self.blocks.block()?;
        let tails =
            self.tails.into_inner().map_err(|error| ErofsError::Write(error.into_error()))?;
        Ok((block, tails))
    }
}

fn chunk_bits(size: u64) -> u8 {
    let mut bits = PIECE_BITS;
    while size.div_ceil(1 << bits) > MAX_CHUNKS {
        bits += 1;
    }
    bits
}

fn add_hole(holes: &mut Vec<(u32, u32)>, first: u32, count: u32) {
    match holes.last_mut() {
        Some((start, length)) if *start + *length == first => *length += count,
        _ => holes.push((first, count)),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// A file's logical content, holes included.
struct Content<'a, R> {
    source: &'a mut R,
    /// What is still to come; `used` bytes of the first are read.
    segments: &'a [Segment],
    used: u64,
}

impl<R: ReadData> Content<'_, R> {
    /// Where data comes next.
    fn next_data(&mut self) -> Option<u64> {
        while let Some(segment) = self.segments.first() {
            if self.used < segment.length {
                return Some(segment.offset + self.used);
            }
            self.segments = &self.segments[1..];
            self.used = 0;
        }
        None
    }

    fn is_hole(&mut self, start: u64, end: u64) -> bool {
        debug_assert!(start < end);
        self.next_data().is_none_or(|data| data >= end)
    }

    /// Fills `buffer` with the content at `position`; positions only grow. Data that ends
    /// early reads as zeros: the tar reader has already reported it.
    fn read(&mut self, position: u64, buffer: &mut [u8]) -> Result<(), R::Error> {
        let end = position + buffer.len() as u64;
        buffer.fill(0);
        while let Some(data) = self.next_data() {
            if data >= end {
                break;
            }
            let left = self.segments[0].length - self.used;
            let start = (data - position) as usize;
            let length = left.min(end - data) as usize;
            let mut target = &mut buffer[start..start + length];
            while !target.is_empty() {
                match self.source.read(target)? {
                    0 => return Ok(()),
                    count => target = &mut target[count..],
                }
            }
            self.used += length as u64;
        }
        Ok(())
    }
}

/// Appends to the image; long stretches of zeros become holes of the image file.
struct BlockWriter<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    position: u64,
}

impl BlockWriter<'_> {
    const CAPACITY: usize = 1 << 20;

    fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= Self::CAPACITY { self.flush() } else { Ok(()) }
    }

    fn zeros(&mut self, count: u64) -> Result<(), ErofsError> {
        if count < MIN_SKIP {
            self.buffer.resize(self.buffer.len() + count as usize, 0);
            return Ok(());
        }
        self.flush()?;
        self.position += count;
        Ok(())
    }

    fn align(&mut self) -> Result<(), ErofsError> {
        let end = self.position + self.buffer.len() as u64;
        self.zeros(end.next_multiple_of(BLOCK_U64) - end)
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        self.file.write_all_at(&self.buffer, self.position).map_err(ErofsError::Write)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// The number of the block that comes next; only between files, which are aligned.
    fn block(&self) -> Result<u32, ErofsError> {
        let end = self.position + self.buffer.len() as u64;
        u32::try_from(end >> BLOCK_BITS).map_err(|_| ErofsError::TooLarge)
    }
}
