//! GNU's four ways to write a sparse file (GNU tar manual, "Sparse Formats"): the old one
//! in binary headers, PAX 0.0 and 0.1 in records, PAX 1.0 in front of the data.

use std::io::Read;

use super::header::{BLOCK, Header, parse_number};
use super::pax::decimal;
use super::{Reader, TarError};

/// Of one file; each costs 16 bytes of memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// A stretch of data; what lies between is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub length: u64,
}

/// What `GNU.sparse.*` records said.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Version 0.0 repeats a pair of records, 0.1 lists all numbers in one.
    numbers: Option<Vec<u64>>,
}

impl PaxSparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" if !value.is_empty() && !value.contains(&0) => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"numblocks" => drop(self.numbers.get_or_insert_default()),
            b"offset" | b"numbytes" => {
                let numbers = self.numbers.get_or_insert_default();
                // Offsets and lengths take turns.
                if numbers.len().is_multiple_of(2) != (key == b"offset") {
                    return None;
                }
                numbers.push(decimal(value)?);
            }
            b"map" => {
                let numbers = value.split(|&byte| byte == b',').filter(|text| !text.is_empty());
                self.numbers = Some(numbers.map(decimal).collect::<Option<_>>()?);
            }
            b"name" => return None,
            _ => {}
        }
        Some(())
    }

    /// The map precedes the data. The header's other versions are told by their records.
    pub(super) fn is_version_1(&self) -> bool {
        (self.major, self.minor) == (Some(1), Some(0))
    }

    /// Versions 0.0 and 0.1: the segments and the real size.
    pub(super) fn take_map(&mut self, at: u64) -> Result<Option<(Vec<Segment>, u64)>, TarError> {
        let malformed = |what| TarError::Sparse { what, at };
        if self.major.is_some_and(|major| major > 0) {
            return Err(malformed("an unknown version"));
        }
        let Some(numbers) = self.numbers.take() else {
            return match self.real_size {
                Some(_) => Err(malformed("a size but no map")),
                None => Ok(None),
            };
        };
        let size = self.real_size.ok_or(malformed("no real size"))?;
        if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > MAX_SEGMENTS {
            return Err(malformed("the map"));
        }
        let segment = |pair: &[u64]| Segment { offset: pair[0], length: pair[1] };
        Ok(Some((numbers.chunks_exact(2).map(segment).collect(), size)))
    }
}

/// The old GNU format: reads the blocks that continue the header's map.
pub(super) fn read_old_gnu<R: Read>(
    reader: &mut Reader<R>,
    header: &Header,
    at: u64,
) -> Result<(Vec<Segment>, u64), TarError> {
    let malformed = |what| TarError::Sparse { what, at };
    let (first, mut more, size) = header.gnu_sparse();
    let size = size.ok_or(malformed("the real size"))?;
    let mut segments = Vec::new();
    add_old_gnu(&mut segments, first).ok_or(malformed("the map"))?;
    while more {
        if segments.len() > MAX_SEGMENTS {
            return Err(malformed("too many segments"));
        }
        let block = reader.read_block()?.ok_or(TarError::Truncated { at: reader.offset })?;
        add_old_gnu(&mut segments, &block[..21 * 24]).ok_or(malformed("the map"))?;
        more = block[504] != 0;
    }
    Ok((segments, size))
}

/// Pairs of 12-byte numbers; an empty one ends the block.
fn add_old_gnu(segments: &mut Vec<Segment>, field: &[u8]) -> Option<()> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let number = |field| u64::try_from(parse_number(field)?).ok();
        segments.push(Segment { offset: number(&pair[..12])?, length: number(&pair[12..])? });
    }
    Some(())
}

/// PAX 1.0: a line with the count, then a line per number, padded to a block.
pub(super) fn read_map<R: Read>(reader: &mut Reader<R>, at: u64) -> Result<Vec<Segment>, TarError> {
    let malformed = |what| TarError::Sparse { what, at };
    let mut lines = Lines { reader, block: [0; BLOCK], used: BLOCK };
    let count = lines.number(at)?;
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_SEGMENTS);
    let count = count.ok_or(malformed("too many segments"))?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let (offset, length) = (lines.number(at)?, lines.number(at)?);
        segments.push(Segment { offset, length });
    }
    Ok(segments)
}

struct Lines<'r, R> {
    reader: &'r mut Reader<R>,
    block: [u8; BLOCK],
    used: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self, at: u64) -> Result<u64, TarError> {
        let malformed = TarError::Sparse { what: "the map", at };
        let mut digits = Vec::new();
        loop {
            if self.used == BLOCK {
                if self.reader.remaining < BLOCK as u64 {
                    return Err(malformed);
                }
                self.reader.read_exact(&mut self.block)?;
                self.reader.remaining -= BLOCK as u64;
                self.used = 0;
            }
            let byte = self.block[self.used];
            self.used += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or(malformed),
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(malformed),
            }
        }
    }
}

/// Segments must be in order, inside the file, and make up the stored data.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64, at: u64) -> Result<(), TarError> {
    let malformed = |what| Err(TarError::Sparse { what, at });
    let (mut position, mut sum) = (0_u64, 0_u64);
    for segment in segments {
        let Some(end) = segment.offset.checked_add(segment.length) else {
            return malformed("a segment that overflows");
        };
        if segment.offset < position || end > size {
            return malformed("a segment out of order or beyond the end");
        }
        position = end;
        // No overflow: the segments are disjoint parts of `size`.
        sum += segment.length;
    }
    if sum != stored {
        return malformed("segments that do not add up to the stored data");
    }
    Ok(())
}
