//! The routes of a network namespace's main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use caisson_agent_protocol::network::{RoutePlan, Subnet};
use caisson_netlink::Netlink;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
        RouteType,
    },
};

use super::{NetworkError, asking, interfaces::Interface};

/// Gives each interface its routes: those on the link before those behind a gateway.
pub(super) fn read(netlink: &Netlink, interfaces: &mut [Interface]) -> Result<(), NetworkError> {
    let question = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    for message in netlink.dump(question).map_err(asking("routes"))? {
        let RouteNetlinkMessage::NewRoute(found) = message else { continue };
        if !is_of_main_table(&found.header) {
            continue;
        }
        let Some(destination) = destination(&found) else { continue };
        let through = found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let interface = interfaces.iter_mut().find(|it| Some(it.index) == through);
        let name = interface.as_ref().map_or("lo", |it| &it.plan.name);
        if let Some(what) = obstacle(&found) {
            let problem = format!("the route to {destination} {what}, which a guest is not given");
            return Err(NetworkError::Unsupported { name: name.to_owned(), problem });
        }
        if let Some(interface) = interface {
            interface.plan.routes.push(route(&found, destination));
        }
    }
    for interface in interfaces {
        interface.plan.routes.sort_by_key(|route| route.gateway.is_some());
    }
    Ok(())
}

fn is_of_main_table(header: &RouteHeader) -> bool {
    let is_ip = [AddressFamily::Inet, AddressFamily::Inet6].contains(&header.address_family);
    // What a router or a lookup has put there for a while is no setting.
    let passing =
        header.flags.contains(RouteFlags::Cloned) || header.protocol == RouteProtocol::IcmpRedirect;
    is_ip && header.table == RouteHeader::RT_TABLE_MAIN && !passing
}

/// What of a route would be lost on the way.
fn obstacle(message: &RouteMessage) -> Option<&'static str> {
    if message.header.kind != RouteType::Unicast {
        return Some("leads to nobody (a blackhole or the like)");
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(_) => Some("has several gateways"),
        RouteAttribute::Via(_) => Some("has a gateway of another family"),
        RouteAttribute::Encap(_) => Some("encapsulates packets"),
        RouteAttribute::Source(_) => Some("is for certain senders only"),
        _ => None,
    })
}

/// `None` for an address that is of no family known here.
fn destination(message: &RouteMessage) -> Option<Subnet> {
    let prefix = message.header.destination_prefix_length;
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    });
    let address = match (attribute, message.header.address_family) {
        (Some(address), _) => ip(address)?,
        (None, AddressFamily::Inet) => Ipv4Addr::UNSPECIFIED.into(),
        (None, _) => Ipv6Addr::UNSPECIFIED.into(),
    };
    Some(Subnet { address, prefix })
}

fn route(message: &RouteMessage, destination: Subnet) -> RoutePlan {
    let onlink = message.header.flags.contains(RouteFlags::Onlink);
    let mut route = RoutePlan { destination, gateway: None, source: None, metric: None, onlink };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            _ => {}
        }
    }
    // Without a gateway it says nothing.
    route.onlink &= route.gateway.is_some();
    route
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
