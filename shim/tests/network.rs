//! An engine's network becomes taps, and frames pass them: with the kernel's interfaces, in
//! namespaces of the tests' own.

#[allow(unreachable_pub, dead_code, reason = "shared by test binaries")]
mod support;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    time::Duration,
};

use caisson_agent_protocol::network::{
    InterfacePlan, MacAddress, NeighbourPlan, RoutePlan, Subnet,
};
use caisson_netlink::{NLM_F_CREATE, Netlink};
use caisson_shim::{
    kind::ErrorKind,
    network::{self, Network, NetworkError, Tap},
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::InfoKind,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use support::engine::{self, Engine, MAC, MTU, OUTER_MAC, give_address, index, tell_of_neighbour};

const OUTER: [u8; 4] = [10, 9, 0, 1];
const INNER: [u8; 4] = [10, 9, 0, 2];
const PORT: u16 = 4000;
/// A tap's until another is asked for: without `num_buffers`.
const HEADER_BYTES: usize = 10;

fn default_route(gateway: &str, kind: RouteType, interface: u32) -> RouteMessage {
    let gateway: std::net::IpAddr = gateway.parse().unwrap();
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: engine::family(gateway),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind,
        ..RouteHeader::default()
    };
    if kind == RouteType::Unicast {
        route.attributes =
            vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(interface)];
    }
    route
}

fn add_route(netlink: &Netlink, route: RouteMessage) {
    netlink.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE).unwrap();
}

fn with_addresses(engine: &Engine) {
    engine.inside(|netlink| {
        give_address(netlink, "eth0", "10.9.0.2", 24);
        give_address(netlink, "eth0", "fd09::2", 64);
        let eth0 = index(netlink, "eth0");
        add_route(netlink, default_route("10.9.0.1", RouteType::Unicast, eth0));
        add_route(netlink, default_route("fd09::1", RouteType::Unicast, eth0));
        tell_of_neighbour(netlink, "eth0", "10.9.0.1", OUTER_MAC);
    });
    engine.outside(|netlink| {
        give_address(netlink, "out0", "10.9.0.1", 24);
        tell_of_neighbour(netlink, "out0", "10.9.0.2", MAC);
    });
}

fn subnet(text: &str) -> Subnet {
    let (address, prefix) = text.split_once('/').unwrap();
    Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn eth0(network: &Network) -> InterfacePlan {
    let plans: Vec<_> = network.plans().collect();
    assert_eq!(plans.len(), 1, "{plans:?}");
    plans[0].clone()
}

#[test]
fn an_interface_is_read_as_the_engine_made_it() {
    let Some(engine) = Engine::new() else { return };
    with_addresses(&engine);
    let eth0 = eth0(&Network::read(&engine.path()).unwrap());
    assert_eq!((eth0.name.as_str(), eth0.mac, eth0.mtu), ("eth0", MacAddress(MAC), MTU));
    // The kernel has made a link-local one by itself.
    for address in ["10.9.0.2/24", "fd09::2/64", "fe80::ca:ff:fe00:7/64"] {
        assert!(eth0.addresses.contains(&subnet(address)), "{address}: {:?}", eth0.addresses);
    }
    let on_link = RoutePlan {
        destination: subnet("10.9.0.0/24"),
        gateway: None,
        source: "10.9.0.2".parse().ok(),
        metric: None,
        onlink: false,
    };
    let default = |to: &str, gateway: &str| RoutePlan {
        destination: subnet(to),
        gateway: gateway.parse().ok(),
        source: None,
        metric: None,
        onlink: false,
    };
    let position = |wanted: &RoutePlan| {
        let found = eth0.routes.iter().position(|route| {
            (route.destination, route.gateway, route.source)
                == (wanted.destination, wanted.gateway, wanted.source)
        });
        found.unwrap_or_else(|| panic!("{wanted:?} in {:?}", eth0.routes))
    };
    assert!(position(&on_link) < position(&default("0.0.0.0/0", "10.9.0.1")));
    position(&default("::/0", "fd09::1"));
    let neighbour =
        NeighbourPlan { address: "10.9.0.1".parse().unwrap(), mac: MacAddress(OUTER_MAC) };
    assert_eq!(eth0.neighbours, [neighbour]);
}

#[test]
fn a_namespace_with_the_loopback_interface_alone_has_no_interfaces() {
    let Some(engine) = Engine::new() else { return };
    let empty = Engine::new().unwrap();
    empty.inside(|netlink| {
        let eth0 = index(netlink, "eth0");
        let mut link = netlink_packet_route::link::LinkMessage::default();
        link.header.index = eth0;
        netlink.request(RouteNetlinkMessage::DelLink(link), 0).unwrap();
        // Of a tunnel that nobody uses: it is down.
        engine::make(netlink, "spare0", InfoKind::Bridge, None);
    });
    assert_eq!(Network::read(&empty.path()).unwrap().plans().count(), 0);
    assert_eq!(Network::read(&engine.path()).unwrap().plans().count(), 1);
}

fn connect(engine: &Engine, mark: u16) -> Result<(Vec<Tap>, network::Place), NetworkError> {
    let network = Network::read(&engine.path())?;
    let place = network.place(mark).unwrap();
    Ok((network.connect(mark)?.taps, place))
}

/// Reads frames from the tap until one ends so.
fn receive(tap: &mut Tap, end: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 2000];
    loop {
        let mut poll = libc::pollfd { fd: tap.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "no frame comes");
        let bytes = tap.file.read(&mut frame).unwrap();
        if frame[..bytes].ends_with(end) {
            return frame[HEADER_BYTES..bytes].to_vec();
        }
    }
}

