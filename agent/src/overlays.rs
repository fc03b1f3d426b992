//! What is laid over paths of the finished tree: generated files, masks, and read-only
//! views (runtime-spec `maskedPaths`, `readonlyPaths`).
//!
//! Everything is bound from the container's own staging area and by descriptor: no name
//! in the image takes part in finding the source.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
};

use caisson_agent_protocol::plan::FilePlan;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::{Mode, SFlag, fstat, makedev, mknod},
};

use crate::{
    error::{At, OsError},
    path::{PathError, Root, clean},
    sys,
};

/// Writes the generated files to the staging area, which is the current directory, and
/// binds each over its path.
pub fn bind_files(root: &Root, files: &[FilePlan]) -> Result<(), PathError> {
    if files.is_empty() {
        return Ok(());
    }
    fs::create_dir("files").at(|| "make a directory for generated files")?;
    for (index, file) in files.iter().enumerate() {
        let name = format!("files/{index}");
        write_file(&name, file).at(|| format!("write generated file {:?}", file.path))?;
        let target = root.make_file(&clean(&file.path))?;
        bind(open_path(&name)?, &target, file.readonly)
            .at(|| format!("bind generated file {:?}", file.path))?;
    }
    Ok(())
}

fn write_file(name: &str, file: &FilePlan) -> std::io::Result<()> {
    let mut open = File::create_new(name)?;
    open.write_all(file.content.as_bytes())?;
    open.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))
}

/// Covers `paths` with an empty read-only file or directory, as far as they exist.
pub fn mask(root: &Root, paths: &[String]) -> Result<(), OsError> {
    if paths.is_empty() {
        return Ok(());
    }
    fs::create_dir("empty").at(|| "make an empty directory")?;
    let mode = Mode::from_bits_truncate(0o666);
    mknod("null", SFlag::S_IFCHR, mode, makedev(1, 3)).at(|| "make a null device")?;
    let (empty, null) = (open_path("empty")?, open_path("null")?);
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let stat = fstat(&target).at(|| format!("examine {path:?}"))?;
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let source = if is_dir { &empty } else { &null };
        let source = source.try_clone().at(|| "copy a descriptor")?;
        bind(source, &target, true).at(|| format!("mask {path:?}"))?;
    }
    Ok(())
}

/// Binds `paths` over themselves read-only, as far as they exist.
pub fn make_readonly(root: &Root, paths: &[String]) -> Result<(), OsError> {
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let view = || {
            let tree = sys::clone_tree(target.as_fd(), true)?;
            sys::set_readonly(tree.as_fd(), true)?;
            sys::attach(tree.as_fd(), target.as_fd())
        };
        view().at(|| format!("make {path:?} read-only"))?;
    }
    Ok(())
}

/// What is at `path`, if anything.
fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>, OsError> {
    match root.open(&clean(path), OFlag::O_PATH) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        opened => opened.map(Some).at(|| format!("open {path:?}")),
    }
}

fn open_path(name: &str) -> Result<OwnedFd, OsError> {
    open(name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).at(|| format!("open staged {name}"))
}

fn bind(source: OwnedFd, target: &OwnedFd, readonly: bool) -> std::io::Result<()> {
    let tree = sys::clone_tree(source.as_fd(), false)?;
    if readonly {
        sys::set_readonly(tree.as_fd(), false)?;
    }
    sys::attach(tree.as_fd(), target.as_fd())
}
