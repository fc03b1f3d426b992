//! Caisson's own network: containers on one bridge of the host, behind the host's addresses.
//!
//! ```text
//!   the container's namespace          the host
//!     eth0 10.89.x.y/16 ═══════════ cveth0 ─┐
//!                                            ├─ caisson0 10.89.0.1/16 ── masquerade ── the world
//!     eth0 10.89.x.z/16 ═══════════ cveth1 ─┘
//! ```
//!
//! The bridge and the rules stay, as they are the same for all. What is one container's goes
//! by itself with its shim and its vmm, however they end: its address is a lock, its namespace
//! has no name, and the pair of interfaces goes with the namespace.

mod masquerade;

use std::{fs, io, net::Ipv4Addr, path::Path};

use caisson_failpoints::{hit, steps};
use caisson_netlink::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{NetworkError, namespace::Namespace};
use crate::number_lease::NumberLease;

/// The bridge's name on the host.
pub const BRIDGE: &str = "caisson0";

/// Its network, 10.89.0.0/16, and its own address in it.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 0);
const PREFIX: u8 = 16;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);

/// Of containers: all but the network's, the bridge's and the one for everybody.
const FIRST: u32 = 2;
const COUNT: u32 = (1 << (32 - PREFIX)) - FIRST - 1;

/// One for the whole host, as the bridge is.
pub const ADDRESSES: &str = "/run/caisson/caisson0.lock";

/// The end on the bridge; the kernel puts the first free number at the end.
const OUTER: &str = "cveth%d";

/// An address on the bridge that no other container has, until it is dropped.
#[derive(Debug)]
pub struct Address {
    pub ip: Ipv4Addr,
    _lease: NumberLease,
}

impl Address {
    /// Takes one for container `id`, by a lock in `file` ([`ADDRESSES`]).
    pub fn take(file: &Path, id: &str) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Bridge { action: "take an address", source };
        hit(&steps::SHIM_BRIDGE_ADDRESS).map_err(failed)?;
        let lease = NumberLease::take(file, COUNT, id).map_err(failed)?;
        let all = || io::Error::new(io::ErrorKind::ResourceBusy, "all are in use");
        let lease = lease.ok_or_else(|| failed(all()))?;
        Ok(Self {
            ip: Ipv4Addr::from_bits(NETWORK.to_bits() + FIRST + lease.number),
            _lease: lease,
        })
    }

    /// Unique on the bridge as the address is.
    fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.ip.octets();
        [2, 0xca, a, b, c, d]
    }
}

/// A new namespace with `eth0` on the bridge of the calling thread's.
pub(super) fn join(address: &Address) -> Result<Namespace, NetworkError> {
    let failed = |action| move |source| NetworkError::Bridge { action, source };
    let host = Netlink::open().map_err(failed("ask the kernel"))?;
    let bridge = ensure_bridge(&host).map_err(failed("make the bridge caisson0"))?;
    forward().map_err(failed("have the host forward (net.ipv4.ip_forward)"))?;
    hit(&steps::SHIM_BRIDGE_MASQUERADE)
        .and_then(|()| masquerade::ensure(NETWORK, PREFIX, BRIDGE))
        .map_err(failed(
            "masquerade what leaves the host, with the kernel's nf_tables and nft_masq",
        ))?;
    let namespace = Namespace::new()?;
    let made = namespace.enter(|| {
        let inside = Netlink::open()?;
        hit(&steps::SHIM_BRIDGE_JOIN)?;
        make_pair(&host, bridge, address, &namespace)?;
        let eth0 = index_of(&inside, "eth0")?.ok_or(io::ErrorKind::NotFound)?;
        give_address(&inside, eth0, address.ip)?;
        bring_up(&inside, eth0)?;
        inside.request(default_route(eth0), NLM_F_CREATE)
    })?;
    made.map_err(failed("connect the container to the bridge"))?;
    Ok(namespace)
}

/// Makes what is missing; several may at once.
fn ensure_bridge(host: &Netlink) -> io::Result<u32> {
    let index = match index_of(host, BRIDGE)? {
        Some(index) => index,
        None => {
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName(BRIDGE.to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            match host.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            index_of(host, BRIDGE)?.ok_or(io::ErrorKind::NotFound)?
        }
    };
    give_address(host, index, GATEWAY)?;
    bring_up(host, index)?;
    Ok(index)
}

fn forward() -> io::Result<()> {
    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(SETTING)?.trim() {
        "1" => Ok(()),
        _ => fs::write(SETTING, "1"),
    }
}

fn make_pair(
    host: &Netlink,
    bridge: u32,
    address: &Address,
    namespace: &Namespace,
) -> io::Result<()> {
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Address(address.mac().to_vec()),
        LinkAttribute::NetNsFd(namespace.raw_fd()),
    ];
    let mut outer = LinkMessage::default();
    outer.header.flags = LinkFlags::Up;
    outer.header.change_mask = LinkFlags::Up;
    outer.attributes = vec![
        LinkAttribute::IfName(OUTER.to_owned()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner))),
        ]),
    ];
    host.request(RouteNetlinkMessage::NewLink(outer), NLM_F_CREATE | NLM_F_EXCL)
}

fn index_of(netlink: &Netlink, name: &str) -> io::Result<Option<u32>> {
    let is_named = |link: &LinkMessage| {
        let is = |it: &LinkAttribute| matches!(it, LinkAttribute::IfName(found) if found == name);
        link.attributes.iter().any(is)
    };
    Ok(netlink.links()?.into_iter().find(is_named).map(|link| link.header.index))
}

fn give_address(netlink: &Netlink, index: u32, ip: Ipv4Addr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = PREFIX;
    message.header.index = index;
    let broadcast = Ipv4Addr::from_bits(NETWORK.to_bits() | u32::MAX >> PREFIX);
    message.attributes = vec![
        AddressAttribute::Local(ip.into()),
        AddressAttribute::Address(ip.into()),
        AddressAttribute::Broadcast(broadcast),
    ];
    netlink.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn bring_up(netlink: &Netlink, index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(link), 0)
}

fn default_route(eth0: u32) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Gateway(GATEWAY.into()), RouteAttribute::Oif(eth0)];
    RouteNetlinkMessage::NewRoute(route)
}
