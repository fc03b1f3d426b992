//! Directory blocks: per block the entries, then their names; everything in byte order.

use std::collections::BTreeMap;

use super::BLOCK;
use crate::tree::NodeId;

/// `struct erofs_dirent`.
const DIRENT: usize = 12;

/// One directory's names in order, with `.` and `..` among them.
pub(super) fn entries(
    children: &BTreeMap<Box<[u8]>, NodeId>,
    own: NodeId,
    parent: NodeId,
) -> impl Iterator<Item = (&[u8], NodeId)> {
    let mut dots = [(&b"."[..], own), (&b".."[..], parent)].into_iter().peekable();
    let mut named = children.iter().map(|(name, id)| (&**name, *id)).peekable();
    std::iter::from_fn(move || match (dots.peek(), named.peek()) {
        (Some((dot, _)), Some((name, _))) if name < dot => named.next(),
        (Some(_), _) => dots.next(),
        (None, _) => named.next(),
    })
}

/// Whole blocks, and the bytes used of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) full_blocks: u32,
    pub(super) last_bytes: usize,
}

impl Extent {
    pub(super) fn size(self) -> u64 {
        u64::from(self.full_blocks) * BLOCK as u64 + self.last_bytes as u64
    }
}

pub(super) fn measure<'a>(entries: impl Iterator<Item = (&'a [u8], NodeId)>) -> Extent {
    let mut extent = Extent { full_blocks: 0, last_bytes: 0 };
    for (name, _) in entries {
        let bytes = DIRENT + name.len();
        if extent.last_bytes + bytes > BLOCK {
            extent.full_blocks += 1;
            extent.last_bytes = 0;
        }
        extent.last_bytes += bytes;
    }
    extent
}

/// Encodes block after block as [`measure`] counts them; only the last is shorter.
pub(super) fn encode<'a, E>(
    entries: impl Iterator<Item = (&'a [u8], NodeId)>,
    describe: impl Fn(NodeId) -> (u64, u8),
    mut emit: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut pending: Vec<(&[u8], NodeId)> = Vec::new();
    let mut used = 0;
    let mut block = Vec::with_capacity(BLOCK);
    for (name, id) in entries {
        if used + DIRENT + name.len() > BLOCK {
            encode_block(&pending, &describe, &mut block);
            block.resize(BLOCK, 0);
            emit(&block)?;
            pending.clear();
            used = 0;
        }
        used += DIRENT + name.len();
        pending.push((name, id));
    }
    encode_block(&pending, &describe, &mut block);
    emit(&block)
}

fn encode_block(
    entries: &[(&[u8], NodeId)],
    describe: &impl Fn(NodeId) -> (u64, u8),
    block: &mut Vec<u8>,
) {
    block.clear();
    let mut name_offset = entries.len() * DIRENT;
    for (name, id) in entries {
        let (nid, file_type) = describe(*id);
        block.extend(nid.to_le_bytes());
        // A block is 4 KiB.
        block.extend((name_offset as u16).to_le_bytes());
        block.extend([file_type, 0]);
        name_offset += name.len();
    }
    for (name, _) in entries {
        block.extend_from_slice(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn children(names: &[&str]) -> BTreeMap<Box<[u8]>, NodeId> {
        names.iter().map(|name| (name.as_bytes().into(), NodeId::ROOT)).collect()
    }

    #[test]
    fn dots_stand_where_byte_order_puts_them() {
        let order = |names: &[&str]| {
            let children = children(names);
            let names = entries(&children, NodeId::ROOT, NodeId::ROOT);
            names.map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(order(&[]), [".", ".."]);
        assert_eq!(order(&["a", "!", "..."]), ["!", ".", "..", "...", "a"]);
        assert_eq!(order(&["-", "+"]), ["+", "-", ".", ".."]);
        assert_eq!(order(&[".!", ".a"]), [".", ".!", "..", ".a"]);
    }

    #[test]
    fn blocks_are_filled_as_measured() {
        let names: Vec<String> =
            (0..500).map(|n| format!("{n:0>3}{}", "x".repeat(n % 250))).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let children = children(&names);
        let list = || entries(&children, NodeId::ROOT, NodeId::ROOT);
        let extent = measure(list());
        let mut blocks = Vec::new();
        encode(
            list(),
            |_| (7, 1),
            |block| -> Result<(), ()> {
                blocks.push(block.to_vec());
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(blocks.len(), extent.full_blocks as usize + 1);
        let (last, full) = blocks.split_last().unwrap();
        assert_eq!(last.len(), extent.last_bytes);
        assert!(full.iter().all(|block| block.len() == BLOCK));
        assert_eq!(extent.size(), (full.len() * BLOCK + last.len()) as u64);
    }
}
