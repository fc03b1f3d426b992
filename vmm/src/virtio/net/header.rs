//! The header before each frame (virtio 1.2 §5.1.6), checked in both directions.
//!
//! The host's kernel segments and completes the checksums of what a guest sends, as this
//! header tells it to; so nothing in it goes further than the frame, and no frame becomes
//! more segments than a network would carry.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// With `num_buffers`, which every header of virtio 1 has.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

pub(super) const ETHERNET_BYTES: usize = 14;
const VLAN_TAG_BYTES: usize = 4;
/// The longest frame: an Ethernet header with a VLAN tag, and the longest IP packet.
pub(super) const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + VLAN_TAG_BYTES + 65535;

const TCP_HEADER_BYTES: usize = 20;
/// Linux sends no smaller segments (`TCP_MIN_SND_MSS` less the longest options) but under
/// attack; tiny ones would make one frame tens of thousands of packets.
const MIN_SEGMENT_BYTES: u16 = 64;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const GSO_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// What the sender of a frame may leave to its receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    pub(super) checksum: bool,
    pub(super) tcp4: bool,
    pub(super) tcp6: bool,
    pub(super) ecn: bool,
    /// The sender may say that it has verified a checksum.
    pub(super) data_valid: bool,
}

impl Offloads {
    /// Of what the guest sends.
    pub(super) fn of_guest(features: u64) -> Self {
        let has = |feature: u32| features & (1 << feature) != 0;
        let checksum = has(VIRTIO_NET_F_CSUM);
        Self {
            checksum,
            tcp4: checksum && has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: checksum && has(VIRTIO_NET_F_HOST_TSO6),
            ecn: has(VIRTIO_NET_F_HOST_ECN),
            data_valid: false,
        }
    }

    /// Of what the host sends.
    pub(super) fn of_host(features: u64) -> Self {
        let has = |feature: u32| features & (1 << feature) != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        Self {
            checksum,
            tcp4: checksum && has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: checksum && has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            data_valid: checksum,
        }
    }
}

/// How a header is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// A flag that does not exist, or that was not negotiated.
    Flags,
    /// The frame is shorter than an Ethernet header, or longer than any.
    FrameLength,
    /// Longer than the MTU, and not to be segmented.
    LongerThanMtu,
    /// A kind of segmentation that was not negotiated.
    Segmentation,
    /// Segments that are too small, or without a checksum.
    SegmentSize,
    /// The headers end beyond the frame.
    HeaderLength,
    /// The checksum is not in the frame.
    Checksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }
}

/// Checks the header of a frame of `frame_bytes` that was sent with these offloads.
pub(super) fn check(
    bytes: &[u8; HEADER_BYTES],
    frame_bytes: usize,
    mtu: u16,
    offloads: Offloads,
) -> Result<(), HeaderError> {
    let header = Header::parse(bytes);
    let allowed = if offloads.checksum { NEEDS_CSUM } else { 0 }
        | if offloads.data_valid { DATA_VALID } else { 0 };
    if header.flags & !allowed != 0 {
        return Err(HeaderError::Flags);
    }
    if !(ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
        return Err(HeaderError::FrameLength);
    }
    if usize::from(header.hdr_len) > frame_bytes {
        return Err(HeaderError::HeaderLength);
    }
    let needs_csum = header.flags & NEEDS_CSUM != 0;
    if needs_csum {
        let start = usize::from(header.csum_start);
        let end = start + usize::from(header.csum_offset) + 2;
        if start < ETHERNET_BYTES || end > frame_bytes {
            return Err(HeaderError::Checksum);
        }
    }
    if header.gso_type == GSO_NONE {
        let longest = usize::from(mtu) + ETHERNET_BYTES + VLAN_TAG_BYTES;
        return if frame_bytes > longest { Err(HeaderError::LongerThanMtu) } else { Ok(()) };
    }
    let negotiated = match header.gso_type & !GSO_ECN {
        GSO_TCPV4 => offloads.tcp4,
        GSO_TCPV6 => offloads.tcp6,
        _ => false,
    };
    if !negotiated || header.gso_type & GSO_ECN != 0 && !offloads.ecn {
        return Err(HeaderError::Segmentation);
    }
    if !needs_csum || header.gso_size < MIN_SEGMENT_BYTES {
        return Err(HeaderError::SegmentSize);
    }
    if usize::from(header.csum_start) + TCP_HEADER_BYTES > frame_bytes {
        return Err(HeaderError::HeaderLength);
    }
    Ok(())
}

