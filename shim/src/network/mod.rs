//! The network that an engine made for a container, and how it becomes the guest's.
//!
//! ```text
//!   the network namespace of the bundle, on the host         the VM
//!   ┌──────────────────────────────────────────────┐
//! ══╪═ eth0 ── ingress ──► redirect ──► egress ─ tap ═══ vmm ═══ eth0
//!   │      ◄── egress ◄── redirect ◄── ingress ─     │            the same MAC address, MTU,
//!   └──────────────────────────────────────────────┘            addresses, routes, neighbours
//! ```
//!
//! The namespace's own stack never sees a frame; its interfaces keep their addresses, which
//! tell whoever looks where the container is. A tap goes with the vmm that holds it. What
//! else is left of the redirect is undone by [`remove`], which needs no more than the journal.

pub mod bridge;
mod interfaces;
mod namespace;
pub mod publish;
mod redirect;
mod routes;
mod tap;

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use caisson_agent_protocol::network::{InterfacePlan, NetworkPlanError, check};
use caisson_failpoints::{hit, steps};
use caisson_netlink::Netlink;
use serde::{Deserialize, Serialize};

use crate::kind::ErrorKind;
use bridge::Address;
use interfaces::Interface;
use namespace::{Identity, Namespace};
use publish::{Published, Publishing};

/// An engine's network for one container: at least the loopback interface.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    interfaces: Vec<Interface>,
    own: Option<Own>,
}

/// What the shim holds for a container on the bridge.
#[derive(Debug)]
struct Own {
    address: Address,
    ports: Vec<Published>,
}

/// A network that is the VM's: the taps go to the vmm, the rest stays for as long.
#[derive(Debug)]
pub struct Connected {
    pub taps: Vec<Tap>,
    pub kept: Option<Kept>,
}

/// A container's place on the bridge. Dropped, its ports are closed and its address is free.
#[derive(Debug)]
pub struct Kept {
    _address: Address,
    _ports: Vec<Publishing>,
}

/// Where on the host a VM's redirects are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    namespace: Identity,
    /// Indexes of interfaces in that namespace.
    interfaces: Vec<u32>,
    /// Tells this VM's filters from another's.
    mark: u16,
}

/// A tap that carries what one interface of the namespace did.
#[derive(Debug)]
pub struct Tap {
    pub file: File,
    pub interface: InterfacePlan,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("open the network namespace {path}")]
    Open { path: String, source: io::Error },
    #[error("{path} is no network namespace; an engine puts /run/netns/… or /proc/…/ns/net there")]
    NotANamespace { path: String },
    #[error(
        "{path} is the host's own network, which a VM cannot share: leave the path out, or name a namespace of the container's own"
    )]
    HostsOwn { path: String },
    #[error("enter the network namespace {path}")]
    Enter { path: String, source: io::Error },
    #[error("{action}")]
    Bridge { action: &'static str, source: io::Error },
    #[error("publish {on}: the port is in use on this host, or its address is none of this host's")]
    Publish { on: SocketAddr, source: io::Error },
    #[error("ask the kernel about {what}")]
    Ask { what: &'static str, source: io::Error },
    #[error("the network interface {name}: {problem}")]
    Unsupported { name: String, problem: String },
    #[error("the network namespace cannot be the guest's")]
    Plan(#[from] NetworkPlanError),
    #[error(
        "the network interface {name} has an ingress queue discipline already, of another VM or of a tool: `tc qdisc show dev {name}` in its namespace tells"
    )]
    InUse { name: String },
    #[error("open /dev/net/tun, which the kernel module tun provides")]
    NoTun { source: io::Error },
    #[error("make a tap for the network interface {name}")]
    Tap { name: String, source: io::Error },
    #[error(
        "redirect the network interface {name} to its tap, with the kernel's sch_ingress, cls_u32 and act_mirred"
    )]
    Redirect { name: String, source: io::Error },
}

impl NetworkError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. }
            | Self::NotANamespace { .. }
            | Self::HostsOwn { .. }
            | Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Publish { source, .. } if source.kind() != io::ErrorKind::StorageFull => {
                ErrorKind::FailedPrecondition
            }
            Self::InUse { .. } => ErrorKind::FailedPrecondition,
            Self::Enter { source, .. }
            | Self::Ask { source, .. }
            | Self::Bridge { source, .. }
            | Self::Publish { source, .. }
            | Self::NoTun { source }
            | Self::Tap { source, .. }
            | Self::Redirect { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => ErrorKind::NoSpace,
                _ => ErrorKind::Internal,
            },
        }
    }
}

