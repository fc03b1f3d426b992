//! One message on the wire: a 32-bit little-endian length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The longest frame either side accepts, in bytes. A plan with every list at its
/// largest stays below it.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// Why a frame could not be read or written. None of these leaves the channel usable.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong { length: usize },
    #[error("the channel ended inside a frame")]
    Truncated,
    #[error("a frame is no message of this protocol")]
    Malformed(#[source] serde_json::Error),
    #[error("read or write the channel")]
    Io(#[source] io::Error),
}

/// The bytes of `message` as one frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Malformed)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { length });
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// The message in `payload`, the bytes after a frame's length.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(FrameError::Malformed)
}

/// The payload length in a frame's first four bytes, checked against the limit.
pub fn payload_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { length });
    }
    Ok(length)
}

/// Writes `message` as one frame with a single write.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)?).map_err(FrameError::Io)
}

/// Reads one frame; `None` if the channel ended cleanly before it.
///
/// Memory grows with what has arrived, not with what the length promises.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut header = [0; 4];
    match from.read_exact(&mut header[..1]) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(FrameError::Io)?,
    }
    read_all(from, &mut header[1..])?;
    let length = payload_length(header)?;
    let mut payload = Vec::new();
    from.take(length as u64).read_to_end(&mut payload).map_err(FrameError::Io)?;
    if payload.len() < length {
        return Err(FrameError::Truncated);
    }
    decode(&payload).map(Some)
}

fn read_all(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), FrameError> {
    from.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, Request};

    fn request() -> Request {
        Request { id: 7, call: Call::Shutdown }
    }

    #[test]
    fn a_message_survives_the_wire() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &request()).unwrap();
        let back: Request = read_frame(&mut wire.as_slice()).unwrap().unwrap();
        assert_eq!(back, request());
    }

    #[test]
    fn a_clean_end_is_no_error() {
        assert!(read_frame::<Request>(&mut [].as_slice()).unwrap().is_none());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_reading() {
        let wire = [0xff_u8; 8];
        let error = read_frame::<Request>(&mut wire.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { length: 0xffff_ffff }));
    }

    #[test]
    fn every_truncation_is_reported() {
        let whole = encode(&request()).unwrap();
        for end in 1..whole.len() {
            let error = read_frame::<Request>(&mut &whole[..end]).unwrap_err();
            assert!(matches!(error, FrameError::Truncated), "cut at {end}: {error}");
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let mut wire = 3_u32.to_le_bytes().to_vec();
        wire.extend(*b"\xff{]");
        let error = read_frame::<Request>(&mut wire.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::Malformed(_)));
    }
}
