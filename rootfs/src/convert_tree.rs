//! A directory tree that another engine has unpacked becomes one EROFS image.
//!
//! The tree may be an overlay's upper directory: whiteouts (character devices 0:0) and
//! `trusted.overlay.opaque` are kept. It is walked by a confined process, see
//! [`crate::tree_walk`].

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::digest::Digest;
use crate::layer::uuid_of;
use crate::limits::Limits;
use crate::unpack::{UnpackError, Unpacker, unpack_tree};

#[derive(Clone, Debug, Default)]
pub struct TreeOptions {
    pub limits: Limits,
    /// The image's identity, such as the snapshot's key: equal trees with equal names give
    /// equal bytes.
    pub name: String,
    /// Where the directory is read.
    pub unpacker: Unpacker,
}

/// What [`convert_tree`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeStats {
    pub inodes: u64,
    /// Contents of regular files.
    pub file_bytes: u64,
    pub image_bytes: u64,
}

#[derive(Debug, Error)]
pub enum ConvertTreeError {
    #[error("cannot open the directory {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot {action} {}", .path.display())]
    Output { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// Converts the tree at `dir` into the image `out`, which appears complete or not at all;
/// one that exists is replaced.
pub fn convert_tree(
    dir: &Path,
    out: &Path,
    options: &TreeOptions,
) -> Result<TreeStats, ConvertTreeError> {
    let directory = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed =
        |action| move |source| ConvertTreeError::Output { action, path: out.to_owned(), source };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|error| ConvertTreeError::Open { path: dir.to_owned(), source: error.into() })?;
    let image = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(directory)
        .map_err(failed("create a file beside"))?;
    let scratch = tempfile::tempfile_in(directory).map_err(failed("create a file beside"))?;
    let writable = OpenOptions::new().write(true).open(image.path()).map_err(failed("open"))?;
    let uuid = uuid_of(&Digest::of(options.name.as_bytes()));
    let stats = unpack_tree(&options.unpacker, source, uuid, writable, &scratch, &options.limits)?;
    image
        .as_file()
        .set_permissions(Permissions::from_mode(0o444))
        .and_then(|()| image.as_file().sync_all())
        .map_err(failed("sync"))?;
    image.persist(out).map_err(|error| failed("rename to")(error.error))?;
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed("sync beside"))?;
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::FileType;

    use super::*;
    use crate::testing::{
        assert_same, check_with_fsck, file_digest, odd_tree, picture, picture_of_image,
    };

    #[test]
    fn a_tree_with_one_of_everything_is_kept() {
        let source = tempfile::tempdir().unwrap();
        odd_tree(source.path());
        let target = tempfile::tempdir().unwrap();
        let (one, two) = (target.path().join("1"), target.path().join("2"));
        let options = TreeOptions { name: "snapshot".to_owned(), ..TreeOptions::default() };
        let stats = convert_tree(source.path(), &one, &options).unwrap();
        assert_eq!(stats.image_bytes, fs::metadata(&one).unwrap().len());
        convert_tree(source.path(), &two, &options).unwrap();
        assert_eq!(file_digest(&one), file_digest(&two));
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 2, "a partial file is left");
        check_with_fsck(&one);
        let expected = picture(source.path());
        assert_same(&expected, &picture_of_image(&one));
        assert_eq!(
            stats.inodes as usize,
            expected.values().filter(|p| p.same_as.is_none()).count()
        );
    }

    #[test]
    fn overlay_whiteouts_and_opaque_directories_are_kept() {
        let source = tempfile::tempdir().unwrap();
        let opaque = source.path().join("opaque");
        fs::create_dir(&opaque).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let set = |name: &str, value: &[u8]| rustix::fs::lsetxattr(&opaque, name, value, flags);
        let whiteout = rustix::fs::mknodat(
            rustix::fs::CWD,
            source.path().join("gone"),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        if set("trusted.overlay.opaque", b"y").is_err() || whiteout.is_err() {
            eprintln!("skipped: whiteouts and trusted attributes cannot be made here");
            return;
        }
        set("trusted.overlay.origin", b"x").unwrap();
        let target = tempfile::tempdir().unwrap();
        let image = target.path().join("image");
        convert_tree(source.path(), &image, &TreeOptions::default()).unwrap();
        let shown = picture_of_image(&image);
        assert_eq!(shown[Path::new("./gone")].mode & 0o170000, 0o020000);
        assert_eq!(shown[Path::new("./gone")].rdev, 0);
        let xattrs: Vec<_> = shown[Path::new("./opaque")].xattrs.keys().collect();
        assert_eq!(xattrs, [b"trusted.overlay.opaque"]);
    }

    #[test]
    fn a_missing_directory_and_too_deep_a_tree_are_errors() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let image = target.path().join("image");
        let missing = source.path().join("missing");
        assert!(convert_tree(&missing, &image, &TreeOptions::default()).is_err());
        fs::create_dir_all(source.path().join("d/".repeat(12))).unwrap();
        let limits = Limits { depth: 10, ..Limits::default() };
        let options = TreeOptions { limits, ..TreeOptions::default() };
        let error = convert_tree(source.path(), &image, &options).unwrap_err();
        let refused = ConvertTreeError::Unpack(UnpackError::Refused { message: String::new() });
        assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&refused), "{error}");
        assert!(error.to_string().contains("too many directories"), "{error}");
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }
}
