//! Decides where each inode and each directory block goes, before any is written.

use std::collections::HashMap;

use super::directory::{self, Extent};
use super::inode::{self, Layout, Numbers, SLOT};
use super::{BLOCK, BLOCK_U64, ErofsError, xattr};
use crate::tar::{Timestamp, Xattr};
use crate::tree::{Node, NodeId, NodeKind, Place, Tree};

/// Nid 0 stays unused: some programs take inode number 0 for a deleted entry.
const FIRST_INODE: u64 = 2 * SLOT;

/// One inode's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) id: NodeId,
    /// Bytes from the beginning of the metadata area.
    pub(super) position: u64,
    pub(super) compact: bool,
    pub(super) numbers: Numbers,
}

pub(super) struct Plan {
    /// In the order of their positions, which is that of their ids.
    pub(super) slots: Vec<Slot>,
    /// By node: its nid; unused nodes have none.
    pub(super) nids: Vec<Option<u64>>,
    /// By node: the directory that holds it; only for directories.
    pub(super) parents: HashMap<NodeId, NodeId>,
    pub(super) meta_block: u32,
    pub(super) blocks: u32,
    pub(super) time: Timestamp,
    pub(super) chunked: bool,
}

pub(super) fn plan(tree: &Tree, first_directory_block: u32) -> Result<Plan, ErofsError> {
    let (links, parents) = count_links(tree);
    let time = most_common_time(tree, &links);
    let mut slots = Vec::new();
    let mut nids = vec![None; tree.len()];
    let mut directory_block = first_directory_block;
    let mut position = FIRST_INODE;
    let mut chunked = false;
    for id in tree.ids() {
        let nlink = links[id.index()];
        if nlink == 0 {
            continue;
        }
        let node = tree.node(id);
        let shape = Shape::of(node, id, &parents, &mut directory_block)?;
        chunked |= shape.layout == Layout::ChunkBased;
        let compact = inode::is_compact(&node.metadata, shape.size, nlink, time);
        let head = head_size(node, compact);
        position = place(position, head, shape.inline);
        nids[id.index()] = Some(position / SLOT);
        let numbers = Numbers {
            layout: shape.layout,
            size: shape.size,
            union: shape.union,
            ino: slots.len() as u32 + 1,
            nlink,
        };
        slots.push(Slot { id, position, compact, numbers });
        position += (head + shape.inline + shape.chunk_map) as u64;
        position = position.next_multiple_of(SLOT);
    }
    // fsck.erofs 1.5 reads an attribute header behind every inode, even where there is none.
    let meta_blocks =
        u32::try_from((position + SLOT).div_ceil(BLOCK_U64)).map_err(|_| ErofsError::TooLarge)?;
    let blocks = directory_block.checked_add(meta_blocks).ok_or(ErofsError::TooLarge)?;
    Ok(Plan { slots, nids, parents, meta_block: directory_block, blocks, time, chunked })
}

/// The inode and its extended attributes.
pub(super) fn head_size(node: &Node, compact: bool) -> usize {
    let inode = if compact { inode::COMPACT } else { inode::EXTENDED };
    inode + xattr::size(&node.metadata.xattrs)
}

/// The next position where the inode, and above all its inline data, does not cross a
/// block's boundary. Attributes that are larger than a block may.
fn place(position: u64, head: usize, inline: usize) -> u64 {
    let used = (position % BLOCK_U64) as usize;
    let total = head + inline;
    if total <= BLOCK && used + total > BLOCK {
        position.next_multiple_of(BLOCK_U64)
    } else {
        position
    }
}

/// What follows from a node's kind.
struct Shape {
    layout: Layout,
    size: u64,
    union: u32,
    /// Bytes behind the head: inline data or the chunk map.
    inline: usize,
    chunk_map: usize,
}

impl Shape {
    fn plain(union: u32) -> Shape {
        Shape { layout: Layout::FlatPlain, size: 0, union, inline: 0, chunk_map: 0 }
    }

