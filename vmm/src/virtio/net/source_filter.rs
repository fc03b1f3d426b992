//! Who a guest may say that it is.
//!
//! Frames carry the device's own MAC address as their source, always. Where addresses are
//! configured, only ARP, IPv4 and IPv6 pass, only from those addresses, and neither ARP nor
//! neighbour discovery may claim another for the guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::header::ETHERNET_BYTES;
use crate::config::MacAddress;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

const IPV6_BYTES: usize = 40;
/// Kinds of IPv6 extension headers, and what follows them.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const ICMPV6: u8 = 58;
/// More extension headers than this are no honest packet's.
const MAX_EXTENSIONS: usize = 8;

const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

pub(super) struct SourceFilter {
    mac: [u8; 6],
    /// Any if there are none.
    addresses: Vec<IpAddr>,
}

impl SourceFilter {
    pub(super) fn new(mac: MacAddress, mut addresses: Vec<IpAddr>) -> Self {
        if addresses.iter().any(IpAddr::is_ipv6) {
            addresses.push(link_local(mac).into());
        }
        Self { mac: mac.0, addresses }
    }

    /// Whether the guest may send this frame.
    pub(super) fn allows(&self, frame: &[u8]) -> bool {
        self.check(frame).unwrap_or(false)
    }

    /// `None`: the frame ends before what must be known.
    fn check(&self, frame: &[u8]) -> Option<bool> {
        if array(frame, 6)? != self.mac {
            return Some(false);
        }
        if self.addresses.is_empty() {
            return Some(true);
        }
        let packet = frame.get(ETHERNET_BYTES..)?;
        match array(frame, 12)? {
            ETHERTYPE_ARP => self.allows_arp(packet),
            ETHERTYPE_IPV4 => {
                let source = Ipv4Addr::from(array::<4>(packet, 12)?);
                Some(packet[0] >> 4 == 4 && self.owns(source.into()))
            }
            ETHERTYPE_IPV6 => self.allows_ipv6(packet),
            _ => Some(false),
        }
    }

    fn owns(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Ethernet and IPv4 (RFC 826); the address is the guest's, or none while it probes
    /// (RFC 5227).
    fn allows_arp(&self, packet: &[u8]) -> Option<bool> {
        const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
        let sender = Ipv4Addr::from(array::<4>(packet, 14)?);
        Some(
            array(packet, 0)? == ETHERNET_IPV4
                && array(packet, 8)? == self.mac
                && (sender.is_unspecified() || self.owns(sender.into())),
        )
    }

    fn allows_ipv6(&self, packet: &[u8]) -> Option<bool> {
        let source = Ipv6Addr::from(array::<16>(packet, 8)?);
        if packet[0] >> 4 != 6 {
            return Some(false);
        }
        let icmp = icmpv6(packet)?;
        if let Some(message) = icmp {
            match *message.first()? {
                // The guest is no router.
                ROUTER_ADVERTISEMENT | REDIRECT => return Some(false),
                NEIGHBOUR_ADVERTISEMENT => {
                    let target = Ipv6Addr::from(array::<16>(message, 8)?);
                    if !self.owns(target.into()) {
                        return Some(false);
                    }
                }
                _ => {}
            }
        }
        // Without an address yet, it may ask whether one is free.
        Some(self.owns(source.into()) || source.is_unspecified() && icmp.is_some())
    }
}

/// The ICMPv6 message in an IPv6 packet: `Some(None)` if it is another protocol, or a
/// fragment after the first; `None` if that cannot be seen.
fn icmpv6(packet: &[u8]) -> Option<Option<&[u8]>> {
    let (mut kind, mut offset) = (*packet.get(6)?, IPV6_BYTES);
    for _ in 0..MAX_EXTENSIONS {
        let header = packet.get(offset..)?;
        let bytes = match kind {
            ICMPV6 => return Some(Some(header)),
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(*header.get(1)?) + 1) * 8,
            // Receivers refuse neighbour discovery in fragments (RFC 6980).
            FRAGMENT if u16::from_be_bytes(array(header, 2)?) & !7 != 0 => return Some(None),
            FRAGMENT => 8,
            _ => return Some(None),
        };
        kind = *header.first()?;
        offset += bytes;
    }
    None
}

