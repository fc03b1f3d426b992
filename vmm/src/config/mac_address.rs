//! The address of a network interface.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Written `02:fc:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether an interface can have it: it is no group of receivers, and not all zeros.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address like 02:fc:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(text.chars().take(32).collect());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, ParseMacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        let mac: MacAddress = "02:FC:00:00:00:1f".parse().unwrap();
        assert_eq!(mac.0, [2, 0xfc, 0, 0, 0, 0x1f]);
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"02:fc:00:00:00:1f\"");
        for bad in
            ["", "02:fc:00:00:00", "02:fc:00:00:00:01:02", "02:fc:00:00:00:+1", "2:f:0:0:0:1"]
        {
            assert_eq!(bad.parse::<MacAddress>(), Err(ParseMacError(bad.to_owned())));
        }
    }

    #[test]
    fn groups_and_zeros_are_no_interface() {
        assert!(MacAddress([2, 0, 0, 0, 0, 1]).is_unicast());
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            assert!(!MacAddress(mac).is_unicast());
        }
    }
}
