//! The header of a vsock packet (virtio 1.2 §5.10.6).

use crate::virtio::iovecs::IoVecs;

pub(super) const HEADER_BYTES: usize = 44;
/// Most data in a packet: what Linux sends at most.
pub(super) const MAX_DATA_BYTES: usize = 64 << 10;

/// The host's CID.
pub(super) const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only kind of socket here.
const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_*`: the sender of the packet will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// The sender of the packet will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `VIRTIO_VSOCK_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    pub(super) fn from_u16(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// Both ends of a connection. The host's port alone tells connections apart: each is
/// either chosen here or usable once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// `struct virtio_vsock_hdr`, in the order of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub source_cid: u64,
    pub target_cid: u64,
    pub source_port: u32,
    pub target_port: u32,
    /// Bytes of data after the header.
    pub data_bytes: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buffer_bytes: u32,
    /// Bytes that the sender's application has taken, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// A packet from the host without data and credit.
    pub(super) fn to_guest(cid: u32, ports: Ports, op: Op) -> Self {
        Self {
            source_cid: HOST_CID,
            target_cid: cid.into(),
            source_port: ports.host,
            target_port: ports.guest,
            data_bytes: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buffer_bytes: 0,
            forwarded: 0,
        }
    }

    /// The connection that a packet from the guest speaks of.
    pub(super) fn guest_ports(&self) -> Ports {
        Ports { host: self.target_port, guest: self.source_port }
    }

    /// Whether the guest may send a packet with these addresses, type and length, of which
    /// `available_bytes` follow the header.
    pub(super) fn is_from_guest(&self, cid: u32, available_bytes: usize) -> bool {
        let data_bytes = self.data_bytes as usize;
        self.source_cid == u64::from(cid)
            && self.target_cid == HOST_CID
            && self.kind == TYPE_STREAM
            && data_bytes <= available_bytes.min(MAX_DATA_BYTES)
    }

    /// Takes a header off the front; `None` if there are not enough bytes.
    pub(super) fn read(packet: &mut IoVecs) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES];
        (packet.read(&mut bytes) == HEADER_BYTES).then(|| Self::from_bytes(&bytes))
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            source_cid: u64::from_le_bytes(take(&mut rest)),
            target_cid: u64::from_le_bytes(take(&mut rest)),
            source_port: u32::from_le_bytes(take(&mut rest)),
            target_port: u32::from_le_bytes(take(&mut rest)),
            data_bytes: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buffer_bytes: u32::from_le_bytes(take(&mut rest)),
            forwarded: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.target_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.target_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        bytes[40..].copy_from_slice(&self.forwarded.to_le_bytes());
        bytes
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("the fields make up the header's size");
    *bytes = rest;
    *first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|n| n as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.target_port, 0x1716_1514);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn ops_have_the_numbers_of_the_spec() {
        for value in 0..=u16::MAX {
            assert_eq!(
                Op::from_u16(value).map(|op| op as u16),
                (1..=7).contains(&value).then_some(value)
            );
        }
    }
}
