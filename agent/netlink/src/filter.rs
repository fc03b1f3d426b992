//! Transactions of nf_tables: changes of the kernel's packet filter that are all made or
//! none (`linux/netfilter/nfnetlink.h`).

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u8 = 10;
/// Of the tables that are changed: IPv4's (`NFPROTO_IPV4`).
const IPV4: u8 = 2;

const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;

/// Attributes of a message, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// nf_tables has its numbers in the network's order.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn nested(self, kind: u16, value: Self) -> Self {
        self.bytes(kind | NESTED, &value.0)
    }
}

/// Changes that are made together.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Of the last message; each has its own.
    sequence: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0 };
        batch.push(BATCH_BEGIN, NLM_F_REQUEST, 0, NFTABLES.into(), &Attributes::new());
        batch
    }

    /// Makes what may be there already; a rule behind the others.
    pub fn create(&mut self, message: u8, attributes: Attributes) {
        self.nftables(message, NLM_F_CREATE | NLM_F_APPEND, &attributes);
    }

    pub fn change(&mut self, message: u8, attributes: Attributes) {
        self.nftables(message, 0, &attributes);
    }

    fn nftables(&mut self, message: u8, flags: u16, attributes: &Attributes) {
        let kind = u16::from_be_bytes([NFTABLES, message]);
        self.push(kind, NLM_F_REQUEST | NLM_F_ACK | flags, IPV4, 0, attributes);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, list: &Attributes) {
        self.sequence += 1;
        let length = HEADER_BYTES + 4 + list.0.len();
        let length = u32::try_from(length).expect("messages are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(&list.0);
    }

    /// Makes the changes in the calling thread's network namespace, all or none.
    pub fn commit(mut self) -> io::Result<()> {
        let last = self.sequence;
        self.push(BATCH_END, NLM_F_REQUEST, 0, NFTABLES.into(), &Attributes::new());
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // Nobody but the kernel is heard.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&self.bytes, 0)?;
        let mut datagram = Vec::with_capacity(64 << 10);
        loop {
            datagram.clear();
            socket.recv(&mut datagram, 0)?;
            if read_answers(&datagram, last)? {
                return Ok(());
            }
        }
    }
}

/// True if the answer to the last message is among these.
fn read_answers(mut rest: &[u8], last: u32) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
    while !rest.is_empty() {
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(*rest.get(at..)?.first_chunk()?))
        };
        let length = word(0).ok_or_else(cut)? as usize;
        let kind = word(4).ok_or_else(cut)? as u16;
        let sequence = word(8).ok_or_else(cut)?;
        if kind == NLMSG_ERROR {
            match word(HEADER_BYTES).ok_or_else(cut)?.cast_signed() {
                0 if sequence == last => return Ok(true),
                0 => {}
                error => return Err(io::Error::from_raw_os_error(-error)),
            }
        }
        let next = length.max(HEADER_BYTES).next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOENT: i32 = 2;

    #[test]
    fn attributes_have_lengths_and_padding() {
        let list = Attributes::new().string(1, "abcd").nested(2, Attributes::new().number(3, 5));
        let mut expected = vec![9, 0, 1, 0];
        expected.extend_from_slice(b"abcd\0\0\0\0");
        expected.extend_from_slice(&[12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 5]);
        assert_eq!(list.0, expected);
    }

    #[test]
    fn answers_are_read_up_to_the_last_and_errors_are_errors() {
        let answer = |sequence: u32, error: i32| {
            let mut bytes = vec![20, 0, 0, 0, 2, 0, 0, 0];
            bytes.extend_from_slice(&sequence.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&error.to_ne_bytes());
            bytes
        };
        let two = [answer(2, 0), answer(3, 0)].concat();
        assert!(read_answers(&two, 3).unwrap());
        assert!(!read_answers(&two, 4).unwrap());
        let error = read_answers(&answer(2, -ENOENT), 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(read_answers(&two[..10], 3).is_err());
    }
}
