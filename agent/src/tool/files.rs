//! Files out of a container and into it.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use caisson_agent_protocol::tool::WriteSource;
use caisson_archive::{
    compare::{Difference, compare},
    name::display,
    pack::{PackSource, Packed, pack},
    placing::{self, Kind, Placing, Rebase, asks_for_contents, asserts_directory},
    unpack::{Keep, Links, UnpackError, UnpackTarget, unpack},
};
use nix::{
    fcntl::{OFlag, readlinkat},
    sys::stat::fstat,
};

use super::ToolError;
use crate::{error::At, path::Root, sys};

/// As the kernel counts when it follows links.
pub(super) const MAX_LINKS: u32 = 40;

/// Filesystems whose files are made when they are read, some without end.
const VIRTUAL: [i64; 7] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
];

/// What a tool has to say beside its result, a line each.
pub(super) type Warnings = Vec<String>;

/// The whole filesystem `tree`.
pub(super) fn export(tree: &OwnedFd, output: File) -> Result<Warnings, ToolError> {
    let source = PackSource { parent: tree.as_fd(), name: b".", archived_as: b"" };
    Ok(warnings(&pack(source, &|_| true, BufWriter::new(output))?))
}

/// What a container's filesystem has beyond the image's, and what not.
pub(super) fn diff(
    image: &OwnedFd,
    container: &OwnedFd,
    mount_points: &[String],
    output: File,
) -> Result<Warnings, ToolError> {
    let mut output = BufWriter::new(output);
    let ignored = |path: &[u8]| mount_points.iter().any(|point| point.as_bytes() == path);
    compare(image.as_fd(), container.as_fd(), &ignored, &mut |difference, path| {
        let letter = match difference {
            Difference::Added => b"A ",
            Difference::Changed => b"C ",
            Difference::Deleted => b"D ",
        };
        output.write_all(letter)?;
        output.write_all(path)?;
        output.write_all(b"\0")
    })?;
    output.flush().at(|| "write the differences")?;
    Ok(Warnings::new())
}

/// What `path` names, or the contents of the directory it names.
pub(super) fn read(
    root: &Root,
    path: &str,
    follow: bool,
    output: File,
) -> Result<Warnings, ToolError> {
    let contents = asks_for_contents(path.as_bytes());
    // What has to be a directory is looked for behind a link.
    let follow = follow || asserts_directory(path.as_bytes());
    let node = Node::find(root, path, follow)?;
    let is_root = node.name.is_empty();
    let must_be_directory = asserts_directory(path.as_bytes());
    if node.kind.is_none() || (must_be_directory && node.kind != Some(Kind::Directory)) {
        return Err(ToolError::NotFound { path: path.to_owned() });
    }
    let (_, asked) = placing::split(path.as_bytes());
    let archived_as = if contents || is_root { b"." } else { asked };
    let name = if is_root { ".".as_bytes() } else { node.name.as_bytes() };
    let source = PackSource { parent: node.parent.as_fd(), name, archived_as };
    let enters = |directory: BorrowedFd<'_>| {
        sys::filesystem_magic(directory).is_ok_and(|magic| !VIRTUAL.contains(&magic))
    };
    Ok(warnings(&pack(source, &enters, BufWriter::new(output))?))
}

