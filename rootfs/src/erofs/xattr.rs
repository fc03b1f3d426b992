//! Extended attributes beside an inode: a 12-byte header, then per attribute a namespace
//! index, the rest of the name, and the value, each padded to 4 bytes.

use crate::tar::Xattr;

/// `struct erofs_xattr_ibody_header`, without shared attributes and name filter.
const HEADER: usize = 12;
/// `struct erofs_xattr_entry`.
const ENTRY: usize = 4;
/// Name prefixes and their indices; the first that matches is taken.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Whether EROFS (and Linux) has a place for this attribute.
pub(crate) fn is_representable(name: &[u8], value: &[u8]) -> bool {
    value.len() <= usize::from(u16::MAX) && split(name).is_some()
}

/// The namespace's index and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let (rest, index) = NAMESPACES
        .iter()
        .find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)))?;
    let whole_name = matches!(index, 2 | 3);
    (rest.is_empty() == whole_name && rest.len() <= 255).then_some((index, rest))
}

/// How many bytes [`encode`] gives; 0 without attributes.
pub(super) fn size(xattrs: &[Xattr]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entry = |(name, value): &Xattr| {
        let rest = split(name).map_or(0, |(_, rest)| rest.len());
        (ENTRY + rest + value.len()).next_multiple_of(4)
    };
    HEADER + xattrs.iter().map(entry).sum::<usize>()
}

/// The inode's `i_xattr_icount`.
pub(super) fn icount(xattrs: &[Xattr]) -> u16 {
    match size(xattrs) {
        0 => 0,
        size => u16::try_from((size - HEADER) / 4 + 1).expect("callers bound attributes"),
    }
}

/// Appends the attributes, which are all representable.
pub(super) fn encode(xattrs: &[Xattr], out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    let start = out.len();
    out.resize(start + HEADER, 0);
    let mut sorted: Vec<(u8, &[u8], &[u8])> = xattrs
        .iter()
        .filter_map(|(name, value)| split(name).map(|(index, rest)| (index, rest, &**value)))
        .collect();
    sorted.sort_unstable();
    for (index, rest, value) in sorted {
        out.push(rest.len() as u8);
        out.push(index);
        out.extend((value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_namespace_and_rest() {
        assert_eq!(split(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split(b"trusted.overlay.opaque"), Some((4, &b"overlay.opaque"[..])));
        assert_eq!(split(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        for odd in [&b"user."[..], b"system.posix_acl_accessx", b"system.nfs4_acl", b"com.apple.x"]
        {
            assert_eq!(split(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_size_is_what_is_encoded() {
        let xattrs: Vec<Xattr> = vec![
            (b"user.b"[..].into(), b"12345"[..].into()),
            (b"user.a"[..].into(), b""[..].into()),
            (b"security.capability"[..].into(), vec![7; 20].into()),
        ];
        let mut out = vec![0xff; 4];
        encode(&xattrs, &mut out);
        assert_eq!(out.len() - 4, size(&xattrs));
        assert_eq!(usize::from(icount(&xattrs) - 1) * 4 + HEADER, size(&xattrs));
        assert_eq!(&out[4 + HEADER..][..5], [1, 1, 0, 0, b'a']);
        assert_eq!((size(&[]), icount(&[])), (0, 0));
    }
}
