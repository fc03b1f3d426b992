//! Applies tar entries to a tree, one after the other, as an engine would unpack them.

use std::io::Read;

use super::LayerError;
use super::path::{OnMissing, clean, walk};
use super::whiteout::{Whiteout, classify};
use crate::erofs::{self, DataWriter};
use crate::limits::Limits;
use crate::tar::{Entry, EntryKind, Reader, Segment, TarError, Xattr};
use crate::tree::{FileData, Metadata, NodeId, NodeKind, Tree};

/// Overlayfs's own attributes: an image must not speak for it.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

pub(super) struct LayerBuilder<'f, 'l> {
    tree: Tree,
    data: DataWriter<'f>,
    limits: &'l Limits,
}

impl<'f, 'l> LayerBuilder<'f, 'l> {
    pub(super) fn new(data: DataWriter<'f>, limits: &'l Limits) -> Self {
        LayerBuilder { tree: Tree::new(limits.tree_bytes), data, limits }
    }

    pub(super) fn add<R: Read>(
        &mut self,
        entry: Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), LayerError> {
        let path = entry.path.clone();
        let refuse = |reason| Err(LayerError::Entry { path: path.clone(), reason });
        let names = clean(&path, self.limits)?;
        match classify(&names) {
            Whiteout::AufsMeta => return Ok(()),
            Whiteout::Malformed => return refuse("a malformed whiteout"),
            Whiteout::None => {}
            whiteout => return self.add_whiteout(&entry, &names, whiteout),
        }
        let Some((name, parents)) = names.split_last() else {
            // The root: only its metadata counts.
            return match entry.kind {
                EntryKind::Directory => self.set_metadata(NodeId::ROOT, entry),
                _ => refuse("the root can only be a directory"),
            };
        };
        let parent = self.walk(parents, OnMissing::Create, &path)?;
        match entry.kind {
            EntryKind::Directory => self.add_directory(parent, name, entry),
            EntryKind::HardLink { target } => self.add_hard_link(parent, name, &path, &target),
            _ => {
                let id = self.new_node(entry, reader)?;
                Ok(self.tree.link(parent, name, id)?)
            }
        }
    }

    /// The tree, the data, and whether the root is opaque.
    pub(super) fn finish(mut self) -> (Tree, DataWriter<'f>, bool) {
        self.tree.mark_opaque_directories();
        let opaque = self.tree.is_opaque(NodeId::ROOT);
        (self.tree, self.data, opaque)
    }

    fn walk(
        &mut self,
        names: &[&[u8]],
        on_missing: OnMissing,
        path: &[u8],
    ) -> Result<NodeId, LayerError> {
        walk(&mut self.tree, names, on_missing, self.limits).map_err(|error| error.for_entry(path))
    }

