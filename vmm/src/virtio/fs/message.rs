//! FUSE messages, as far as who carries them must know them (Linux `include/uapi/linux/fuse.h`).
//!
//! ```text
//! struct fuse_in_header   len u32 | opcode u32 | unique u64 | ...   40 bytes
//! struct fuse_out_header  len u32 | error i32  | unique u64         16 bytes
//! ```

use std::ops::Range;

use crate::virtio::iovecs::IoVecs;

const REQUEST_HEADER_BYTES: usize = 40;
pub(super) const REPLY_HEADER_BYTES: usize = 16;
/// Headers, and as many pages as a queue has descriptors.
pub(super) const MAX_BYTES: usize = (32 + 1) * 4096;

const LENGTH: Range<usize> = 0..4;
const UNIQUE: Range<usize> = 8..16;

/// A request, copied once.
pub(super) struct Request(Vec<u8>);

impl Request {
    /// `None` unless the guest's buffers hold one whole message that is not too long.
    pub(super) fn read(source: &mut IoVecs) -> Option<Self> {
        let bytes = source.bytes();
        if !(REQUEST_HEADER_BYTES..=MAX_BYTES).contains(&bytes) {
            return None;
        }
        let mut request = vec![0; bytes];
        source.read(&mut request);
        is_whole(&request).then_some(Self(request))
    }

    /// Gives the request another number, and returns the one that it had.
    pub(super) fn replace_unique(&mut self, unique: u64) -> u64 {
        let old = u64_at(&self.0);
        self.0[UNIQUE].copy_from_slice(&unique.to_le_bytes());
        old
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What came from the server, of the header's size at least.
pub(super) struct Reply<'a>(&'a mut [u8]);

impl<'a> Reply<'a> {
    pub(super) fn new(message: &'a mut [u8]) -> Option<Self> {
        (message.len() >= REPLY_HEADER_BYTES).then_some(Self(message))
    }

    pub(super) fn unique(&self) -> u64 {
        u64_at(self.0)
    }

    pub(super) fn set_unique(&mut self, unique: u64) {
        self.0[UNIQUE].copy_from_slice(&unique.to_le_bytes());
    }

    /// Whether it is as long as it says.
    pub(super) fn is_whole(&self) -> bool {
        is_whole(self.0)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0
    }
}

/// The reply that a request failed with this `errno`.
pub(super) fn failure(unique: u64, errno: i32) -> [u8; REPLY_HEADER_BYTES] {
    let mut reply = [0; REPLY_HEADER_BYTES];
    reply[LENGTH].copy_from_slice(&(REPLY_HEADER_BYTES as u32).to_le_bytes());
    reply[4..8].copy_from_slice(&(-errno).to_le_bytes());
    reply[UNIQUE].copy_from_slice(&unique.to_le_bytes());
    reply
}

fn is_whole(message: &[u8]) -> bool {
    let length = message[LENGTH].try_into().expect("a header has a length");
    u32::from_le_bytes(length) as usize == message.len()
}

fn u64_at(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[UNIQUE].try_into().expect("a header has a number"))
}
