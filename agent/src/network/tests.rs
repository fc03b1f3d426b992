//! With interfaces of the kernel's, in network namespaces of the tests' own.

use caisson_agent_protocol::network::MacAddress;
use caisson_netlink::NLM_F_EXCL;
use netlink_packet_route::link::{InfoKind, LinkInfo};
use nix::sched::{CloneFlags, unshare};

use super::*;

const MAC: MacAddress = MacAddress([2, 0xca, 0, 0, 0, 7]);

/// Runs `test` in a new network namespace, with a socket to another that has an interface
/// with the address [`MAC`]; not at all, and says why, where there can be none.
fn between_namespaces(test: fn(&Netlink)) {
    let run = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: make a network namespace: {error}");
            return;
        }
        let outside = Netlink::open().unwrap();
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName("guest9".into()),
            LinkAttribute::Address(MAC.0.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        let made = outside.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
        if let Err(error) = made {
            eprintln!("skipped: make a pair of interfaces: {error}");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test(&outside);
    };
    // Namespaces are a thread's own.
    std::thread::spawn(run).join().unwrap();
}

fn find(namespace: &Netlink) -> Option<LinkMessage> {
    namespace.links().unwrap().into_iter().find(|link| has_address(link, MAC))
}

fn subnet(text: &str) -> Subnet {
    let (address, prefix) = text.split_once('/').unwrap();
    Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn to(destination: &str, gateway: Option<&str>) -> RoutePlan {
    RoutePlan {
        destination: subnet(destination),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        source: None,
        metric: None,
        onlink: false,
    }
}

fn eth0() -> InterfacePlan {
    let neighbour = |address: &str| NeighbourPlan {
        address: address.parse().unwrap(),
        mac: MacAddress([2, 0xca, 0, 0, 0, 1]),
    };
    InterfacePlan {
        mac: MAC,
        name: "eth0".into(),
        mtu: 1400,
        addresses: vec![subnet("10.7.0.2/24"), subnet("fd07::2/64")],
        routes: vec![
            RoutePlan { source: "10.7.0.2".parse().ok(), ..to("10.7.0.0/24", None) },
            RoutePlan { metric: Some(42), ..to("0.0.0.0/0", Some("10.7.0.1")) },
            to("fd07::/64", None),
            to("::/0", Some("fd07::1")),
            RoutePlan { onlink: true, ..to("10.8.0.0/16", Some("169.254.1.1")) },
        ],
        neighbours: vec![neighbour("10.7.0.1"), neighbour("fd07::1")],
    }
}

/// The unicast routes of the main table as `ip route` would write them, in its order.
fn routes(inside: &Netlink, family: AddressFamily) -> Vec<String> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    let told = inside.dump(RouteNetlinkMessage::GetRoute(question)).unwrap();
    let main = told.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route)
            if route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.protocol == RouteProtocol::Static =>
        {
            Some(route)
        }
        _ => None,
    });
    let write = |route: RouteMessage| {
        let mut line = String::new();
        let prefix = route.header.destination_prefix_length;
        for attribute in &route.attributes {
            line += &match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(to)) => format!("{to}/{prefix} "),
                RouteAttribute::Destination(RouteAddress::Inet6(to)) => format!("{to}/{prefix} "),
                RouteAttribute::Gateway(RouteAddress::Inet(via)) => format!("via {via} "),
                RouteAttribute::Gateway(RouteAddress::Inet6(via)) => format!("via {via} "),
                RouteAttribute::PrefSource(RouteAddress::Inet(from)) => format!("src {from} "),
                RouteAttribute::Priority(42) => "metric 42 ".to_owned(),
                _ => String::new(),
            };
        }
        line.trim_end().to_owned()
    };
    let mut lines: Vec<_> = main.map(write).collect();
    lines.sort();
    lines
}

#[test]
fn an_interface_moves_in_and_is_what_the_plan_says() {
    between_namespaces(|outside| {
        apply(&[eth0()], outside).unwrap();
        assert!(find(outside).is_none(), "it has left the VM's namespace");
        let inside = Netlink::open().unwrap();
        let link = find(&inside).unwrap();
        assert!(link.header.flags.contains(LinkFlags::Up));
        assert!(link.attributes.contains(&LinkAttribute::IfName("eth0".into())));
        assert!(link.attributes.contains(&LinkAttribute::Mtu(1400)));

        let told = inside.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).unwrap();
        for Subnet { address, prefix } in eth0().addresses {
            assert!(
                told.iter().any(|message| matches!(message, RouteNetlinkMessage::NewAddress(found)
                    if found.header.prefix_len == prefix
                        && found.attributes.contains(&AddressAttribute::Address(address)))),
                "{address}/{prefix} in {told:?}"
            );
        }
        assert_eq!(
            routes(&inside, AddressFamily::Inet),
            ["10.7.0.0/24 src 10.7.0.2", "10.8.0.0/16 via 169.254.1.1", "metric 42 via 10.7.0.1"]
        );
        let told = routes(&inside, AddressFamily::Inet6);
        assert!(
            told.contains(&"fd07::/64".into()) && told.contains(&"via fd07::1".into()),
            "{told:?}"
        );

        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let told = inside.dump(question).unwrap();
        let permanent = told.iter().filter(|message| {
            matches!(message, RouteNetlinkMessage::NewNeighbour(found)
                if found.header.state == NeighbourState::Permanent)
        });
        assert_eq!(permanent.count(), 2, "{told:?}");
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    between_namespaces(|outside| {
        let other = InterfacePlan { mac: MacAddress([2, 0, 0, 0, 0, 9]), ..eth0() };
        let error = apply(&[other], outside).unwrap_err();
        assert_eq!(
            error.message,
            "no network interface of the VM has eth0's MAC address 02:00:00:00:00:09"
        );
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
    });
}

#[test]
fn a_route_that_leads_nowhere_is_named_with_the_reason() {
    between_namespaces(|outside| {
        let plan = InterfacePlan { routes: vec![to("0.0.0.0/0", Some("192.0.2.1"))], ..eth0() };
        let error = apply(&[plan], outside).unwrap_err();
        assert_eq!(error.message, "make the route to 0.0.0.0/0 by eth0: network is unreachable");
    });
}
