//! PAX extended headers: `length key=value\n` records (POSIX.1-2017, pax, "Extended Header").

use super::sparse::PaxSparse;
use super::{TarError, Timestamp, Xattr};

/// Extended attributes, as star, GNU tar and Docker write them.
/// Of one file; the kernel's list of names ends at 64 KiB.
const MAX_XATTRS: usize = 1024;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What one extended header says about the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8], at: u64) -> Result<Pax, TarError> {
        let malformed = |what| TarError::Extended { what, at };
        let mut pax = Pax::default();
        while !data.is_empty() {
            let (key, value, rest) = split_record(data).ok_or(malformed("a broken record"))?;
            data = rest;
            pax.set(key, value).ok_or(malformed("an invalid value"))?;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = timestamp(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    if name.is_empty() || name.contains(&0) {
                        return None;
                    }
                    // Each record looks through those before it.
                    if self.xattrs.len() >= MAX_XATTRS {
                        return None;
                    }
                    self.xattrs.retain(|(known, _)| **known != *name);
                    self.xattrs.push((name.into(), value.into()));
                } else if let Some(key) = key.strip_prefix(SPARSE_PREFIX) {
                    self.sparse.set(key, value)?;
                }
                // Others (atime, comments, vendors') have no place in the image.
            }
        }
        Some(())
    }
}

/// `(key, value, rest)`
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length <= space + 1 || length > data.len() {
        return None;
    }
    let (record, rest) = data.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let key = &record[..equals];
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, &record[equals + 1..], rest))
}

/// An empty value takes back an earlier one.
fn name(value: &[u8]) -> Option<Option<Vec<u8>>> {
    if value.contains(&0) {
        return None;
    }
    Some((!value.is_empty()).then(|| value.to_vec()))
}

fn number(value: &[u8]) -> Option<Option<u64>> {
    if value.is_empty() {
        return Some(None);
    }
    decimal(value).map(Some)
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are cut off.
fn timestamp(value: &[u8]) -> Option<Option<Timestamp>> {
    if value.is_empty() {
        return Some(None);
    }
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    Some(Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_length() {
        let pax = Pax::parse(b"12 path=a=b\n14 uid=100000\n10 gid=\n8 x.y=z\n", 0);
        // The third record's length is wrong.
        assert!(pax.is_err());
        let pax = Pax::parse(b"12 path=a=b\n14 uid=100000\n7 gid=\n8 x.y=z\n", 0).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
        assert_eq!((pax.uid, pax.gid), (Some(100_000), None));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"0 a=b\n",
            b"6 a=b",
            b"7 a=b\n",
            b"5 a=b\n",
            b"-6 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"5 =b\n",
            b"6 abc\n",
            b"10 uid=-1\n",
            b"10 uid=1x\n",
            b"11 path=a\0\n",
            b"12 mtime=1.x\n",
            b"12 mtime=--1\n",
        ] {
            assert!(Pax::parse(bad, 0).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn attributes_are_counted() {
        let records = |count: usize| -> Vec<u8> {
            let record = |n| format!("27 SCHILY.xattr.user.{n:04}=\n").into_bytes();
            (0..count).flat_map(record).collect()
        };
        assert_eq!(Pax::parse(&records(MAX_XATTRS), 0).unwrap().xattrs.len(), MAX_XATTRS);
        assert!(Pax::parse(&records(MAX_XATTRS + 1), 0).is_err());
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_before_1970() {
        let parse = |text: &str| timestamp(text.as_bytes()).unwrap().unwrap();
        assert_eq!(parse("1.5"), Timestamp { seconds: 1, nanoseconds: 500_000_000 });
        assert_eq!(parse("1.0000000019"), Timestamp { seconds: 1, nanoseconds: 1 });
        assert_eq!(parse("-1.25"), Timestamp { seconds: -2, nanoseconds: 750_000_000 });
        assert_eq!(parse("-3"), Timestamp { seconds: -3, nanoseconds: 0 });
    }
}
