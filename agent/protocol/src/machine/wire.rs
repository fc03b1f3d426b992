//! Frames as bytes that can be cut anywhere and still be told apart.
//!
//! ```text
//!   kind u8 │ session u64 │ length u32 │ payload      little-endian
//!   ─────────────────── COBS ─────────────────── 00
//! ```
//!
//! Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999) replaces the zero bytes of
//! a frame, at the cost of one byte in 254, so that a zero ends a frame and occurs nowhere
//! else. Whoever joins in the middle is in step at the next zero; the length tells a frame
//! whose middle is missing.

use super::frame::{Frame, FrameError, MAX_PAYLOAD_BYTES};

const HEADER_BYTES: usize = 13;

/// No encoded frame that this side accepts is longer.
const MAX_ENCODED_BYTES: usize = (HEADER_BYTES + MAX_PAYLOAD_BYTES) / 254 * 255 + 256;

/// The bytes of `frame` for the session of this number.
///
/// All but the frequent kinds start with a zero too, so that what a killed predecessor
/// left unfinished ends there.
pub fn encode(session: u64, frame: &Frame) -> Vec<u8> {
    let mut plain = vec![0; HEADER_BYTES];
    plain[0] = frame.write(&mut plain);
    plain[1..9].copy_from_slice(&session.to_le_bytes());
    let length = plain.len() - HEADER_BYTES;
    plain[9..13].copy_from_slice(&(length as u32).to_le_bytes());
    let mut wire = Vec::with_capacity(plain.len() + plain.len() / 254 + 3);
    if !matches!(frame, Frame::Stdin(_) | Frame::Output { .. } | Frame::Credit { .. }) {
        wire.push(0);
    }
    stuff(&plain, &mut wire);
    wire.push(0);
    wire
}

/// Finds the frames in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What has arrived since the last zero.
    partial: Vec<u8>,
    /// The present frame is too long; what follows up to the next zero is dropped.
    skipping: bool,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `bytes` and calls `each` for every frame that they complete.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Result<(u64, Frame), FrameError>),
    ) {
        while let Some(end) = bytes.iter().position(|byte| *byte == 0) {
            self.take(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let skipped = std::mem::take(&mut self.skipping);
            if skipped {
                each(Err(FrameError::TooLong));
            } else if !self.partial.is_empty() {
                each(decode(&self.partial));
            }
            self.partial.clear();
            // A long frame is rare; its buffer shall not stay.
            self.partial.shrink_to(2 * super::MAX_DATA_BYTES);
        }
        self.take(bytes);
    }

    /// What is kept of a frame that has not ended.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.partial.capacity()
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.skipping || self.partial.len() + bytes.len() > MAX_ENCODED_BYTES {
            self.skipping = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

fn decode(stuffed: &[u8]) -> Result<(u64, Frame), FrameError> {
    let plain = unstuff(stuffed).ok_or(FrameError::Damaged)?;
    let (header, payload) = plain.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Damaged)?;
    let session = u64::from_le_bytes(header[1..9].try_into().expect("eight bytes"));
    let length = u32::from_le_bytes(header[9..13].try_into().expect("four bytes"));
    if payload.len() != length as usize {
        return Err(FrameError::Damaged);
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLong);
    }
    Frame::read(header[0], payload).map(|frame| (session, frame))
}

/// Appends `plain` without its zeros: runs of up to 254 bytes, each after a byte that
/// tells where it ends. A run below 254 stands for itself and a zero.
fn stuff(plain: &[u8], wire: &mut Vec<u8>) {
    let mut rest = plain;
    loop {
        let limit = rest.len().min(254);
        match rest[..limit].iter().position(|byte| *byte == 0) {
            Some(run) => {
                wire.push(run as u8 + 1);
                wire.extend_from_slice(&rest[..run]);
                rest = &rest[run + 1..];
            }
            None => {
                wire.push(limit as u8 + 1);
                wire.extend_from_slice(&rest[..limit]);
                rest = &rest[limit..];
                if rest.is_empty() {
                    return;
                }
            }
        }
    }
}

fn unstuff(stuffed: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(stuffed.len());
    let mut rest = stuffed;
    while let Some((&code, after)) = rest.split_first() {
        let run = usize::from(code).checked_sub(1)?;
        if run > after.len() {
            return None;
        }
        plain.extend_from_slice(&after[..run]);
        rest = &after[run..];
        if run < 254 && !rest.is_empty() {
            plain.push(0);
        }
    }
    Some(plain)
}