    fn add_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        mut entry: Entry,
    ) -> Result<(), LayerError> {
        let known = self.tree.lookup(parent, name);
        if let Some(known) = known
            && self.tree.is_directory(known)
        {
            return self.set_metadata(known, entry);
        }
        let hides_lower = known.is_some_and(|known| self.tree.is_whiteout(known));
        let metadata = self.metadata(&mut entry)?;
        let id = self.tree.add(NodeKind::Directory(Default::default()), metadata)?;
        self.tree.link(parent, name, id)?;
        if hides_lower {
            // A whiteout and a directory of one name: what is below stays hidden.
            self.tree.set_opaque(id);
        }
        Ok(())
    }

    fn add_hard_link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        target: &[u8],
    ) -> Result<(), LayerError> {
        let refuse = |reason| {
            Err(LayerError::HardLink { path: path.to_vec(), target: target.to_vec(), reason })
        };
        let Ok(names) = clean(target, self.limits) else {
            return refuse("which is not a path inside the root");
        };
        let Some((target_name, target_parents)) = names.split_last() else {
            return refuse("which is a directory");
        };
        let directory = walk(&mut self.tree, target_parents, OnMissing::Fail, self.limits);
        let found = directory.ok().and_then(|directory| self.tree.lookup(directory, target_name));
        match found {
            None => refuse("which is not in this layer before it"),
            Some(id) if self.tree.is_directory(id) => refuse("which is a directory"),
            Some(id) => Ok(self.tree.link(parent, name, id)?),
        }
    }

    fn add_whiteout(
        &mut self,
        entry: &Entry,
        names: &[&[u8]],
        whiteout: Whiteout<'_>,
    ) -> Result<(), LayerError> {
        let refuse = |reason| Err(LayerError::Entry { path: entry.path.clone(), reason });
        match entry.kind {
            EntryKind::File { size: 0, .. } => {}
            // Docker on AUFS linked all whiteouts to one file.
            EntryKind::HardLink { .. } => {}
            EntryKind::File { .. } => return refuse("a whiteout with content"),
            _ => return refuse("a whiteout that is not a file"),
        }
        let (_, parents) = names.split_last().expect("a whiteout has a name");
        let parent = self.walk(parents, OnMissing::Create, &entry.path)?;
        let Whiteout::Of(hidden) = whiteout else {
            self.tree.set_opaque(parent);
            return Ok(());
        };
        // A whiteout means the layers below, whatever the order of entries: what this layer
        // itself has under the name stays, and hides them by being there.
        match self.tree.lookup(parent, hidden) {
            Some(known) if self.tree.is_directory(known) => {
                self.tree.set_opaque(known);
            }
            Some(_) => {}
            None => {
                let metadata = Metadata { mtime: entry.mtime, ..Metadata::default() };
                let kind = NodeKind::CharDevice { major: 0, minor: 0 };
                let id = self.tree.add(kind, metadata)?;
                self.tree.link(parent, hidden, id)?;
            }
        }
        Ok(())
    }

    /// A file, symbolic link, device or FIFO; takes a file's data.
    fn new_node<R: Read>(
        &mut self,
        mut entry: Entry,
        reader: &mut Reader<R>,
    ) -> Result<NodeId, LayerError> {
        let metadata = self.metadata(&mut entry)?;
        let Entry { path, kind, .. } = entry;
        let refuse = |reason| Err(LayerError::Entry { path: path.clone(), reason });
        let kind = match kind {
            EntryKind::File { size, .. } if size > self.limits.file_bytes => {
                return refuse("a file that is too large");
            }
            EntryKind::File { size, segments } => {
                let segments = segments.as_deref();
                NodeKind::File(self.take_data(size, segments, &metadata.xattrs, reader)?)
            }
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.contains(&0) {
                    return refuse("a symbolic link without a target");
                }
                // The kernel's PATH_MAX counts the terminating NUL.
                if target.len() >= self.limits.path_bytes {
                    return refuse("a symbolic link with a target that is too long");
                }
                NodeKind::Symlink(target.into())
            }
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Directory | EntryKind::HardLink { .. } => {
                unreachable!("handled by the caller")
            }
        };
        Ok(self.tree.add(kind, metadata)?)
    }

    fn take_data<R: Read>(
        &mut self,
        size: u64,
        segments: Option<&[Segment]>,
        xattrs: &[Xattr],
        reader: &mut Reader<R>,
    ) -> Result<FileData, LayerError> {
        self.data.write_file(size, segments, xattrs, &mut TarData(reader))
    }

    fn set_metadata(&mut self, id: NodeId, mut entry: Entry) -> Result<(), LayerError> {
        let metadata = self.metadata(&mut entry)?;
        Ok(self.tree.set_metadata(id, metadata)?)
    }

    /// What an entry says of its node, without the attributes that have no place in it.
    fn metadata(&self, entry: &mut Entry) -> Result<Metadata, LayerError> {
        // The kernel knows user attributes on these only.
        let user = matches!(entry.kind, EntryKind::File { .. } | EntryKind::Directory);
        let mut xattrs = std::mem::take(&mut entry.xattrs);
        xattrs.retain(|(name, value)| {
            let overlay = OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix));
            let kept = !overlay && (user || !name.starts_with(b"user."));
            kept && erofs::is_representable(name, value)
        });
        let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        if bytes > self.limits.xattr_bytes {
            let reason = "extended attributes that are too large";
            return Err(LayerError::Entry { path: entry.path.clone(), reason });
        }
        let Entry { mode, uid, gid, mtime, .. } = *entry;
        Ok(Metadata { mode, uid, gid, mtime, xattrs })
    }
}

struct TarData<'r, R>(&'r mut Reader<R>);

impl<R: Read> erofs::ReadData for TarData<'_, R> {
    type Error = LayerError;

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        Ok(self.0.read_data(buffer).map_err(|error: TarError| error)?)
    }
}
