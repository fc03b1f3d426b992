//! What an image has where a new volume is mounted becomes the volume's first content.
//!
//! The image's names are hostile: only what is a directory itself is entered. Nothing of the
//! container runs yet, and the volume is filled through the mount that the container will
//! have, so whatever is followed there stays in this VM.

use std::{
    fs::{self, File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, OFlag},
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
};

use crate::{
    error::{At, OsError},
    path::{Root, by_descriptor},
};

/// Copies what `root` has at `destination` into the directory `volume`, if that is empty, with
/// owners, modes and times. Devices are left out: a volume has none.
pub fn copy_up(root: &Root, destination: &str, volume: &OwnedFd) -> Result<(), OsError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let image = match root.open(destination, flags) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Ok(());
        }
        opened => opened.at(|| format!("open {destination:?} of the image"))?,
    };
    let (from, to) = (PathBuf::from(by_descriptor(&image)), PathBuf::from(by_descriptor(volume)));
    let mut present = fs::read_dir(&to).at(|| format!("list the volume of {destination:?}"))?;
    if present.next().is_some() {
        return Ok(());
    }
    copy_tree(&from, &to)
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), OsError> {
    let mut directories = vec![PathBuf::new()];
    // Inner ones after outer ones.
    let mut made = Vec::new();
    while let Some(directory) = directories.pop() {
        let source = from.join(&directory);
        let found = fs::metadata(&source).at(|| format!("examine {directory:?}"))?;
        made.push((directory.clone(), found));
        for entry in fs::read_dir(&source).at(|| format!("list {directory:?}"))? {
            let name = entry.at(|| format!("list {directory:?}"))?.file_name();
            let path = directory.join(name);
            let (source, target) = (from.join(&path), to.join(&path));
            let found =
                fs::symlink_metadata(&source).at(|| format!("examine {path:?} of the image"))?;
            let copied = if found.is_dir() {
                directories.push(path.clone());
                fs::create_dir(&target)
            } else {
                copy_file(&source, &target, &found)
            };
            copied.at(|| format!("copy {path:?} of the image into the volume"))?;
        }
    }
    // A directory's time changes with what is made in it.
    for (path, found) in made.iter().rev() {
        set_attributes(&to.join(path), found)
            .at(|| format!("copy the attributes of {path:?} of the image"))?;
    }
    Ok(())
}

fn copy_file(source: &Path, target: &Path, found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(source)?, target)?;
    } else if kind.is_file() {
        io::copy(&mut File::open(source)?, &mut File::create_new(target)?)?;
    } else if kind.is_fifo() || kind.is_socket() {
        let kind = if kind.is_fifo() { SFlag::S_IFIFO } else { SFlag::S_IFSOCK };
        mknod(target.as_os_str().as_bytes(), kind, Mode::S_IRUSR, 0)?;
    } else {
        return Ok(());
    }
    set_attributes(target, found)
}

fn set_attributes(target: &Path, found: &Metadata) -> io::Result<()> {
    lchown(target, Some(found.uid()), Some(found.gid()))?;
    if !found.is_symlink() {
        fs::set_permissions(target, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    }
    let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
    let accessed = time(found.atime(), found.atime_nsec());
    let modified = time(found.mtime(), found.mtime_nsec());
    let itself = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(AT_FDCWD, target.as_os_str().as_bytes(), &accessed, &modified, itself)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(path: &Path) -> Root {
        Root::new(File::open(path).unwrap().into())
    }

    fn scene() -> (tempfile::TempDir, OwnedFd) {
        let scene = tempfile::tempdir().unwrap();
        fs::create_dir_all(scene.path().join("image/data/sub")).unwrap();
        fs::create_dir(scene.path().join("volume")).unwrap();
        let volume = File::open(scene.path().join("volume")).unwrap().into();
        (scene, volume)
    }

    #[test]
    fn an_empty_volume_gets_the_images_content_as_it_is() {
        let (scene, volume) = scene();
        let image = |path: &str| scene.path().join("image/data").join(path);
        fs::write(image("sub/file"), "content").unwrap();
        fs::set_permissions(image("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(image("sub"), fs::Permissions::from_mode(0o1770)).unwrap();
        fs::set_permissions(image("."), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/passwd", image("link")).unwrap();
        symlink("../../..", image("up")).unwrap();
        File::open(image("sub"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(7))
            .unwrap();
        copy_up(&root(&scene.path().join("image")), "/data", &volume).unwrap();
        let copied = |path: &str| scene.path().join("volume").join(path);
        assert_eq!(fs::read_to_string(copied("sub/file")).unwrap(), "content");
        let mode = |path: &str| fs::symlink_metadata(copied(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("sub/file"), mode("sub"), mode(".")), (0o640, 0o1770, 0o700));
        assert_eq!(fs::symlink_metadata(copied("sub")).unwrap().mtime(), 7);
        assert_eq!(fs::read_link(copied("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_dir(copied(".")).unwrap().count(), 3, "no link is followed");
    }

    #[test]
    fn a_volume_that_holds_something_stays_as_it_is() {
        let (scene, volume) = scene();
        fs::write(scene.path().join("volume/mine"), "").unwrap();
        copy_up(&root(&scene.path().join("image")), "/data", &volume).unwrap();
        assert!(!scene.path().join("volume/sub").exists());
    }

    #[test]
    fn where_the_image_has_no_directory_nothing_is_copied() {
        let (scene, volume) = scene();
        fs::write(scene.path().join("image/file"), "").unwrap();
        symlink("/nowhere", scene.path().join("image/dangling")).unwrap();
        for place in ["/missing", "/file", "/file/below", "/dangling"] {
            copy_up(&root(&scene.path().join("image")), place, &volume).unwrap();
        }
        assert_eq!(fs::read_dir(scene.path().join("volume")).unwrap().count(), 0);
    }

    #[test]
    fn an_image_directory_behind_a_link_is_looked_up_in_the_image() {
        let (scene, volume) = scene();
        fs::create_dir(scene.path().join("data")).unwrap();
        fs::write(scene.path().join("data/outside"), "").unwrap();
        symlink("/../data", scene.path().join("image/link")).unwrap();
        copy_up(&root(&scene.path().join("image")), "/link", &volume).unwrap();
        assert!(scene.path().join("volume/sub").is_dir());
        assert!(!scene.path().join("volume/outside").exists());
    }
}
