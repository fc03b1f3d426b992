//! Recognising and undoing compression, within bounds.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

use crate::limits::Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Carried inside the `io::Error` of a read that went too far.
#[derive(Debug, Error)]
pub enum CompressionError {
    #[error("data compressed with {0} is not supported; use gzip, zstd or none")]
    Unsupported(&'static str),
    #[error("more than {limit} bytes after decompression, the limit")]
    TooLarge { limit: u64 },
    #[error(
        "{unpacked} bytes came from {packed} compressed ones: more than {ratio} to 1, as \
         decompression bombs have it"
    )]
    Bomb { packed: u64, unpacked: u64, ratio: u64 },
}

impl Compression {
    /// By the first bytes, as the engines do; media types are known to lie.
    fn detect(head: &[u8]) -> Result<Compression, CompressionError> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            // A zstd frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Ok(Compression::Zstd)
            }
            [b'B', b'Z', b'h', ..] => Err(CompressionError::Unsupported("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(CompressionError::Unsupported("xz")),
            _ => Ok(Compression::None),
        }
    }
}

/// Decompresses `source` if it is compressed, up to `max_bytes`.
pub(crate) fn decompress<'r>(
    source: impl Read + 'r,
    limits: &Limits,
    max_bytes: u64,
) -> io::Result<(Compression, Box<dyn Read + 'r>)> {
    let packed = Rc::new(Cell::new(0));
    let counted = Counted { inner: source, count: Rc::clone(&packed) };
    let mut reader = BufReader::with_capacity(1 << 17, counted);
    let head = fill(&mut reader)?;
    let compression = Compression::detect(head).map_err(io::Error::other)?;
    let inner: Box<dyn Read + 'r> = match compression {
        Compression::None => Box::new(reader),
        // Concatenated members are one stream, for gzip as for zstd.
        Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(limits.zstd_window_log)?;
            Box::new(decoder)
        }
    };
    let (ratio, ratio_free_bytes) = (limits.ratio, limits.ratio_free_bytes);
    let bounded = Bounded { inner, packed, unpacked: 0, max_bytes, ratio, ratio_free_bytes };
    Ok((compression, Box::new(bounded)))
}

/// The first bytes, which one read may not give all of.
fn fill(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return reader.fill_buf(),
        }
    }
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

struct Bounded<R> {
    inner: R,
    packed: Rc<Cell<u64>>,
    unpacked: u64,
    max_bytes: u64,
    ratio: u64,
    ratio_free_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.unpacked += count as u64;
        let (packed, unpacked, ratio) = (self.packed.get(), self.unpacked, self.ratio);
        if unpacked > self.max_bytes {
            let limit = self.max_bytes;
            return Err(io::Error::other(CompressionError::TooLarge { limit }));
        }
        if unpacked > self.ratio_free_bytes && unpacked / ratio > packed {
            return Err(io::Error::other(CompressionError::Bomb { packed, unpacked, ratio }));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(packed: &[u8], limits: &Limits, max_bytes: u64) -> io::Result<Vec<u8>> {
        let (_, mut reader) = decompress(packed, limits, max_bytes)?;
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        Ok(data)
    }

    fn cause(error: &io::Error) -> &CompressionError {
        error.get_ref().and_then(|inner| inner.downcast_ref()).expect("an error of this file")
    }

    #[test]
    fn all_three_forms_and_concatenated_members() {
        let limits = Limits::default();
        let zstd = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        for packed in [
            b"onetwo".to_vec(),
            gzip(b"onetwo"),
            zstd(b"onetwo"),
            [gzip(b"one"), gzip(b"two")].concat(),
            [zstd(b"one"), zstd(b"two")].concat(),
            [b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(b"onetwo")].concat(),
        ] {
            assert_eq!(unpack(&packed, &limits, 6).unwrap(), b"onetwo");
            let error = unpack(&packed, &limits, 5).unwrap_err();
            assert!(matches!(cause(&error), CompressionError::TooLarge { limit: 5 }), "{error}");
        }
        assert_eq!(unpack(b"", &limits, 5).unwrap(), b"");
    }

    #[test]
    fn damaged_streams_are_errors() {
        let limits = Limits::default();
        for whole in [gzip(&[5; 10_000]), zstd::encode_all(&[5; 10_000][..], 3).unwrap()] {
            assert!(unpack(&whole[..whole.len() - 1], &limits, 1 << 20).is_err());
            let mut flipped = whole.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 0xff;
            flipped[middle + 1] ^= 0xff;
            assert!(unpack(&flipped, &limits, 1 << 20).is_err());
            assert!(unpack(&[&whole[..], b"garbage!"].concat(), &limits, 1 << 20).is_err());
        }
        for other in [&b"BZh91AY"[..], b"\xfd7zXZ\0"] {
            let error = unpack(other, &limits, 1 << 20).unwrap_err();
            assert!(matches!(cause(&error), CompressionError::Unsupported(_)));
        }
    }

    #[test]
    fn bombs_are_stopped_at_the_ratio() {
        let limits = Limits { ratio: 100, ratio_free_bytes: 1 << 20, ..Limits::default() };
        let zeros = vec![0; 8 << 20];
        for packed in [gzip(&zeros), zstd::encode_all(&zeros[..], 3).unwrap()] {
            let error = unpack(&packed, &limits, u64::MAX).unwrap_err();
            assert!(matches!(cause(&error), CompressionError::Bomb { .. }), "{error}");
            assert!(unpack(&packed[..], &Limits::default(), u64::MAX).is_ok());
        }
    }

    #[test]
    fn a_huge_zstd_window_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 1 << 16]).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(unpack(&packed, &Limits::default(), u64::MAX).is_ok());
        let limits = Limits { zstd_window_log: 23, ..Limits::default() };
        assert!(unpack(&packed, &limits, u64::MAX).is_err());
    }
}
