//! Into a container. What is packed here is unpacked by the agent, inside the container's
//! root.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::FileTypeExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use caisson_agent_protocol::{Tool, tool::WriteSource};
use caisson_archive::{
    pack::{PackError, PackSource, pack},
    placing::{self, asks_for_contents, asserts_directory},
};

use super::{Counted, CpArgs, CpError, Side, outward::absolute, report};
use crate::{
    commands::tool::{Feed, run_tool},
    engine::Engine,
    failure::{CommandResult, Failure},
    records::Container,
};

pub(super) fn copy(
    engine: &Engine,
    container: &Container,
    from: Side<'_>,
    path: &str,
    args: &CpArgs,
) -> CommandResult {
    let path = absolute(path);
    let packed = Arc::new(AtomicU64::new(0));
    let (source, feed): (_, Feed) = match from {
        Side::Host(from) => {
            let tree = Tree::find(from, args.follow_link)?;
            let (directory, contents) = (tree.is_directory, tree.is_contents);
            let bytes = packed.clone();
            let feed: Feed = Box::new(move |to| {
                bytes.store(tree.pack(to)?, Ordering::Relaxed);
                Ok(())
            });
            (WriteSource::Tree { directory, contents, keep_owner: args.archive }, feed)
        }
        _ => (WriteSource::Entries, Box::new(pass_on)),
    };
    let is_tree = source != WriteSource::Entries;
    let tool = Tool::Write { path, source };
    run_tool(engine, container, &tool, Some(feed), |output| {
        Ok(io::copy(output, &mut io::sink()).map(drop)?)
    })?;
    match is_tree {
        true => report(args, packed.load(Ordering::Relaxed)),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// Standard input, as it is.
fn pass_on(mut to: File) -> Result<(), Failure> {
    Ok(io::copy(&mut io::stdin().lock(), &mut to).map(drop)?)
}

/// What to pack.
struct Tree {
    parent: File,
    name: Vec<u8>,
    archived_as: Vec<u8>,
    is_directory: bool,
    is_contents: bool,
}

impl Tree {
    fn find(given: &str, follow: bool) -> Result<Self, CpError> {
        let look = |path: &Path, source| CpError::Look { path: path.to_owned(), source };
        let path = PathBuf::from(given);
        let follow = follow || asserts_directory(given.as_bytes());
        let metadata = if follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let metadata = metadata.map_err(|error| look(&path, error))?;
        if metadata.file_type().is_socket() {
            return Err(CpError::Socket(path));
        }
        let is_directory = metadata.is_dir();
        let is_contents = is_directory && asks_for_contents(given.as_bytes());
        let (_, asked) = placing::split(given.as_bytes());
        // `..`, `/` and what is behind a link have their names elsewhere.
        let real = match follow || matches!(asked, b"" | b"." | b"..") {
            true => fs::canonicalize(&path).map_err(|error| look(&path, error))?,
            false => path.clone(),
        };
        let (parent, name) = match (real.parent(), real.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => (real.as_path(), std::ffi::OsStr::new(".")),
        };
        let archived_as = match asked {
            _ if is_contents => b"." as &[u8],
            b"" | b".." => name.as_bytes(),
            asked => asked,
        };
        Ok(Self {
            parent: File::open(parent).map_err(|error| look(parent, error))?,
            name: name.as_bytes().to_vec(),
            archived_as: archived_as.to_vec(),
            is_directory,
            is_contents,
        })
    }

    /// Writes the archive; its bytes.
    fn pack(&self, to: File) -> Result<u64, PackError> {
        let source = PackSource {
            parent: self.parent.as_fd(),
            name: &self.name,
            archived_as: &self.archived_as,
        };
        let mut to = Counted::new(BufWriter::with_capacity(1 << 17, to));
        let packed = pack(source, &|_| true, &mut to)?;
        for path in &packed.shrunk {
            let path = caisson_archive::name::display(path);
            tracing::warn!("\"{path}\" became shorter while it was read; zeros are in its place");
        }
        to.flush()?;
        Ok(to.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(path: &str, follow: bool) -> (String, String, bool, bool) {
        let tree = Tree::find(path, follow).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&tree.name), text(&tree.archived_as), tree.is_directory, tree.is_contents)
    }

    #[test]
    fn sources_are_named_as_they_were_asked_for() {
        let host = tempfile::tempdir().unwrap();
        let at = |name: &str| format!("{}/{name}", host.path().display());
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("dir", at("link")).unwrap();
        let told = |name: &str, archived_as: &str, is_directory, is_contents| {
            (name.to_owned(), archived_as.to_owned(), is_directory, is_contents)
        };
        assert_eq!(found(&at("file"), false), told("file", "file", false, false));
        assert_eq!(found(&at("dir"), false), told("dir", "dir", true, false));
        assert_eq!(found(&at("dir/"), false), told("dir", "dir", true, false));
        assert_eq!(found(&at("dir/."), false), told("dir", ".", true, true));
        assert_eq!(found(&at("link"), false), told("link", "link", false, false));
        assert_eq!(found(&at("link"), true), told("dir", "link", true, false));
        assert_eq!(found(&at("link/."), false), told("dir", ".", true, true));
        assert!(!found(&at("dir/.."), false).3);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Tree::find("/nonexistent/file", false).err().unwrap();
        assert_eq!(error.to_string(), "/nonexistent/file: no such file or directory");
    }
}