/// The address that an interface makes of its MAC address (RFC 4291, appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The bytes at `offset`, if all are there.
fn array<const COUNT: usize>(bytes: &[u8], offset: usize) -> Option<[u8; COUNT]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const OWN: &str = "fd00::2";

    fn filter(addresses: &[&str]) -> SourceFilter {
        SourceFilter::new(MAC, addresses.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn frame(source: [u8; 6], ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &source, &ethertype, packet].concat()
    }

    fn ipv4(source: &str) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
        frame(MAC.0, ETHERTYPE_IPV4, &packet)
    }

    fn arp(hardware: [u8; 6], sender: &str) -> Vec<u8> {
        let sender = sender.parse::<Ipv4Addr>().unwrap().octets();
        let packet = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &hardware, &sender, &[0; 10]].concat();
        frame(MAC.0, ETHERTYPE_ARP, &packet)
    }

    fn ipv6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_BYTES];
        (packet[0], packet[6]) = (0x60, next);
        packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(payload);
        frame(MAC.0, ETHERTYPE_IPV6, &packet)
    }

    fn advertisement(target: &str) -> Vec<u8> {
        let target = target.parse::<Ipv6Addr>().unwrap().octets();
        [&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0][..], &target].concat()
    }

    // Hostile case 22.

    #[test]
    fn another_mac_address_never_passes() {
        for filter in [filter(&[]), filter(&["10.0.0.2"])] {
            assert!(filter.allows(&ipv4("10.0.0.2")));
            assert!(!filter.allows(&frame([2, 0, 0, 0, 0, 2], ETHERTYPE_IPV4, &[0x45; 28])));
            assert!(!filter.allows(&[0xff; 6]));
        }
    }

    #[test]
    fn without_addresses_every_protocol_passes() {
        assert!(filter(&[]).allows(&frame(MAC.0, [0x88, 0xcc], &[])));
    }

    #[test]
    fn ipv4_comes_from_the_guests_addresses() {
        let filter = filter(&["10.0.0.2", "10.0.0.3"]);
        assert!(filter.allows(&ipv4("10.0.0.3")));
        for source in ["10.0.0.1", "0.0.0.0", "255.255.255.255"] {
            assert!(!filter.allows(&ipv4(source)), "{source}");
        }
        assert!(!filter.allows(&ipv4("10.0.0.2")[..20]), "cut short");
        assert!(!filter.allows(&ipv6("fd00::1", 6, &[])), "no address of that family");
    }

    #[test]
    fn arp_claims_no_other_address() {
        let filter = filter(&["10.0.0.2"]);
        assert!(filter.allows(&arp(MAC.0, "10.0.0.2")));
        assert!(filter.allows(&arp(MAC.0, "0.0.0.0")), "a probe");
        assert!(!filter.allows(&arp(MAC.0, "10.0.0.1")));
        assert!(!filter.allows(&arp([2, 0, 0, 0, 0, 9], "10.0.0.2")));
        let mut other = arp(MAC.0, "10.0.0.2");
        other[14 + 4] = 8;
        assert!(!filter.allows(&other), "another kind of address");
    }

    #[test]
    fn neighbour_discovery_claims_no_other_address() {
        let filter = filter(&[OWN]);
        let own = "fe80::ff:fe00:1";
        for source in [OWN, own, "::"] {
            assert!(filter.allows(&ipv6(source, ICMPV6, &[135; 24])), "{source}");
        }
        assert!(!filter.allows(&ipv6("::", 6, &[0; 20])), "TCP from nobody");
        assert!(!filter.allows(&ipv6("fe80::1", ICMPV6, &[135; 24])), "a neighbour's");
        assert!(filter.allows(&ipv6(OWN, ICMPV6, &advertisement(OWN))));
        assert!(!filter.allows(&ipv6(OWN, ICMPV6, &advertisement("fd00::1"))));
        assert!(!filter.allows(&ipv6(OWN, ICMPV6, &advertisement(OWN)[..20])), "cut short");
        for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
            assert!(!filter.allows(&ipv6(own, ICMPV6, &[kind; 40])));
        }
    }

    #[test]
    fn extension_headers_hide_nothing() {
        let filter = filter(&[OWN]);
        for (first, header) in [
            (HOP_BY_HOP, [ICMPV6, 0, 0, 0, 0, 0, 0, 0]),
            (DESTINATION, [ICMPV6, 0, 0, 0, 0, 0, 0, 0]),
            (FRAGMENT, [ICMPV6, 0, 0, 1, 0, 0, 0, 0]),
        ] {
            let with = |message: &[u8]| ipv6(OWN, first, &[&header[..], message].concat());
            assert!(filter.allows(&with(&advertisement(OWN))));
            assert!(!filter.allows(&with(&advertisement("fd00::1"))));
        }
        let endless = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(20);
        assert!(!filter.allows(&ipv6(OWN, HOP_BY_HOP, &endless)));
        assert!(!filter.allows(&ipv6(OWN, HOP_BY_HOP, &[ICMPV6, 255])), "beyond the frame");
    }

    #[test]
    fn other_protocols_and_tags_do_not_pass_beside_addresses() {
        let filter = filter(&["10.0.0.2"]);
        for ethertype in [[0x81, 0x00], [0x88, 0xa8], [0x88, 0xcc], [0, 60]] {
            assert!(!filter.allows(&frame(MAC.0, ethertype, &ipv4("10.0.0.2")[12..])));
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics_and_what_passes_is_the_guests(
            frame in prop::collection::vec(any::<u8>(), 0..150),
            ethertype in prop_oneof![
                Just(ETHERTYPE_ARP), Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6), any::<[u8; 2]>()
            ],
            own in any::<bool>(),
        ) {
            let mut frame = frame;
            if frame.len() >= 14 {
                frame[6..12].copy_from_slice(&MAC.0);
                frame[12..14].copy_from_slice(&ethertype);
            }
            if own && frame.len() >= 40 && ethertype == ETHERTYPE_IPV4 {
                frame[14] = 0x45;
                frame[26..30].copy_from_slice(&[10, 0, 0, 2]);
            }
            if filter(&["10.0.0.2", OWN]).allows(&frame) && ethertype == ETHERTYPE_IPV4 {
                prop_assert_eq!(&frame[26..30], &[10, 0, 0, 2]);
            }
        }
    }
}
