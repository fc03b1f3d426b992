//! What interfaces must be before anything is done for them: checked by the shim, which
//! read them where an engine wrote, and by the agent.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use super::{InterfacePlan, MacAddress, RoutePlan, Subnet};

/// As many network devices as a VM may have.
pub const MAX_INTERFACES: usize = 8;
/// Per interface, as many as the vmm compares each frame with.
pub const MAX_ADDRESSES: usize = 64;
/// Per interface.
pub const MAX_ROUTES: usize = 256;
/// Per interface.
pub const MAX_NEIGHBOURS: usize = 1024;

/// The kernel's `IFNAMSIZ`, without the final NUL.
const MAX_NAME_BYTES: usize = 15;
/// The least that IPv4 allows, and what a frame's length can say.
const MTUS: RangeInclusive<u32> = 68..=65535;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkPlanError {
    #[error("{count} {what} are more than {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("{0:?} is no name of a network interface of the container's own")]
    Name(String),
    #[error("{what} {value} stands there twice")]
    Twice { what: &'static str, value: String },
    #[error("the MAC address {0} is no single interface's")]
    Mac(MacAddress),
    #[error("{name} has an MTU of {mtu}; it is {} to {}", MTUS.start(), MTUS.end())]
    Mtu { name: String, mtu: u32 },
    #[error("{name} has {address}, which is no host's address in a network")]
    Address { name: String, address: Subnet },
    #[error("{name} has the route to {destination}, which is no network or mixes IPv4 and IPv6")]
    Route { name: String, destination: Subnet },
    #[error("{name} has the neighbour {address}, which is no host's address")]
    Neighbour { name: String, address: IpAddr },
}

/// Checks the interfaces of one container.
pub fn check(interfaces: &[InterfacePlan]) -> Result<(), NetworkPlanError> {
    within("network interfaces", interfaces.len(), MAX_INTERFACES)?;
    let (mut names, mut macs) = (HashSet::new(), HashSet::new());
    for interface in interfaces {
        check_one(interface)?;
        if !names.insert(&interface.name) {
            let value = interface.name.clone();
            return Err(NetworkPlanError::Twice { what: "the interface", value });
        }
        if !macs.insert(interface.mac) {
            let value = interface.mac.to_string();
            return Err(NetworkPlanError::Twice { what: "the MAC address", value });
        }
    }
    Ok(())
}

fn within(what: &'static str, count: usize, limit: usize) -> Result<(), NetworkPlanError> {
    if count <= limit { Ok(()) } else { Err(NetworkPlanError::TooMany { what, count, limit }) }
}

fn check_one(interface: &InterfacePlan) -> Result<(), NetworkPlanError> {
    within("addresses of an interface", interface.addresses.len(), MAX_ADDRESSES)?;
    within("routes of an interface", interface.routes.len(), MAX_ROUTES)?;
    within("neighbours of an interface", interface.neighbours.len(), MAX_NEIGHBOURS)?;
    if !is_name(&interface.name) {
        return Err(NetworkPlanError::Name(interface.name.clone()));
    }
    let name = || interface.name.clone();
    unicast(interface.mac)?;
    if !MTUS.contains(&interface.mtu) {
        return Err(NetworkPlanError::Mtu { name: name(), mtu: interface.mtu });
    }
    let bad = |subnet: &&Subnet| !fits(subnet) || !is_host(subnet.address);
    if let Some(&address) = interface.addresses.iter().find(bad) {
        return Err(NetworkPlanError::Address { name: name(), address });
    }
    if let Some(route) = interface.routes.iter().find(|route| !is_route(route)) {
        let destination = route.destination;
        return Err(NetworkPlanError::Route { name: name(), destination });
    }
    for neighbour in &interface.neighbours {
        unicast(neighbour.mac)?;
        if !is_host(neighbour.address) {
            let address = neighbour.address;
            return Err(NetworkPlanError::Neighbour { name: name(), address });
        }
    }
    Ok(())
}

/// The kernel's own rule (`dev_valid_name`), within printable ASCII. A `%` would make the
/// kernel choose a number.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(plain)
        && !["lo", ".", "..", "all", "default"].contains(&name)
}

fn unicast(mac: MacAddress) -> Result<(), NetworkPlanError> {
    if mac.0[0] & 1 == 0 && mac.0 != [0; 6] { Ok(()) } else { Err(NetworkPlanError::Mac(mac)) }
}

fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

fn fits(subnet: &Subnet) -> bool {
    subnet.prefix <= if subnet.address.is_ipv4() { 32 } else { 128 }
}