/// Unpacks what `input` has at `path`.
pub(super) fn write(
    root: &Root,
    path: &str,
    source: WriteSource,
    is_started: bool,
    input: File,
) -> Result<Warnings, ToolError> {
    let node = Node::find(root, path, true)?;
    let (placing, owner) = match source {
        WriteSource::Entries => match node.kind {
            Some(Kind::Directory) => (Placing::Into, true),
            Some(Kind::Other) => return Err(ToolError::NotADirectory { path: path.to_owned() }),
            None => return Err(ToolError::NotFound { path: path.to_owned() }),
        },
        WriteSource::Tree { directory, keep_owner, .. } => {
            let kind = if directory { Kind::Directory } else { Kind::Other };
            (placing::place(kind, node.kind, path.as_bytes())?, keep_owner)
        }
    };
    let (directory, becomes) = match placing {
        Placing::Into => (node.path(), ""),
        Placing::As => (node.directory.clone(), node.name.as_str()),
    };
    let opened = root
        .open(&directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .at(|| format!("open directory {directory:?}"))?;
    let magic = sys::filesystem_magic(opened.as_fd()).at(|| "examine the destination")?;
    if magic == libc::TMPFS_MAGIC && !is_started {
        return Err(ToolError::InMemory { path: path.to_owned() });
    }
    let target = UnpackTarget {
        root: root.fd(),
        directory: directory.as_bytes(),
        links: Links::InsideRoot,
        keep: Keep { owner, devices: true, capabilities: true },
    };
    let has_base = matches!(source, WriteSource::Tree { contents: false, .. });
    let mut base: Option<Vec<u8>> = None;
    let result = unpack(input, target, &mut |entry| {
        if becomes.is_empty() {
            return Rebase { base: b"", becomes: b"" }.apply(entry);
        }
        // The first entry of a tree names it.
        let base = base.get_or_insert_with(|| match has_base {
            true => first_name(&entry.path).to_vec(),
            false => Vec::new(),
        });
        Rebase { base, becomes: becomes.as_bytes() }.apply(entry)
    });
    result.map_err(|error| match error {
        UnpackError::Write { source, .. } if source.raw_os_error() == Some(libc::EROFS) => {
            ToolError::ReadOnly
        }
        error => error.into(),
    })?;
    // The VM of a container that is not started is ended when this is done.
    sys::sync_filesystem(opened.as_fd()).at(|| "write the files to the disk")?;
    Ok(Warnings::new())
}

fn first_name(path: &[u8]) -> &[u8] {
    let names = path.split(|&byte| byte == b'/');
    names.into_iter().find(|name| !matches!(*name, b"" | b".")).unwrap_or_default()
}

fn warnings(packed: &Packed) -> Warnings {
    let line = |path: &Vec<u8>| {
        format!("\"{}\" became shorter while it was read; zeros are in its place", display(path))
    };
    packed.shrunk.iter().map(line).collect()
}

/// What a path names: the directory it is in, and its name there; or the root.
struct Node {
    parent: OwnedFd,
    /// The path of `parent`, which links may lead through.
    directory: String,
    /// Empty for the root.
    name: String,
    /// What is there, if anything.
    kind: Option<Kind>,
}

impl Node {
    /// Finds `path` inside `root`. The directory it lies in must exist.
    fn find(root: &Root, path: &str, follow: bool) -> Result<Self, ToolError> {
        let not_found = || ToolError::NotFound { path: path.to_owned() };
        let mut at = path.to_owned();
        for _ in 0..=MAX_LINKS {
            let trimmed = at.trim_end_matches("/.").trim_end_matches('/');
            let (directory, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
            if matches!(name, "" | "." | "..") {
                return Self::unnamed(root, trimmed).map_err(|_| not_found());
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let parent = root.open(directory, flags).map_err(|_| not_found())?;
            let opened = open_here(&parent, name);
            let opened = match opened {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let (directory, name) = (directory.to_owned(), name.to_owned());
                    return Ok(Self { parent, directory, name, kind: None });
                }
                other => other.at(|| format!("look at {path:?}"))?,
            };
            let stat = fstat(&opened).at(|| format!("look at {path:?}"))?;
            let kind = match stat.st_mode & libc::S_IFMT {
                libc::S_IFLNK if follow => {
                    let target = readlinkat(&parent, name).at(|| format!("read link {path:?}"))?;
                    let target = target.to_string_lossy();
                    at = match target.starts_with('/') {
                        true => target.into_owned(),
                        false => format!("{directory}/{target}"),
                    };
                    continue;
                }
                libc::S_IFDIR => Kind::Directory,
                _ => Kind::Other,
            };
            let (directory, name) = (directory.to_owned(), name.to_owned());
            return Ok(Self { parent, directory, name, kind: Some(kind) });
        }
        Err(ToolError::TooManyLinks { path: path.to_owned() })
    }

    /// The directory `path`, which has no name of its own: the root, or what `..` leads to.
    fn unnamed(root: &Root, path: &str) -> io::Result<Self> {
        let parent = root.open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let (directory, name) = (path.to_owned(), String::new());
        Ok(Self { parent, directory, name, kind: Some(Kind::Directory) })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }
}

/// `name` itself, not what it may lead to.
fn open_here(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    sys::openat2(parent.as_fd(), &sys::c_string(name)?, flags.bits(), 0, 0)
}
