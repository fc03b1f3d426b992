//! One 512-byte tar header: POSIX ustar, GNU, star, and version 7.

pub(super) const BLOCK: usize = 512;

/// A header with a right checksum.
pub(super) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Option<Header> {
        let header = Header { block };
        let stored = parse_octal(header.field(148, 8))?;
        // The checksum field counts as spaces. Some old writers summed signed bytes.
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (index, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        (unsigned == stored || i64::try_from(stored) == Ok(signed)).then_some(header)
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        if &self.block[257..263] != b"ustar\0" {
            return name.to_vec();
        }
        // star keeps times behind a shorter prefix.
        let prefix_len = if &self.block[508..512] == b"tar\0" { 131 } else { 155 };
        match text(self.field(345, prefix_len)) {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u64> {
        self.unsigned(100, 8)
    }

    pub(super) fn uid(&self) -> Option<u64> {
        self.unsigned(108, 8)
    }

    pub(super) fn gid(&self) -> Option<u64> {
        self.unsigned(116, 8)
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.unsigned(124, 12)
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        parse_number(self.field(136, 12))
    }

    pub(super) fn device_major(&self) -> Option<u64> {
        self.unsigned(329, 8)
    }

    pub(super) fn device_minor(&self) -> Option<u64> {
        self.unsigned(337, 8)
    }

    /// Old GNU sparse: four segments, whether more blocks follow, and the real size.
    pub(super) fn gnu_sparse(&self) -> (&[u8], bool, Option<u64>) {
        (self.field(386, 96), self.block[482] != 0, self.unsigned(483, 12))
    }

    fn unsigned(&self, start: usize, len: usize) -> Option<u64> {
        parse_number(self.field(start, len)).and_then(|value| u64::try_from(value).ok())
    }

    fn field(&self, start: usize, len: usize) -> &[u8] {
        &self.block[start..start + len]
    }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's base 256 if the first bit is set.
pub(super) fn parse_number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return parse_octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // Two's complement in all bits but the first.
    let negative = first & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (index, &byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            (0, true) => byte | 0x80,
            _ => byte,
        };
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    Some(value)
}

/// Octal digits between spaces and NULs; nothing is zero.
fn parse_octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(blank) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_octal_and_base_256() {
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"   644 \0"), Some(0o644));
        assert_eq!(parse_number(b"\0\0\0\0"), Some(0));
        assert_eq!(parse_number(b"77777777777 "), Some(0o77777777777));
        assert_eq!(parse_number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        assert_eq!(parse_number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0"), Some(-256));
        for bad in [&b"12x"[..], b"89", b"1 1", b"-1", b""] {
            assert_eq!(parse_number(bad), None, "{bad:?}");
        }
        // Wider than 64 bits.
        assert_eq!(parse_number(b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), None);
        assert_eq!(parse_number(b"777777777777777777777777"), None);
    }
}
