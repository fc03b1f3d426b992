//! The host's side of a container's network, as far as the command line has one: what the
//! shim is asked for, and a `resolv.conf` that is the host's where a container can use it.

use std::{fs, net::IpAddr};

use caisson_shim::network::publish::Port;

use crate::{config::Network, machine};

/// Where the host's name servers stand; the second where systemd-resolved puts itself into
/// the first.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The ports that lead to a container on the bridge; `None` for one that is not on it.
pub(super) fn bridge(network: &Network) -> Option<&[Port]> {
    let Network::Bridge { ports } = network else { return None };
    if machine::is_inside() && !ports.is_empty() {
        eprintln!(
            "caisson: published ports are the machine's: commands of `caisson machine exec` reach them, \
             those of this host do not"
        );
    }
    Some(ports)
}

pub(super) fn resolv_conf(network: &Network) -> String {
    if *network == Network::None {
        return "# This container has no network.\n".to_owned();
    }
    let texts = FILES.iter().filter_map(|file| fs::read_to_string(file).ok());
    let usable = texts.map(|text| usable(&text)).find(|text| text.contains("nameserver"));
    usable.unwrap_or_else(|| "# The host names no server that a container can reach.\n".to_owned())
}

/// Without servers on the host's own loopback, which is not the container's.
fn usable(text: &str) -> String {
    let is_own = |line: &str| {
        let server = line.trim_start().strip_prefix("nameserver");
        let address = server.and_then(|rest| rest.split_whitespace().next());
        address.and_then(|it| it.parse::<IpAddr>().ok()).is_some_and(|it| it.is_loopback())
    };
    text.lines().filter(|line| !is_own(line)).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_the_hosts_loopback_are_left_out() {
        let host = "search example\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n nameserver ::1\noptions edns0\n";
        assert_eq!(usable(host), "search example\nnameserver 192.0.2.1\noptions edns0\n");
        assert!(resolv_conf(&Network::None).contains("no network"));
    }
}
