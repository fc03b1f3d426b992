//! Taps: network interfaces whose other end is a file.

use std::{ffi::CStr, fs::File, io, os::fd::AsRawFd};

use caisson_netlink::Netlink;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};

use super::NetworkError;

const TUN: &str = "/dev/net/tun";

/// The kernel puts the first free number at the end.
const NAME: &CStr = c"vmtap%d";

/// A tap to be, of the calling thread's network namespace.
pub(super) fn open() -> Result<File, NetworkError> {
    let opened = File::options().read(true).write(true).open(TUN);
    opened.map_err(|source| NetworkError::NoTun { source })
}

/// Makes it one, as the vmm wants it, and brings it up. It lasts as long as the file.
/// Returns its index.
pub(super) fn make(file: &File, mtu: u32, netlink: &Netlink) -> io::Result<u32> {
    let name = attach(file)?;
    let is_named = |link: &LinkMessage| {
        let is = |it: &LinkAttribute| matches!(it, LinkAttribute::IfName(found) if *found == name);
        link.attributes.iter().any(is)
    };
    let link = netlink.links()?.into_iter().find(is_named);
    let index = link.ok_or(io::ErrorKind::NotFound)?.header.index;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::Mtu(mtu)];
    netlink.request(RouteNetlinkMessage::SetLink(link), 0)?;
    silence(index, netlink)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(link), 0)?;
    Ok(index)
}

/// Gives it no IPv6 address, or the host would speak to the guest in its own name.
fn silence(index: u32, netlink: &Netlink) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])];
    match netlink.request(RouteNetlinkMessage::SetLink(link), 0) {
        // A kernel without IPv6, or an MTU that is too small for it.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        set => set,
    }
}

/// Returns the name that the kernel gave it.
fn attach(file: &File) -> io::Result<String> {
    // SAFETY: the all-zero bytes of this plain C structure are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.to_bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes an `ifreq`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let name: Vec<u8> = name.take_while(|&byte| byte != 0).collect();
    String::from_utf8(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