impl Network {
    /// What stands in the namespace that a bundle names. Changes nothing.
    pub fn read(path: &Path) -> Result<Self, NetworkError> {
        Self::of(Namespace::open(path)?, None)
    }

    /// A place on Caisson's own bridge for container `id`, with an address by a lock in
    /// `addresses` ([`bridge::ADDRESSES`]) and these ports of the host. It lasts as long as
    /// this.
    pub fn on_bridge(
        addresses: &Path,
        id: &str,
        ports: &[publish::Port],
    ) -> Result<Self, NetworkError> {
        let ports = ports.iter().map(Published::bind).collect::<Result<_, _>>()?;
        let address = Address::take(addresses, id)?;
        let namespace = bridge::join(&address)?;
        Self::of(namespace, Some(Own { address, ports }))
    }

    fn of(namespace: Namespace, own: Option<Own>) -> Result<Self, NetworkError> {
        let interfaces = namespace.enter(|| {
            hit(&steps::SHIM_NETWORK_READ).map_err(asking("network interfaces"))?;
            interfaces::read(&netlink()?)
        })??;
        let plans: Vec<_> = interfaces.iter().map(|it| it.plan.clone()).collect();
        check(&plans)?;
        Ok(Self { namespace, interfaces, own })
    }

    /// The interfaces, as the guest is to have them.
    pub fn plans(&self) -> impl Iterator<Item = &InterfacePlan> {
        self.interfaces.iter().map(|interface| &interface.plan)
    }

    /// Where the redirects will be, for the journal, if they do not go by themselves. `mark`
    /// is not 0.
    pub fn place(&self, mark: u16) -> Option<Place> {
        let namespace = self.namespace.identity()?.clone();
        let interfaces = self.interfaces.iter().map(|interface| interface.index).collect();
        Some(Place { namespace, interfaces, mark })
    }

    /// Makes a tap for each interface and has all frames go between the two. After an error
    /// the caller removes the place. Published ports are served from now on: the caller runs
    /// in tokio's runtime if there are any.
    pub fn connect(self, mark: u16) -> Result<Connected, NetworkError> {
        let taps: Result<Vec<Tap>, NetworkError> = self.namespace.enter(|| {
            let netlink = netlink()?;
            self.interfaces.iter().map(|interface| connect(interface, &netlink, mark)).collect()
        })?;
        let keep = |own: Own| {
            let guest = IpAddr::from(own.address.ip);
            let serve = |port: Published| port.serve(guest);
            let ports: Result<_, _> = own.ports.into_iter().map(serve).collect();
            Ok::<_, NetworkError>(Kept { _address: own.address, _ports: ports? })
        };
        Ok(Connected { taps: taps?, kept: self.own.map(keep).transpose()? })
    }
}

fn connect(interface: &Interface, netlink: &Netlink, mark: u16) -> Result<Tap, NetworkError> {
    let name = || interface.plan.name.clone();
    let failed = |source| NetworkError::Tap { name: name(), source };
    hit(&steps::SHIM_VM_TAP).map_err(failed)?;
    let file = tap::open()?;
    let index = tap::make(&file, interface.plan.mtu, netlink).map_err(failed)?;
    let between = [(interface.index, index), (index, interface.index)];
    for (from, to) in between {
        hit(&steps::SHIM_VM_REDIRECT)
            .and_then(|()| redirect::add(netlink, from, to, mark))
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => NetworkError::InUse { name: name() },
                _ => NetworkError::Redirect { name: name(), source },
            })?;
    }
    Ok(Tap { file, interface: interface.plan.clone() })
}

/// Undoes the redirects of a VM that has ended. A namespace that is gone has none.
pub fn remove(place: &Place) -> Result<(), NetworkError> {
    let Some(namespace) = place.namespace.find()? else { return Ok(()) };
    namespace.enter(|| {
        let netlink = netlink()?;
        for &index in &place.interfaces {
            hit(&steps::SHIM_VM_UNDIRECT)
                .and_then(|()| redirect::remove(&netlink, index, place.mark))
                .map_err(asking("a redirect to remove"))?;
        }
        Ok(())
    })?
}

/// To the namespace of the calling thread.
fn netlink() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(asking("anything"))
}

fn asking(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Ask { what, source }
}
