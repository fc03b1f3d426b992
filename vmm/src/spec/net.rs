//! A virtio-net device that can be built.

use std::{fs::File, net::IpAddr, ops::RangeInclusive};

use super::{Files, SpecError, limit, named};
use crate::config::{MacAddress, NetConfig, RateLimit};

/// virtio 1.2 §5.1.4.1: from what IPv4 needs to what a length field holds.
const MTUS: RangeInclusive<u16> = 68..=u16::MAX;
/// More have no use in a container, and each costs every frame a comparison.
const MAX_ADDRESSES: usize = 64;

#[derive(Debug)]
pub struct NetSpec {
    /// A tap with virtio headers and without packet information, open read-write.
    pub tap: File,
    /// Unicast.
    pub mac: MacAddress,
    pub mtu: u16,
    /// Those that the guest may send from; any if there are none.
    pub addresses: Vec<IpAddr>,
    pub receive_limit: RateLimit,
    pub transmit_limit: RateLimit,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the MAC address {0} is no single interface's")]
    Mac(MacAddress),
    #[error("two network devices have the MAC address {0}")]
    MacTwice(MacAddress),
    #[error("an MTU of {mtu}; it is {} to {}", MTUS.start(), MTUS.end())]
    Mtu { mtu: u16 },
    #[error("{0} addresses to send from; there are {MAX_ADDRESSES} at most")]
    Addresses(usize),
    #[error("the address {0} to send from is no host's")]
    Address(IpAddr),
}

/// All network devices of a VM.
pub(super) fn adopt(configs: &[NetConfig], files: &mut Files) -> Result<Vec<NetSpec>, SpecError> {
    for (index, config) in configs.iter().enumerate() {
        check(config)?;
        if configs[..index].iter().any(|other| other.mac == config.mac) {
            return Err(NetError::MacTwice(config.mac).into());
        }
        for limit in [&config.receive_limit, &config.transmit_limit] {
            limit::check(limit).map_err(|source| SpecError::Limit { what: "network", source })?;
        }
    }
    let adopt = |config: &NetConfig| {
        let tap = files.tap(config.tap).map_err(named("tap"))?;
        Ok(NetSpec {
            tap,
            mac: config.mac,
            mtu: config.mtu,
            addresses: config.addresses.clone(),
            receive_limit: config.receive_limit,
            transmit_limit: config.transmit_limit,
        })
    };
    configs.iter().map(adopt).collect()
}

fn check(config: &NetConfig) -> Result<(), NetError> {
    if !config.mac.is_unicast() {
        return Err(NetError::Mac(config.mac));
    }
    if !MTUS.contains(&config.mtu) {
        return Err(NetError::Mtu { mtu: config.mtu });
    }
    if config.addresses.len() > MAX_ADDRESSES {
        return Err(NetError::Addresses(config.addresses.len()));
    }
    let is_host = |address: &&IpAddr| !address.is_unspecified() && !address.is_multicast();
    match config.addresses.iter().find(|address| !is_host(address)) {
        Some(address) => Err(NetError::Address(*address)),
        None => Ok(()),
    }
}