    fn of(
        node: &Node,
        id: NodeId,
        parents: &HashMap<NodeId, NodeId>,
        next_block: &mut u32,
    ) -> Result<Shape, ErofsError> {
        let allocate = |count: u32, next_block: &mut u32| {
            let first = *next_block;
            *next_block = first.checked_add(count).ok_or(ErofsError::TooLarge)?;
            Ok(first)
        };
        let room = inline_room(&node.metadata.xattrs);
        Ok(match &node.kind {
            NodeKind::Directory(children) => {
                let parent = parents[&id];
                let extent = directory::measure(directory::entries(children, id, parent));
                let Extent { full_blocks, last_bytes } = extent;
                let inline = if last_bytes <= room { last_bytes } else { 0 };
                let layout = if inline > 0 { Layout::FlatInline } else { Layout::FlatPlain };
                let blocks = full_blocks + u32::from(inline == 0);
                let first = allocate(blocks, next_block)?;
                Shape { layout, size: extent.size(), union: first, inline, chunk_map: 0 }
            }
            NodeKind::Symlink(target) => {
                let size = target.len() as u64;
                if target.len() <= room {
                    let inline = target.len();
                    Shape { layout: Layout::FlatInline, size, union: 0, inline, chunk_map: 0 }
                } else {
                    let first = allocate(1, next_block)?;
                    Shape { size, ..Shape::plain(first) }
                }
            }
            NodeKind::File(data) => match &data.place {
                Place::Flat { first_block, tail: None } => {
                    Shape { size: data.size, ..Shape::plain(*first_block) }
                }
                Place::Flat { first_block, tail: Some(tail) } => {
                    let (layout, union) = (Layout::FlatInline, *first_block);
                    let inline = usize::from(tail.length);
                    Shape { layout, size: data.size, union, inline, chunk_map: 0 }
                }
                Place::Chunked { chunk_bits, .. } => Shape {
                    layout: Layout::ChunkBased,
                    size: data.size,
                    union: u32::from(chunk_bits - super::BLOCK_BITS),
                    inline: 0,
                    chunk_map: chunk_count(data.size, *chunk_bits) * 4,
                },
            },
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                Shape::plain(inode::encode_device(*major, *minor))
            }
            NodeKind::Fifo | NodeKind::Socket => Shape::plain(0),
        })
    }
}

/// How many bytes of inline data fit behind an inode with these attributes.
pub(super) fn inline_room(xattrs: &[Xattr]) -> usize {
    // The extended inode is the larger one: what fits behind it fits in any case.
    BLOCK.saturating_sub(inode::EXTENDED + xattr::size(xattrs))
}

pub(super) fn chunk_count(size: u64, chunk_bits: u8) -> usize {
    // The data writer chooses the chunk size so that this stays small.
    size.div_ceil(1 << chunk_bits) as usize
}

/// By node, how often it is named (a directory also by its own `.` and its children's
/// `..`); and each directory's parent. What is not reachable has 0.
fn count_links(tree: &Tree) -> (Vec<u32>, HashMap<NodeId, NodeId>) {
    let mut links = vec![0; tree.len()];
    let mut parents = HashMap::from([(NodeId::ROOT, NodeId::ROOT)]);
    links[NodeId::ROOT.index()] = 2;
    let mut pending = vec![NodeId::ROOT];
    while let Some(directory) = pending.pop() {
        let NodeKind::Directory(children) = &tree.node(directory).kind else { continue };
        for &child in children.values() {
            links[child.index()] += 1;
            if tree.is_directory(child) {
                links[child.index()] += 1;
                links[directory.index()] += 1;
                parents.insert(child, directory);
                pending.push(child);
            }
        }
    }
    (links, parents)
}

/// Inodes with this time can be compact.
fn most_common_time(tree: &Tree, links: &[u32]) -> Timestamp {
    let mut counts: HashMap<Timestamp, u32> = HashMap::new();
    for id in tree.ids().filter(|id| links[id.index()] > 0) {
        *counts.entry(tree.node(id).metadata.mtime).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map(|(time, _)| time).unwrap_or_default()
}