/// A datagram from the guest to the outside, without a UDP checksum.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let udp_bytes = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_bytes).to_be_bytes());
    ip.extend_from_slice(&[INNER, OUTER].concat());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [PORT, PORT, udp_bytes, 0].map(u16::to_be_bytes).concat();
    [&[0; HEADER_BYTES][..], &OUTER_MAC, &MAC, &[8, 0], &ip, &udp, payload].concat()
}

#[test]
fn frames_pass_between_an_interface_and_its_tap_and_nothing_is_left() {
    let Some(engine) = Engine::new() else { return };
    with_addresses(&engine);
    let (mut taps, place) = connect(&engine, 7).unwrap();
    let [tap] = &mut taps[..] else { panic!("{taps:?}") };
    assert_eq!(tap.interface.name, "eth0");
    let socket = engine.outside(|_| UdpSocket::bind((Ipv4Addr::from(OUTER), PORT)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"to the guest", (Ipv4Addr::from(INNER), PORT)).unwrap();
    let frame = receive(tap, b"to the guest");
    assert_eq!(frame[..6], MAC);
    assert_eq!(frame[6..12], OUTER_MAC);

    tap.file.write_all(&datagram(b"to the outside")).unwrap();
    let mut buffer = [0; 100];
    let (bytes, sender) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..bytes], b"to the outside");
    assert_eq!(sender.ip(), Ipv4Addr::from(INNER));

    assert_eq!(engine.leftovers(), ["vmtap0", "clsact", "clsact"]);
    // As when the vmm has ended.
    drop(taps);
    network::remove(&place).unwrap();
    assert_eq!(engine.leftovers(), Vec::<String>::new());
    network::remove(&place).unwrap();
}

#[test]
fn two_vms_do_not_share_an_interface_and_each_undoes_its_own() {
    let Some(engine) = Engine::new() else { return };
    let (taps, first) = connect(&engine, 7).unwrap();
    let second = Network::read(&engine.path()).unwrap();
    let place = second.place(9).unwrap();
    let refused = second.connect(9).unwrap_err();
    assert!(matches!(&refused, NetworkError::InUse { name } if name == "eth0"), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    network::remove(&place).unwrap();
    assert_eq!(engine.leftovers(), ["vmtap0", "clsact", "clsact"], "the first one's");
    drop(taps);
    network::remove(&first).unwrap();
    connect(&engine, 9).unwrap();
}

#[test]
fn a_namespace_that_is_gone_has_nothing_to_remove() {
    let Some(engine) = Engine::new() else { return };
    let (taps, place) = connect(&engine, 7).unwrap();
    drop((taps, engine));
    network::remove(&place).unwrap();
}

#[test]
fn what_cannot_be_a_guests_is_refused_by_name() {
    let refused = |change: fn(&Netlink)| {
        let engine = Engine::new()?;
        engine.inside(change);
        Some(Network::read(&engine.path()).unwrap_err())
    };
    let Some(layered) = refused(|netlink| {
        let eth0 = index(netlink, "eth0");
        engine::make(netlink, "upper0", InfoKind::MacVlan, Some(eth0));
        engine::up(netlink, "upper0");
    }) else {
        return;
    };
    let words = layered.to_string();
    assert!(
        words.starts_with("the network interface upper0: it is a layer of interface"),
        "{words}"
    );
    assert_eq!(layered.kind(), ErrorKind::Unsupported);
    let blackhole = refused(|netlink| {
        add_route(netlink, default_route("10.9.0.1", RouteType::BlackHole, 0));
    });
    let blackhole = blackhole.unwrap().to_string();
    assert!(blackhole.contains("the route to 0.0.0.0/0 leads to nobody"), "{blackhole}");
}

#[test]
fn what_is_no_namespace_of_the_containers_own_is_refused() {
    let refused = |path: &str| Network::read(Path::new(path)).unwrap_err();
    assert!(matches!(refused("/no/such/netns"), NetworkError::Open { .. }));
    assert!(matches!(refused("/dev/null"), NetworkError::NotANamespace { .. }));
    for other in ["/proc/self/ns/net", "/proc/self/ns/mnt"] {
        let error = refused(other);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let hosts = refused("/proc/self/ns/net").to_string();
    assert!(hosts.contains("is the host's own network"), "{hosts}");
    let link = tempfile::tempdir().unwrap();
    let fifo = link.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(Network::read(&fifo).unwrap_err(), NetworkError::NotANamespace { .. }));
}
