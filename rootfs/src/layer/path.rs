//! Entry paths: cleaning them, and finding their place in the tree.

use super::LayerError;
use crate::limits::Limits;
use crate::tree::{NodeId, NodeKind, Tree, TreeError};

/// As the kernel's limit for one look-up.
const MAX_SYMLINKS: usize = 40;

/// A cleaned path: names without `.`, `..` and empty ones. No names: the root itself.
pub(super) fn clean<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, LayerError> {
    let refuse = |reason| Err(LayerError::Entry { path: path.to_vec(), reason });
    if path.is_empty() {
        return refuse("an empty name");
    }
    if path.len() > limits.path_bytes {
        return refuse("a path that is too long");
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if names.pop().is_none() {
                    return refuse("a path that leaves the root");
                }
            }
            name if name.len() > limits.name_bytes => return refuse("a name that is too long"),
            name => names.push(name),
        }
    }
    // "/" alone is the root, as some tools write it.
    if path.starts_with(b"/") && !names.is_empty() {
        return refuse("an absolute path");
    }
    Ok(names)
}

/// What [`walk`] found wrong; the caller knows the entry.
#[derive(Debug)]
pub(super) enum WalkError {
    NotADirectory,
    Missing,
    TooDeep,
    TooManySymlinks,
    NameTooLong,
    Tree(TreeError),
}

impl WalkError {
    pub(super) fn for_entry(self, path: &[u8]) -> LayerError {
        let reason = match self {
            WalkError::NotADirectory => "a parent is not a directory",
            WalkError::Missing => "a parent does not exist",
            WalkError::TooDeep => "too many directories above it",
            WalkError::TooManySymlinks => "too many symbolic links above it",
            WalkError::NameTooLong => "a symbolic link above it has a name that is too long",
            WalkError::Tree(error) => return error.into(),
        };
        LayerError::Entry { path: path.to_vec(), reason }
    }
}

/// Whether a walk makes directories that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnMissing {
    Create,
    Fail,
}

/// Finds the directory at `names`, following symbolic links as if the tree were the whole
/// world: an absolute target begins at its root, and `..` stops there.
pub(super) fn walk(
    tree: &mut Tree,
    names: &[&[u8]],
    on_missing: OnMissing,
    limits: &Limits,
) -> Result<NodeId, WalkError> {
    // The way down to where we are, so that `..` can go back up.
    let mut trail = vec![NodeId::ROOT];
    // Names still to go, the next one last; link targets are pushed on top.
    let mut pending: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
    let mut symlinks = 0;
    let mut steps = 0;
    while let Some(name) = pending.pop() {
        steps += 1;
        let here = *trail.last().expect("the root is never popped");
        if steps > 4 * limits.path_bytes || trail.len() > limits.depth {
            return Err(WalkError::TooDeep);
        }
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let Some(child) = tree.lookup(here, &name) else {
            if on_missing == OnMissing::Fail {
                return Err(WalkError::Missing);
            }
            if name.len() > limits.name_bytes {
                return Err(WalkError::NameTooLong);
            }
            trail.push(create_directory(tree, here, &name).map_err(WalkError::Tree)?);
            continue;
        };
        match &tree.node(child).kind {
            NodeKind::Directory(_) => trail.push(child),
            NodeKind::Symlink(target) => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(WalkError::TooManySymlinks);
                }
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                let parts = target.rsplit(|&byte| byte == b'/');
                pending
                    .extend(parts.filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec));
            }
            _ if tree.is_whiteout(child) && on_missing == OnMissing::Create => {
                // The directory is this layer's own; the whiteout still hides those below.
                let directory = create_directory(tree, here, &name).map_err(WalkError::Tree)?;
                tree.set_opaque(directory);
                trail.push(directory);
            }
            _ => return Err(WalkError::NotADirectory),
        }
    }
    Ok(*trail.last().expect("the root is never popped"))
}

/// A directory that the archive does not mention: mode 0755, owned by root.
fn create_directory(tree: &mut Tree, parent: NodeId, name: &[u8]) -> Result<NodeId, TreeError> {
    let kind = NodeKind::Directory(Default::default());
    let metadata = crate::tree::Metadata { mode: 0o755, ..Default::default() };
    let id = tree.add(kind, metadata)?;
    tree.link(parent, name, id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cleaned(path: &str) -> Option<String> {
        let names = clean(path.as_bytes(), &Limits::default()).ok()?;
        let names: Vec<&str> =
            names.iter().map(|name| std::str::from_utf8(name).unwrap()).collect();
        Some(names.join("/"))
    }

    #[test]
    fn paths_are_cleaned_and_cannot_leave_the_root() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("a/./b", Some("a/b")),
            ("a/../b", Some("b")),
            (".", Some("")),
            ("./", Some("")),
            ("/", Some("")),
            ("...", Some("...")),
            ("", None),
            ("..", None),
            ("../x", None),
            ("/x", None),
            ("//x", None),
            ("a/../../x", None),
            ("a/b/../../../x", None),
        ] {
            assert_eq!(cleaned(path).as_deref(), expected, "{path:?}");
        }
        assert_eq!(cleaned(&"a".repeat(256)), None);
        assert_eq!(cleaned(&"a/".repeat(3000)), None);
    }

    proptest! {
        #[test]
        fn a_clean_path_has_no_special_names(path in "[a./]{0,30}") {
            if let Ok(names) = clean(path.as_bytes(), &Limits::default()) {
                for name in names {
                    prop_assert!(!matches!(name, b"" | b"." | b".."));
                }
            }
        }
    }
}