fn is_route(route: &RoutePlan) -> bool {
    let family = route.destination.address.is_ipv4();
    let mut others = route.gateway.iter().chain(&route.source);
    // The kernel refuses a destination with bits behind its prefix.
    fits(&route.destination)
        && !has_host_bits(&route.destination)
        && others.all(|address| address.is_ipv4() == family && is_host(*address))
        && (route.gateway.is_some() || !route.onlink)
}

fn has_host_bits(subnet: &Subnet) -> bool {
    let (bits, width) = match subnet.address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, subnet.prefix),
        IpAddr::V6(address) => (address.to_bits(), subnet.prefix),
    };
    bits.checked_shl(width.into()).is_some_and(|rest| rest != 0)
}

#[cfg(test)]
mod tests {
    use super::{super::NeighbourPlan, *};

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn route(to: &str, gateway: Option<&str>) -> RoutePlan {
        RoutePlan {
            destination: subnet(to),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
            metric: None,
            onlink: false,
        }
    }

    fn eth0() -> InterfacePlan {
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        InterfacePlan {
            mac,
            name: "eth0".into(),
            mtu: 1500,
            addresses: vec![subnet("10.0.0.2/24"), subnet("fd00::2/128")],
            routes: vec![
                route("10.0.0.0/24", None),
                route("0.0.0.0/0", Some("10.0.0.1")),
                route("::/0", Some("fe80::1")),
                route("10.9.9.9/32", None),
                route("fd00::1/128", None),
            ],
            neighbours: vec![NeighbourPlan { address: "10.0.0.1".parse().unwrap(), mac }],
        }
    }

    fn refused(change: impl FnOnce(&mut InterfacePlan)) -> NetworkPlanError {
        let mut interface = eth0();
        change(&mut interface);
        check(&[interface]).unwrap_err()
    }

    #[test]
    fn an_ordinary_interface_passes() {
        check(&[]).unwrap();
        check(&[eth0()]).unwrap();
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for bad in ["", "lo", "..", "all", "a/b", "a:1", "eth%d", "a b", "é", "sixteen-letters-"] {
            let error = refused(|interface| interface.name = bad.into());
            assert_eq!(error, NetworkPlanError::Name(bad.into()));
        }
    }

    #[test]
    fn names_and_macs_are_each_once() {
        let twice = check(&[eth0(), eth0()]).unwrap_err().to_string();
        assert_eq!(twice, "the interface eth0 stands there twice");
        let other = InterfacePlan { name: "eth1".into(), ..eth0() };
        let twice = check(&[eth0(), other]).unwrap_err().to_string();
        assert_eq!(twice, "the MAC address 02:00:00:00:00:01 stands there twice");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        refused(|interface| interface.mtu = 67);
        refused(|interface| interface.mtu = 65536);
        refused(|interface| interface.mac = MacAddress([1, 0, 0, 0, 0, 1]));
        refused(|interface| interface.mac = MacAddress([0; 6]));
        refused(|interface| interface.neighbours[0].mac = MacAddress([0xff; 6]));
    }

    #[test]
    fn addresses_are_hosts_and_routes_lead_to_networks_of_their_family() {
        for bad in ["0.0.0.0/0", "224.0.0.1/4", "ff02::1/8", "10.0.0.1/33", "fd00::1/129"] {
            refused(|interface| interface.addresses = vec![subnet(bad)]);
        }
        for (to, gateway) in [
            ("10.0.0.1/24", None),
            ("fd00::1/64", None),
            ("10.0.0.0/33", None),
            ("0.0.0.0/0", Some("fe80::1")),
            ("::/0", Some("::")),
        ] {
            refused(|interface| interface.routes = vec![route(to, gateway)]);
        }
        refused(|interface| interface.routes[0].onlink = true);
        refused(|interface| interface.routes[0].source = Some("fd00::2".parse().unwrap()));
        refused(|interface| interface.neighbours[0].address = "::".parse().unwrap());
    }

    #[test]
    fn counts_are_bounded() {
        let many = vec![eth0(); MAX_INTERFACES + 1];
        assert_eq!(check(&many).unwrap_err().to_string(), "9 network interfaces are more than 8");
        refused(|interface| interface.addresses = vec![subnet("10.0.0.2/24"); MAX_ADDRESSES + 1]);
        refused(|interface| interface.routes = vec![route("10.0.0.0/24", None); MAX_ROUTES + 1]);
        refused(|interface| {
            interface.neighbours = vec![interface.neighbours[0]; MAX_NEIGHBOURS + 1];
        });
    }
}