/// What the driver must not see unless it asked for it (virtio 1.2 §5.1.6.4.1).
pub(super) fn clear_data_valid(bytes: &mut [u8; HEADER_BYTES]) {
    bytes[0] &= !DATA_VALID;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Offloads =
        Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, data_valid: false };

    fn raw(header: Header) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = header.flags;
        bytes[1] = header.gso_type;
        bytes[2..4].copy_from_slice(&header.hdr_len.to_le_bytes());
        bytes[4..6].copy_from_slice(&header.gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&header.csum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&header.csum_offset.to_le_bytes());
        bytes
    }

    const PLAIN: Header =
        Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
    const TSO: Header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };

    fn checked(header: Header, frame_bytes: usize, offloads: Offloads) -> Result<(), HeaderError> {
        check(&raw(header), frame_bytes, 1500, offloads)
    }

    #[test]
    fn what_linux_sends_passes() {
        for bytes in [14, 60, 1514, 1518] {
            assert_eq!(checked(PLAIN, bytes, Offloads::default()), Ok(()));
        }
        assert_eq!(checked(TSO, 65549, ALL), Ok(()));
        assert_eq!(checked(Header { gso_type: GSO_TCPV6 | GSO_ECN, ..TSO }, 3000, ALL), Ok(()));
    }

    // Hostile case 21.

    #[test]
    fn lengths_are_those_of_frames() {
        for bytes in [0, 1, 13, MAX_FRAME_BYTES + 1, 1 << 20] {
            assert_eq!(checked(TSO, bytes, ALL), Err(HeaderError::FrameLength));
        }
        assert_eq!(checked(PLAIN, 1519, ALL), Err(HeaderError::LongerThanMtu));
        assert_eq!(checked(PLAIN, 65549, ALL), Err(HeaderError::LongerThanMtu));
        let header = Header { hdr_len: 101, ..TSO };
        assert_eq!(checked(header, 100, ALL), Err(HeaderError::HeaderLength));
        assert_eq!(checked(Header { hdr_len: 0, ..TSO }, 53, ALL), Err(HeaderError::HeaderLength));
    }

    #[test]
    fn the_checksum_lies_in_the_frame() {
        let header = |csum_start, csum_offset| Header {
            flags: NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..PLAIN
        };
        assert_eq!(checked(header(34, 16), 52, ALL), Ok(()));
        for (start, offset) in [(34, 17), (35, 16), (13, 0), (0, 0), (u16::MAX, u16::MAX), (52, 0)]
        {
            assert_eq!(checked(header(start, offset), 52, ALL), Err(HeaderError::Checksum));
        }
    }

    #[test]
    fn segments_are_of_a_kind_and_size_that_can_be() {
        for gso_type in [2, 3, 5, 6, 0x7f, GSO_ECN, GSO_ECN | 3] {
            let header = Header { gso_type, ..TSO };
            assert_eq!(checked(header, 3000, ALL), Err(HeaderError::Segmentation));
        }
        for gso_size in [0, 1, MIN_SEGMENT_BYTES - 1] {
            let header = Header { gso_size, ..TSO };
            assert_eq!(checked(header, 3000, ALL), Err(HeaderError::SegmentSize));
        }
        let header = Header { flags: 0, ..TSO };
        assert_eq!(checked(header, 3000, ALL), Err(HeaderError::SegmentSize));
    }

    #[test]
    fn nothing_passes_that_was_not_negotiated() {
        let none = Offloads::default();
        assert_eq!(checked(TSO, 3000, none), Err(HeaderError::Flags));
        let offloads = Offloads { tcp4: false, ..ALL };
        assert_eq!(checked(TSO, 3000, offloads), Err(HeaderError::Segmentation));
        let offloads = Offloads { ecn: false, ..ALL };
        let header = Header { gso_type: GSO_TCPV4 | GSO_ECN, ..TSO };
        assert_eq!(checked(header, 3000, offloads), Err(HeaderError::Segmentation));
        for flags in [DATA_VALID, 4, 0x80, 0xff] {
            assert_eq!(checked(Header { flags, ..PLAIN }, 60, ALL), Err(HeaderError::Flags));
        }
        // Segmentation without the checksums it needs was not negotiated either.
        let features = 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        assert_eq!(Offloads::of_guest(features), none);
        assert_eq!(Offloads::of_host(features), none);
    }

    proptest! {
        #[test]
        fn what_passes_keeps_every_promise(
            header in any::<[u8; HEADER_BYTES]>(),
            gso_type in prop_oneof![Just(0_u8), Just(1), Just(4), Just(0x81), any::<u8>()],
            flags in prop_oneof![Just(0_u8), Just(1), any::<u8>()],
            frame_bytes in 0_usize..70_000,
            features in any::<u64>(),
        ) {
            let mut bytes = header;
            (bytes[0], bytes[1]) = (flags, gso_type);
            let offloads = Offloads::of_guest(features);
            if check(&bytes, frame_bytes, 1500, offloads).is_ok() {
                let header = Header::parse(&bytes);
                prop_assert!((14..=MAX_FRAME_BYTES).contains(&frame_bytes));
                prop_assert!(usize::from(header.hdr_len) <= frame_bytes);
                prop_assert!(header.flags & !NEEDS_CSUM == 0);
                if header.flags != 0 {
                    let end = u32::from(header.csum_start) + u32::from(header.csum_offset) + 2;
                    prop_assert!(end as usize <= frame_bytes && offloads.checksum);
                }
                if header.gso_type == 0 {
                    prop_assert!(frame_bytes <= 1518);
                } else {
                    prop_assert!(frame_bytes / usize::from(header.gso_size) <= 1024);
                    prop_assert!(offloads.tcp4 || offloads.tcp6);
                }
            }
        }
    }
}
