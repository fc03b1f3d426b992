//! A file system tree in memory: names and metadata, with file contents already elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::tar::{Timestamp, Xattr};

/// What a node costs beside its names, attributes and children; an upper estimate.
const NODE_BYTES: u64 = 160;
/// What a directory entry costs beside its name.
const ENTRY_BYTES: u64 = 64;

pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: NodeId = NodeId(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) metadata: Metadata,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    /// Permission bits, at most 0o7777.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<Xattr>,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File(FileData),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// Where an image holds a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileData {
    pub(crate) size: u64,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Whole blocks from `first_block`, and perhaps a tail that goes beside the inode.
    Flat { first_block: u32, tail: Option<Tail> },
    /// Chunks of `1 << chunk_bits` bytes; those that are no holes follow each other from
    /// `first_block`. `holes` are `(first chunk, count)`, in order.
    Chunked { first_block: u32, chunk_bits: u8, holes: Vec<(u32, u32)> },
}

/// A stretch of the file that collects tails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) offset: u64,
    pub(crate) length: u16,
}

#[derive(Debug, Error)]
pub(crate) enum TreeError {
    #[error("the files need more than {limit} bytes of memory, the limit")]
    Memory { limit: u64 },
}

/// Nodes by number; the root is 0. A node that no directory names any more stays unused.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Directories that hide what lower layers have in their place.
    opaque: BTreeSet<NodeId>,
    bytes: u64,
    limit: u64,
}

impl Tree {
    /// A tree of one directory, with mode 0755 and owned by root.
    pub(crate) fn new(memory_limit: u64) -> Tree {
        let root = Node {
            kind: NodeKind::Directory(BTreeMap::new()),
            metadata: Metadata { mode: 0o755, ..Metadata::default() },
        };
        Tree { nodes: vec![root], opaque: BTreeSet::new(), bytes: NODE_BYTES, limit: memory_limit }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    pub(crate) fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    pub(crate) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, NodeKind::Directory(_))
    }

    /// A node that no directory names yet.
    pub(crate) fn add(&mut self, kind: NodeKind, metadata: Metadata) -> Result<NodeId, TreeError> {
        let content = match &kind {
            NodeKind::Symlink(target) => target.len() as u64,
            NodeKind::File(FileData { place: Place::Chunked { holes, .. }, .. }) => {
                holes.len() as u64 * 8
            }
            _ => 0,
        };
        self.charge(NODE_BYTES + content + xattr_bytes(&metadata.xattrs))?;
        let id = NodeId(u32::try_from(self.nodes.len()).expect("the memory limit comes first"));
        self.nodes.push(Node { kind, metadata });
        Ok(id)
    }

    /// Names `child` in `directory`, in place of what had that name.
    pub(crate) fn link(
        &mut self,
        directory: NodeId,
        name: &[u8],
        child: NodeId,
    ) -> Result<(), TreeError> {
        self.charge(ENTRY_BYTES + name.len() as u64)?;
        match &mut self.node_mut(directory).kind {
            NodeKind::Directory(children) => children.insert(name.into(), child),
            _ => unreachable!("callers link into directories"),
        };
        Ok(())
    }

    pub(crate) fn is_whiteout(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, NodeKind::CharDevice { major: 0, minor: 0 })
    }

    pub(crate) fn set_opaque(&mut self, directory: NodeId) {
        self.opaque.insert(directory);
    }

    pub(crate) fn is_opaque(&self, directory: NodeId) -> bool {
        self.opaque.contains(&directory)
    }

    /// Gives every opaque directory the attribute by which overlayfs knows it.
    pub(crate) fn mark_opaque_directories(&mut self) {
        for id in &self.opaque {
            let xattrs = &mut self.nodes[id.index()].metadata.xattrs;
            xattrs.push((OPAQUE_XATTR.into(), b"y"[..].into()));
        }
    }

    pub(crate) fn set_metadata(&mut self, id: NodeId, metadata: Metadata) -> Result<(), TreeError> {
        self.charge(xattr_bytes(&metadata.xattrs))?;
        self.node_mut(id).metadata = metadata;
        Ok(())
    }

    /// What is replaced is not credited: an archive cannot churn for free.
    fn charge(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limit {
            return Err(TreeError::Memory { limit: self.limit });
        }
        Ok(())
    }
}

fn xattr_bytes(xattrs: &[Xattr]) -> u64 {
    xattrs.iter().map(|(name, value)| 32 + name.len() as u64 + value.len() as u64).sum()
}
