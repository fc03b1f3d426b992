//! Makes interfaces of the VM the container's: moves them into its network namespace and
//! gives them what the plan says.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use caisson_agent_protocol::{
    AgentError, ErrorKind,
    network::{InterfacePlan, MacAddress, NeighbourPlan, RoutePlan, Subnet},
};
use caisson_netlink::{NLM_F_CREATE, NLM_F_REPLACE, Netlink};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteScope, RouteType,
    },
};

use crate::error::{At, OsError, wire};

/// The calling thread's network namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Moves the plan's interfaces from the namespace of `outside` into the caller's and sets
/// them up. What fails leaves the rest to the end of the caller's namespace.
pub fn apply(interfaces: &[InterfacePlan], outside: &Netlink) -> Result<(), AgentError> {
    let namespace = File::open(OWN_NAMESPACE).at(|| "open the container's network namespace")?;
    let inside = Netlink::open().at(|| "ask the kernel about network interfaces")?;
    for interface in interfaces {
        take(interface, outside, &namespace)?;
        set_up(interface, &inside)?;
    }
    Ok(())
}

fn index_of(interface: &InterfacePlan, namespace: &Netlink) -> Result<u32, AgentError> {
    let links = namespace.links().at(|| "list the network interfaces")?;
    let Some(link) = links.into_iter().find(|link| has_address(link, interface.mac)) else {
        let (name, mac) = (&interface.name, interface.mac);
        let message = format!("no network interface of the VM has {name}'s MAC address {mac}");
        return Err(wire(ErrorKind::InvalidArgument, message));
    };
    Ok(link.header.index)
}

fn has_address(link: &LinkMessage, mac: MacAddress) -> bool {
    let is = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(bytes) if *bytes == mac.0);
    link.attributes.iter().any(is)
}

fn take(interface: &InterfacePlan, outside: &Netlink, namespace: &File) -> Result<(), AgentError> {
    let mut link = LinkMessage::default();
    link.header.index = index_of(interface, outside)?;
    link.attributes = vec![
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        // In the same step: its name of now may be another's there.
        LinkAttribute::IfName(interface.name.clone()),
    ];
    let moved = outside.request(RouteNetlinkMessage::SetLink(link), 0);
    moved.at(|| format!("move {} into the container's network namespace", interface.name))?;
    Ok(())
}

fn set_up(interface: &InterfacePlan, inside: &Netlink) -> Result<(), AgentError> {
    let name = &interface.name;
    let index = index_of(interface, inside)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    // The name once more: some kernels look at it in the move only if it is taken.
    link.attributes = vec![LinkAttribute::IfName(name.clone()), LinkAttribute::Mtu(interface.mtu)];
    let named = inside.request(RouteNetlinkMessage::SetLink(link), 0);
    named.at(|| format!("name an interface {name} and give it an MTU of {}", interface.mtu))?;
    addresses_of_the_plan_alone(name)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let up = inside.request(RouteNetlinkMessage::SetLink(link), 0);
    up.at(|| format!("bring {name} up"))?;
    let add = |message| inside.request(message, NLM_F_CREATE | NLM_F_REPLACE);
    for subnet in &interface.addresses {
        add(address(*subnet, index)).at(|| format!("give {name} the address {subnet}"))?;
    }
    for neighbour in &interface.neighbours {
        add(permanent(*neighbour, index))
            .at(|| format!("tell {name} of its neighbour {}", neighbour.address))?;
    }
    for wanted in &interface.routes {
        add(route(wanted, index))
            .at(|| format!("make the route to {} by {name}", wanted.destination))?;
    }
    Ok(())
}

/// Has the kernel make no IPv6 address by itself, and take no routers' word for addresses
/// and routes: what is right was decided outside.
fn addresses_of_the_plan_alone(name: &str) -> Result<(), AgentError> {
    const NONE: &str = "1";
    for (setting, value) in [("addr_gen_mode", NONE), ("accept_ra", "0")] {
        match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value) {
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written.at(|| format!("set {setting} of {name} to {value}"))?,
        }
    }
    Ok(())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address(subnet: Subnet, index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(subnet.address);
    message.header.prefix_len = subnet.prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(subnet.address),
        AddressAttribute::Address(subnet.address),
        // The routes are the plan's; and the engine has long made sure that nobody else has
        // the address.
        AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Nodad),
    ];
    if let (IpAddr::V4(address), 0..=30) = (subnet.address, subnet.prefix) {
        let hosts = u32::MAX >> subnet.prefix;
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    RouteNetlinkMessage::NewAddress(message)
}

fn permanent(neighbour: NeighbourPlan, index: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let address = match neighbour.address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn route(plan: &RoutePlan, index: u32) -> RouteNetlinkMessage {
    let destination = plan.destination;
    let on_link = destination.address.is_ipv4() && plan.gateway.is_none();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(destination.address),
        destination_prefix_length: destination.prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if on_link { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        flags: if plan.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(index)];
    if destination.prefix > 0 {
        let address = RouteAddress::from(destination.address);
        message.attributes.push(RouteAttribute::Destination(address));
    }
    message.attributes.extend(plan.gateway.map(|to| RouteAttribute::Gateway(to.into())));
    message.attributes.extend(plan.source.map(|from| RouteAttribute::PrefSource(from.into())));
    message.attributes.extend(plan.metric.map(RouteAttribute::Priority));
    RouteNetlinkMessage::NewRoute(message)
}

/// A socket to the VM's network namespace, where a plan needs one.
pub fn outside(interfaces: &[InterfacePlan]) -> Result<Option<Netlink>, OsError> {
    let wanted = !interfaces.is_empty();
    wanted.then(Netlink::open).transpose().at(|| "ask the kernel about network interfaces")
}
