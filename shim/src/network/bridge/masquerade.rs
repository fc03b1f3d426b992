//! What the kernel's packet filter does for the bridge: in a table of Caisson's own,
//!
//! ```text
//! table ip caisson {
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat;
//!     ip saddr 10.89.0.0/16 oifname != "caisson0" masquerade
//!   }
//!   chain forward {
//!     type filter hook forward priority filter;
//!     oifname "caisson0" iifname != "caisson0" ct state & (established | related) == 0 drop
//!   }
//! }
//! ```
//!
//! so that containers reach the world, and the world beyond the host reaches only what is
//! published. Written by hand, as the libraries that do it need one in C
//! (`linux/netfilter/nf_tables.h`).

use std::{io, net::Ipv4Addr};

use caisson_netlink::filter::{Attributes, Batch};

const TABLE: &str = "caisson";

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u8 = 0;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const DELETE_RULES: u8 = 8;

/// The one register that the rules use, and the one for verdicts.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// Where the source address is in an IPv4 header.
const NETWORK_HEADER: u32 = 1;
const SOURCE_OFFSET: u32 = 12;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const CT_STATE: u32 = 0;
/// Bits of a connection's state.
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// `IFNAMSIZ`.
const NAME_BYTES: usize = 16;

/// A chain at a hook of the kernel's.
struct Chain {
    name: &'static str,
    kind: &'static str,
    /// `enum nf_inet_hooks`, `enum nf_ip_hook_priorities`.
    hook: u32,
    priority: u32,
}

const POST_ROUTING: Chain = Chain { name: "postrouting", kind: "nat", hook: 4, priority: 100 };
const FORWARD: Chain = Chain { name: "forward", kind: "filter", hook: 2, priority: 0 };

/// Makes the rules what they should be; they may be there, and several may do it at once.
pub(super) fn ensure(network: Ipv4Addr, prefix: u8, bridge: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.create(NEW_TABLE, Attributes::new().string(1, TABLE));
    put(&mut batch, &POST_ROUTING, masquerade(network, prefix, bridge));
    put(&mut batch, &FORWARD, drop_unasked(bridge));
    batch.commit()
}

/// The chain with this rule and no other.
fn put(batch: &mut Batch, chain: &Chain, rule: Vec<Attributes>) {
    let hook = Attributes::new().number(1, chain.hook).number(2, chain.priority);
    let made = Attributes::new().string(1, TABLE).string(3, chain.name);
    batch.create(NEW_CHAIN, made.nested(4, hook).string(7, chain.kind));
    let rules = || Attributes::new().string(1, TABLE).string(2, chain.name);
    batch.change(DELETE_RULES, rules());
    let list = rule.into_iter().fold(Attributes::new(), |list, one| list.nested(1, one));
    batch.create(NEW_RULE, rules().nested(4, list));
}

fn masquerade(network: Ipv4Addr, prefix: u8, bridge: &str) -> Vec<Attributes> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    vec![
        expression(
            "payload",
            Attributes::new()
                .number(1, REGISTER)
                .number(2, NETWORK_HEADER)
                .number(3, SOURCE_OFFSET)
                .number(4, 4),
        ),
        mask_with(&mask.to_be_bytes()),
        compare(EQUAL, &network.octets()),
        load("meta", META_OIFNAME),
        compare(NOT_EQUAL, &name(bridge)),
        expression("masq", Attributes::new()),
    ]
}

fn drop_unasked(bridge: &str) -> Vec<Attributes> {
    let verdict = Attributes::new().number(1, libc::NF_DROP as u32);
    vec![
        load("meta", META_OIFNAME),
        compare(EQUAL, &name(bridge)),
        load("meta", META_IIFNAME),
        compare(NOT_EQUAL, &name(bridge)),
        load("ct", CT_STATE),
        // Not in the network's order: it never was on one.
        mask_with(&ESTABLISHED_OR_RELATED.to_ne_bytes()),
        compare(EQUAL, &[0; 4]),
        expression(
            "immediate",
            Attributes::new().number(1, VERDICT).nested(2, Attributes::new().nested(2, verdict)),
        ),
    ]
}

fn load(from: &str, key: u32) -> Attributes {
    expression(from, Attributes::new().number(1, REGISTER).number(2, key))
}

fn mask_with(mask: &[u8; 4]) -> Attributes {
    let registers = Attributes::new().number(1, REGISTER).number(2, REGISTER).number(3, 4);
    expression("bitwise", registers.nested(4, value(mask)).nested(5, value(&[0; 4])))
}

fn compare(how: u32, with: &[u8]) -> Attributes {
    let data = Attributes::new().number(1, REGISTER).number(2, how).nested(3, value(with));
    expression("cmp", data)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

fn name(interface: &str) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    name[..interface.len()].copy_from_slice(interface.as_bytes());
    name
}

fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new().string(1, name).nested(2, data)
}
