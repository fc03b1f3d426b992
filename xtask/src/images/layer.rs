//! Layer tars, whole trees or the difference of two, by GNU tar: it knows hard links,
//! sparse files, devices and extended attributes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::hex;
use crate::process;

/// An uncompressed layer.
pub(crate) struct Layer {
    pub(crate) tar: PathBuf,
    /// `sha256:…` of the uncompressed tar.
    pub(crate) diff_id: String,
}

/// All of `root`.
pub(crate) fn from_tree(root: &Path, tar: &Path) -> anyhow::Result<Layer> {
    let paths = list(root)?.into_keys().collect::<Vec<_>>();
    write(root, &paths, None, tar)
}

/// What turns `before` into `after`: changed and new files, and whiteouts.
pub(crate) fn from_change(before: &Path, after: &Path, tar: &Path) -> anyhow::Result<Layer> {
    let old = list(before)?;
    let new = list(after)?;
    let changed: Vec<_> = new
        .iter()
        .filter(|(path, entry)| old.get(*path) != Some(entry))
        .map(|(path, _)| path.clone())
        .collect();
    let whiteouts = tar.with_extension("whiteouts");
    for path in old.keys().filter(|path| !new.contains_key(*path)) {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !new.contains_key(parent) && !parent.as_os_str().is_empty() {
            continue; // gone with its directory
        }
        if after.join(parent).join(OPAQUE).exists() {
            continue; // hidden with everything below its directory
        }
        let mut name = std::ffi::OsString::from(".wh.");
        name.push(path.file_name().context("a listed path has a name")?);
        fs::create_dir_all(whiteouts.join(parent))?;
        File::create(whiteouts.join(parent).join(name))?;
    }
    write(after, &changed, whiteouts.exists().then_some(&*whiteouts), tar)
}

/// Marks a directory that hides what lower layers have in it (image-spec, `layer.md`).
pub(crate) const OPAQUE: &str = ".wh..wh..opq";

/// What makes two entries the same as far as a layer goes.
#[derive(PartialEq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    /// Directories change theirs with every entry; the entries tell.
    mtime: Option<(i64, i64)>,
    size: Option<u64>,
    link: Option<PathBuf>,
}

fn list(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Entry>> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let absolute = root.join(&directory);
        for entry in
            fs::read_dir(&absolute).with_context(|| format!("list {}", absolute.display()))?
        {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let metadata = entry.metadata()?;
            let is_directory = metadata.is_dir();
            if is_directory {
                pending.push(path.clone());
            }
            let link = metadata.is_symlink().then(|| fs::read_link(entry.path())).transpose()?;
            entries.insert(
                path,
                Entry {
                    mode: metadata.mode(),
                    owner: (metadata.uid(), metadata.gid()),
                    device: metadata.rdev(),
                    mtime: (!is_directory).then(|| (metadata.mtime(), metadata.mtime_nsec())),
                    size: (!is_directory).then(|| metadata.size()),
                    link,
                },
            );
        }
    }
    Ok(entries)
}

/// Tars `paths` of `root`, then everything of `more`.
fn write(root: &Path, paths: &[PathBuf], more: Option<&Path>, tar: &Path) -> anyhow::Result<Layer> {
    let mut command = process::command(
        "tar",
        [
            "--create",
            "--format=pax",
            "--sparse",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--no-recursion",
            "--null",
            "--verbatim-files-from",
        ],
    );
    command.arg("--file").arg(tar).arg("--directory").arg(root).arg("--files-from=-");
    if let Some(more) = more {
        command.args(["--recursion", "--directory"]).arg(more);
        for entry in fs::read_dir(more)? {
            command.arg(entry?.file_name());
        }
    }
    let mut child = command.stdin(Stdio::piped()).spawn().context("start tar")?;
    {
        let mut input = child.stdin.take().context("tar has an input")?;
        for path in paths {
            input.write_all(path.as_os_str().as_bytes())?;
            input.write_all(&[0])?;
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tar of {}: {status}", root.display());
    }
    Ok(Layer { tar: tar.into(), diff_id: format!("sha256:{}", digest_of(tar)?) })
}

/// The SHA-256 of a file, in hex.
pub(crate) fn digest_of(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}
