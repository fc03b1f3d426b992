//! What stands in a network namespace, as plans for the guest.

use std::net::IpAddr;

use caisson_agent_protocol::network::{InterfacePlan, MacAddress, NeighbourPlan, Subnet};
use caisson_netlink::Netlink;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{NetworkError, asking, routes};

/// An interface that can be redirected.
#[derive(Debug)]
pub(super) struct Interface {
    /// Its number in its namespace.
    pub(super) index: u32,
    pub(super) plan: InterfacePlan,
}

/// The interfaces that are up, but for the loopback's. Those that are down are the kernel's
/// (it puts ends of tunnels into each new namespace), or nobody's yet.
pub(super) fn read(netlink: &Netlink) -> Result<Vec<Interface>, NetworkError> {
    let links = netlink.links().map_err(asking("network interfaces"))?;
    let is_wanted = |link: &&LinkMessage| {
        link.header.flags.contains(LinkFlags::Up)
            && !link.header.flags.contains(LinkFlags::Loopback)
    };
    let mut found: Vec<_> =
        links.iter().filter(is_wanted).map(interface).collect::<Result<_, _>>()?;
    addresses(netlink, &mut found)?;
    neighbours(netlink, &mut found)?;
    routes::read(netlink, &mut found)?;
    Ok(found)
}

/// The interface, its addresses and routes still to come.
fn interface(link: &LinkMessage) -> Result<Interface, NetworkError> {
    let (mut name, mut mac, mut mtu) = (String::new(), None, 0);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name.clone_from(found),
            LinkAttribute::Address(found) => mac = <[u8; 6]>::try_from(found.as_slice()).ok(),
            LinkAttribute::Mtu(found) => mtu = *found,
            _ => {}
        }
    }
    if let Some(problem) = obstacle(link) {
        return Err(NetworkError::Unsupported { name, problem });
    }
    let Some(mac) = mac.map(MacAddress) else {
        let problem = "it has no MAC address".to_owned();
        return Err(NetworkError::Unsupported { name, problem });
    };
    let (addresses, routes, neighbours) = Default::default();
    let plan = InterfacePlan { mac, name, mtu, addresses, routes, neighbours };
    Ok(Interface { index: link.header.index, plan })
}

/// Why the frames of an interface cannot be the guest's.
fn obstacle(link: &LinkMessage) -> Option<String> {
    let kind = kind(link);
    let shown = kind.map_or_else(|| "a device of its own".to_owned(), ToString::to_string);
    if link.header.link_layer_type != LinkLayerType::Ether {
        return Some(format!("it carries no Ethernet frames ({shown}), which a guest's do"));
    }
    if link.header.flags.contains(LinkFlags::Noarp) {
        let why = "it does without MAC addresses, which a guest needs";
        return Some(format!("{why} ({shown}; ipvlan can, in mode l2)"));
    }
    let (mut master, mut lower, mut is_lower_elsewhere) = (None, None, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_lower_elsewhere = true,
            _ => {}
        }
    }
    // A veth's is its other end; a tunnel's may be nobody, or itself.
    let stands_on_it = !is_lower_elsewhere && kind != Some(&InfoKind::Veth);
    let lower = lower.filter(|index| stands_on_it && ![0, link.header.index].contains(index));
    let (what, index) = match (master, lower) {
        (Some(index), _) => ("a part", index),
        (None, Some(index)) => ("a layer", index),
        (None, None) => return None,
    };
    Some(format!(
        "it is {what} of interface {index} of the same network namespace ({shown}); each interface must stand for itself"
    ))
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}

fn addresses(netlink: &Netlink, interfaces: &mut [Interface]) -> Result<(), NetworkError> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in netlink.dump(question).map_err(asking("network addresses"))? {
        let RouteNetlinkMessage::NewAddress(found) = message else { continue };
        // Somebody else has it.
        if found.header.flags.contains(AddressHeaderFlags::Dadfailed) {
            continue;
        }
        let interface = interfaces.iter_mut().find(|it| it.index == found.header.index);
        if let (Some(interface), Some(subnet)) = (interface, subnet(&found)) {
            interface.plan.addresses.push(subnet);
        }
    }
    Ok(())
}

/// On a link to one peer the prefix is the peer's, to whom a route leads.
fn subnet(message: &AddressMessage) -> Option<Subnet> {
    let (mut local, mut network) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => network = Some(*address),
            _ => {}
        }
    }
    let address = local.or(network)?;
    let has_peer = network.is_some_and(|network| network != address);
    let whole = if address.is_ipv4() { 32 } else { 128 };
    Some(Subnet { address, prefix: if has_peer { whole } else { message.header.prefix_len } })
}

/// Those that somebody wrote down; the others are asked for again.
fn neighbours(netlink: &Netlink, interfaces: &mut [Interface]) -> Result<(), NetworkError> {
    let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    for message in netlink.dump(question).map_err(asking("neighbours"))? {
        let RouteNetlinkMessage::NewNeighbour(found) = message else { continue };
        if found.header.state != NeighbourState::Permanent {
            continue;
        }
        let interface = interfaces.iter_mut().find(|it| it.index == found.header.ifindex);
        if let (Some(interface), Some(neighbour)) = (interface, neighbour(&found)) {
            interface.plan.neighbours.push(neighbour);
        }
    }
    Ok(())
}

fn neighbour(message: &NeighbourMessage) -> Option<NeighbourPlan> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::from(*found));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::from(*found));
            }
            NeighbourAttribute::LinkLayerAddress(found) => {
                mac = <[u8; 6]>::try_from(found.as_slice()).ok();
            }
            _ => {}
        }
    }
    Some(NeighbourPlan { address: address?, mac: MacAddress(mac?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(layer: LinkLayerType, flags: LinkFlags, attributes: &[LinkAttribute]) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = 2;
        link.header.link_layer_type = layer;
        link.header.flags = LinkFlags::Up | flags;
        link.attributes = attributes.to_vec();
        link
    }

    fn of_kind(kind: InfoKind) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])
    }

    #[test]
    fn interfaces_whose_frames_cannot_be_a_guests_are_told_apart() {
        let none = LinkFlags::empty();
        let ether = |attributes: &[LinkAttribute]| link(LinkLayerType::Ether, none, attributes);
        let (elsewhere, below) = (LinkAttribute::LinkNetNsId(0), LinkAttribute::Link(7));
        for good in [
            ether(&[]),
            ether(&[of_kind(InfoKind::Veth), below.clone()]),
            ether(&[of_kind(InfoKind::MacVlan), below.clone(), elsewhere.clone()]),
        ] {
            assert_eq!(obstacle(&good), None, "{good:?}");
        }
        for (bad, words) in [
            (
                link(LinkLayerType::None, none, &[of_kind(InfoKind::Wireguard)]),
                "no Ethernet frames (wireguard)",
            ),
            (
                link(LinkLayerType::Ether, LinkFlags::Noarp, &[of_kind(InfoKind::IpVlan)]),
                "ipvlan can, in mode l2",
            ),
            (ether(&[of_kind(InfoKind::Vlan), below.clone()]), "it is a layer of interface 7"),
            (
                ether(&[of_kind(InfoKind::Veth), below, elsewhere, LinkAttribute::Controller(5)]),
                "it is a part of interface 5",
            ),
        ] {
            let problem = obstacle(&bad).unwrap();
            assert!(problem.contains(words), "{problem}");
        }
    }
}
