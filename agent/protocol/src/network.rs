//! The network interfaces of a container, as they stood in the engine's network namespace.

mod check;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

pub use check::{
    MAX_ADDRESSES, MAX_INTERFACES, MAX_NEIGHBOURS, MAX_ROUTES, NetworkPlanError, check,
};

/// One interface of the VM that becomes the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePlan {
    /// Which of the VM's interfaces it is; each once.
    pub mac: MacAddress,
    /// What it is called in the container: 1 to 15 printable ASCII characters, each once,
    /// not `lo`.
    pub name: String,
    /// Bytes, 68 to 65535.
    pub mtu: u32,
    pub addresses: Vec<Subnet>,
    /// In order: the way to a gateway comes before the routes behind it. No others are made,
    /// not even those that addresses usually bring.
    pub routes: Vec<RoutePlan>,
    /// What is known for good and never asked for.
    pub neighbours: Vec<NeighbourPlan>,
}

/// The hardware address of an Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address and how many of its first bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub address: IpAddr,
    /// At most 32 or 128.
    pub prefix: u8,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A unicast route of the main table. All its addresses are of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePlan {
    /// A prefix of 0 is the default route.
    pub destination: Subnet,
    /// `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The address to send from, one of the container's.
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
    /// The gateway is on the link, whatever the routes say.
    pub onlink: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourPlan {
    pub address: IpAddr,
    pub mac: MacAddress,
}
