//! A network as an engine makes it for a container: a namespace with one end of a pair of
//! interfaces, whose other end is elsewhere.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use caisson_netlink::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    tc::{TcAttribute, TcMessage},
};

pub const MAC: [u8; 6] = [2, 0xca, 0, 0, 0, 7];
pub const OUTER_MAC: [u8; 6] = [2, 0xca, 0, 0, 0, 1];
pub const MTU: u32 = 1400;

/// `eth0` inside, `out0` outside, both up and without addresses.
pub struct Engine {
    inside: File,
    outside: File,
}

impl Engine {
    /// `None`, with the reason printed, where there can be none.
    pub fn new() -> Option<Self> {
        let made = new_namespace().and_then(|inside| Ok((inside, new_namespace()?)));
        let (inside, outside) = match made {
            Ok(made) => made,
            Err(error) => {
                eprintln!("skipped: make a network namespace: {error}");
                return None;
            }
        };
        let engine = Self { inside, outside };
        engine.inside(|netlink| {
            make_pair(netlink, engine.outside.as_raw_fd());
            up(netlink, "eth0");
        });
        engine.outside(|netlink| up(netlink, "out0"));
        Some(engine)
    }

    /// As a bundle names it. It is good for as long as this lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.inside.as_raw_fd()).into()
    }

    /// As a host of its own, for what a shim makes on one.
    pub fn outside_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.outside.as_raw_fd()).into()
    }

    /// Ends of pairs on the bridge that are still there after a while: the kernel takes a
    /// namespace down in its own time.
    pub fn ends_on_the_bridge(&self) -> Vec<String> {
        let ends = || {
            self.outside(|netlink| {
                let names = netlink.links().unwrap().into_iter().map(|link| name(&link));
                names.filter(|name| name.starts_with("cveth")).collect::<Vec<_>>()
            })
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ends().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        ends()
    }

    pub fn inside<T: Send>(&self, act: impl FnOnce(&Netlink) -> T + Send) -> T {
        visit(&self.inside, act)
    }

    pub fn outside<T: Send>(&self, act: impl FnOnce(&Netlink) -> T + Send) -> T {
        visit(&self.outside, act)
    }

    /// What a VM may leave in the namespace: interfaces, and what leads to them.
    pub fn leftovers(&self) -> Vec<String> {
        self.inside(|netlink| {
            let names = netlink.links().unwrap().into_iter().map(|link| name(&link));
            let mut left: Vec<_> =
                names.filter(|name| !["lo", "eth0"].contains(&name.as_str())).collect();
            left.extend(queues(netlink).into_iter().filter(|kind| kind == "clsact"));
            left
        })
    }
}

fn new_namespace() -> io::Result<File> {
    let make = || {
        // SAFETY: takes a number; the namespace is this thread's alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    };
    thread::spawn(make).join().unwrap()
}

fn visit<T: Send>(namespace: &File, act: impl FnOnce(&Netlink) -> T + Send) -> T {
    let visit = || {
        // SAFETY: takes an open descriptor and a number; only this thread moves.
        let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", io::Error::last_os_error());
        act(&Netlink::open().unwrap())
    };
    thread::scope(|scope| scope.spawn(visit).join().unwrap())
}

fn make_pair(netlink: &Netlink, outside: RawFd) {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName("out0".into()),
        LinkAttribute::Address(OUTER_MAC.to_vec()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NetNsFd(outside),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    new_link(netlink, link);
}

/// An interface of a kind that needs no more than its name, and what it stands on.
pub fn make(netlink: &Netlink, name: &str, kind: InfoKind, below: Option<u32>) {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    link.attributes.extend(below.map(LinkAttribute::Link));
    new_link(netlink, link);
}

fn new_link(netlink: &Netlink, link: LinkMessage) {
    netlink.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL).unwrap();
}

pub fn up(netlink: &Netlink, name: &str) {
    let mut link = LinkMessage::default();
    link.header.index = index(netlink, name);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(link), 0).unwrap();
}

pub fn index(netlink: &Netlink, wanted: &str) -> u32 {
    let links = netlink.links().unwrap();
    links.iter().find(|link| name(link) == wanted).unwrap().header.index
}

fn name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap()
}

pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub fn give_address(netlink: &Netlink, interface: &str, address: &str, prefix: u8) {
    let address: IpAddr = address.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index(netlink, interface);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    netlink.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).unwrap();
}

pub fn tell_of_neighbour(netlink: &Netlink, interface: &str, address: &str, mac: [u8; 6]) {
    let address: IpAddr = address.parse().unwrap();
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index(netlink, interface);
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    netlink.request(RouteNetlinkMessage::NewNeighbour(message), flags).unwrap();
}

/// The kinds of all queue disciplines.
pub fn queues(netlink: &Netlink) -> Vec<String> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let told = netlink.dump(question).unwrap().into_iter();
    let kind = |message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(queue) => {
            queue.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
        }
        _ => None,
    };
    told.filter_map(kind).collect()
}
