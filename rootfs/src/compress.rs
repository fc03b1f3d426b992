//! Recognising and undoing compression, within bounds.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::Limits;

/// How many bytes tell what a stream is.
pub(crate) const HEAD_BYTES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

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
    pub(crate) fn detect(head: &[u8]) -> Result<Compression, CompressionError> {
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

    /// Undoes it. Only what is confined, or what tests, may call this.
    pub(crate) fn decoder<'r>(
        self,
        source: impl Read + 'r,
        window_log: u32,
    ) -> io::Result<Box<dyn Read + 'r>> {
        let reader = BufReader::with_capacity(1 << 17, source);
        Ok(match self {
            Compression::None => Box::new(reader),
            // Concatenated members are one stream, for gzip as for zstd.
            Compression::Gzip => Box::new(MultiGzDecoder::new(reader)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                decoder.window_log_max(window_log)?;
                Box::new(decoder)
            }
        })
    }
}

/// How much may come out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    max_bytes: u64,
    ratio: u64,
    ratio_free_bytes: u64,
}

impl Bounds {
    pub(crate) fn new(limits: &Limits, max_bytes: u64) -> Bounds {
        Bounds { max_bytes, ratio: limits.ratio, ratio_free_bytes: limits.ratio_free_bytes }
    }

    /// Whether `unpacked` bytes may have come from `packed` ones.
    pub(crate) fn check(&self, packed: u64, unpacked: u64) -> Result<(), CompressionError> {
        if unpacked > self.max_bytes {
            return Err(CompressionError::TooLarge { limit: self.max_bytes });
        }
        let ratio = self.ratio;
        if unpacked > self.ratio_free_bytes && unpacked / ratio.max(1) > packed {
            return Err(CompressionError::Bomb { packed, unpacked, ratio });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;
    use crate::unpack::{UnpackError, Unpacker, expand};

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(packed: &[u8], limits: &Limits, max_bytes: u64) -> Result<Vec<u8>, UnpackError> {
        let mut data = Vec::new();
        let unpacker = Unpacker::in_this_process();
        expand(&unpacker, packed, limits, max_bytes, |bytes| {
            data.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(data)
    }

    fn cause(error: &UnpackError) -> &CompressionError {
        match error {
            UnpackError::Compression(error) => error,
            other => panic!("{other:?}"),
        }
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
