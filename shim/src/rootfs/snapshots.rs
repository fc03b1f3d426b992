//! Directories that another engine has unpacked, as EROFS images.
//!
//! A committed snapshot never changes, so its image is made once and kept under
//! `<root>/snapshots`, named by what identifies the directory: its path, device, inode
//! number and birth time. Beside each image stands where it came from, so that the images
//! of snapshots that are gone can be removed.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
    process,
    time::UNIX_EPOCH,
};

use caisson_rootfs::{DEFAULT_DISK_BYTES, Digest, Store, TreeOptions, Unpacker, convert_tree};

use super::{Image, Rootfs, RootfsError};

/// Where images are made and kept.
pub(super) struct Snapshots<'a> {
    pub(super) root: &'a Path,
    pub(super) unpacker: Unpacker,
}

/// A directory that becomes a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// It never changes.
    Committed(PathBuf),
    /// It may have changed since the last time, or be empty.
    Active(PathBuf),
}

impl Snapshots<'_> {
    /// The images of `trees`, bottom first, with a new writable disk on top.
    pub(super) fn rootfs(&self, id: &str, trees: &[Tree]) -> Result<Rootfs, RootfsError> {
        let mut rootfs = Rootfs::default();
        for tree in trees {
            match tree {
                Tree::Committed(directory) => rootfs.layers.push(self.committed(directory)?),
                Tree::Active(directory) => rootfs.layers.extend(self.active(id, directory)?),
            }
        }
        let rootfs = rootfs.check()?;
        Ok(Rootfs { scratch: Some(self.scratch(id)?), ..rootfs })
    }

    fn committed(&self, directory: &Path) -> Result<Image, RootfsError> {
        let identity = Identity::of(directory)?;
        let cache = self.directory("snapshots")?;
        let image = cache.join(format!("{}.erofs", identity.name()));
        if let Ok(image) = Image::open("erofs", &image, false) {
            return Ok(image);
        }
        // One conversion at a time: of twenty containers that start at once from a new
        // image, one converts it.
        let _lock = lock(&cache)?;
        if let Ok(image) = Image::open("erofs", &image, false) {
            return Ok(image);
        }
        prune(&cache);
        log::info!("converting {} to {}", directory.display(), image.display());
        let source = cache.join(format!("{}.source", identity.name()));
        fs::write(&source, &identity.bytes).map_err(failed("write", &source))?;
        self.convert(&identity.path, &image, identity.name())?;
        Image::open("erofs", &image, false)
    }

    /// The image of a directory as it is now; `None` if it is empty. Its file has no name:
    /// it lasts as long as it is open.
    fn active(&self, id: &str, directory: &Path) -> Result<Option<Image>, RootfsError> {
        let mut entries = fs::read_dir(directory).map_err(failed("read", directory))?;
        if entries.next().is_none() {
            return Ok(None);
        }
        let path = self.temporary(id, "upper")?;
        self.convert(directory, &path, id.to_owned())?;
        open_nameless("erofs", &path, false).map(Some)
    }

    fn convert(&self, directory: &Path, image: &Path, name: String) -> Result<(), RootfsError> {
        let unpacker = self.unpacker.clone();
        let options = TreeOptions { name, unpacker, ..TreeOptions::default() };
        let converted = convert_tree(directory, image, &options);
        converted.map(drop).map_err(|source| RootfsError::Convert {
            directory: directory.to_owned(),
            source: Box::new(source),
        })
    }

    /// A new writable disk, whose file has no name.
    fn scratch(&self, id: &str) -> Result<Image, RootfsError> {
        let path = self.temporary(id, "disk")?;
        let made = Store::open(self.root)
            .map_err(caisson_rootfs::DiskError::from)
            .and_then(|store| store.create_writable_disk(&path, DEFAULT_DISK_BYTES));
        made.map_err(RootfsError::Disk)?;
        open_nameless("ext4", &path, true)
    }

    /// A free name for a file that loses it once it is open. Files of shims that were
    /// killed in between are removed.
    fn temporary(&self, id: &str, what: &str) -> Result<PathBuf, RootfsError> {
        let directory = self.directory("scratch")?;
        for path in fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.path()) {
            let maker = path.extension().and_then(|pid| pid.to_str()?.parse::<u32>().ok());
            let gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
            if maker.is_some_and(gone) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(directory.join(format!("{id}.{what}.{}", process::id())))
    }

    fn directory(&self, name: &str) -> Result<PathBuf, RootfsError> {
        let directory = self.root.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("create", &directory))?;
        Ok(directory)
    }
}

/// What tells a directory from every other, at any time.
struct Identity {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Identity {
    fn of(directory: &Path) -> Result<Self, RootfsError> {
        use std::os::unix::fs::MetadataExt;
        let path = directory.canonicalize().map_err(failed("find", directory))?;
        let found = fs::metadata(&path).map_err(failed("look at", directory))?;
        if !found.is_dir() {
            return Err(RootfsError::NotADirectory { path });
        }
        // A filesystem without birth times has to do with the rest.
        let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |born| born.as_nanos());
        let mut bytes = format!("{} {} {born}\n", found.dev(), found.ino()).into_bytes();
        bytes.extend_from_slice(path.as_os_str().as_bytes());
        Ok(Self { path, bytes })
    }

    fn name(&self) -> String {
        Digest::of(&self.bytes).hex().to_owned()
    }
}

/// Removes the images whose snapshot is gone or is another by now. VMs that have one open
/// keep it.
fn prune(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for source in entries.flatten().map(|entry| entry.path()) {
        if source.extension().is_none_or(|extension| extension != "source") {
            continue;
        }
        let Ok(bytes) = fs::read(&source) else { continue };
        let path = bytes.splitn(2, |&byte| byte == b'\n').nth(1).unwrap_or_default();
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let current = Identity::of(path).is_ok_and(|identity| identity.bytes == bytes);
        if !current {
            log::info!("{} is gone; removing its image", path.display());
            let _ = fs::remove_file(source.with_extension("erofs"));
            let _ = fs::remove_file(source);
        }
    }
}

fn open_nameless(fstype: &'static str, path: &Path, writable: bool) -> Result<Image, RootfsError> {
    let image = Image::open(fstype, path, writable);
    fs::remove_file(path).map_err(failed("remove", path))?;
    image
}

/// Excludes other shims until the file is dropped.
fn lock(directory: &Path) -> Result<File, RootfsError> {
    let file = File::open(directory).map_err(failed("open", directory))?;
    loop {
        // SAFETY: the descriptor is open; the call takes numbers only.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
            return Ok(file);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(failed("lock", directory)(error));
        }
    }
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> RootfsError + use<'a> {
    move |source| RootfsError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        directory: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn root(&self) -> PathBuf {
            self.directory.path().join("root")
        }

        fn snapshot(&self, name: &str) -> PathBuf {
            let snapshot = self.directory.path().join(name);
            fs::create_dir_all(snapshot.join("etc")).unwrap();
            fs::write(snapshot.join("etc/name"), name).unwrap();
            snapshot
        }

        fn rootfs(&self, trees: &[Tree]) -> Result<Rootfs, RootfsError> {
            let unpacker = Unpacker::in_this_process();
            Snapshots { root: &self.root(), unpacker }.rootfs("c", trees)
        }

        fn images(&self) -> usize {
            let images = fs::read_dir(self.root().join("snapshots")).unwrap();
            images.filter(|e| e.as_ref().unwrap().path().extension().unwrap() == "erofs").count()
        }
    }

    fn has_mke2fs() -> bool {
        let there = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
            .iter()
            .any(|directory| Path::new(directory).join("mke2fs").exists());
        if !there {
            eprintln!("skipped: no mke2fs here, which formats writable disks");
        }
        there
    }

    #[test]
    fn a_committed_snapshot_is_converted_once_and_forgotten_with_its_source() {
        if !has_mke2fs() {
            return;
        }
        let host = Host::new();
        let (a, b) = (host.snapshot("a"), host.snapshot("b"));
        let trees = [Tree::Committed(a.clone()), Tree::Committed(b.clone())];
        let first = host.rootfs(&trees).unwrap();
        assert_eq!((first.layers.len(), host.images()), (2, 2));
        assert!(first.scratch.unwrap().bytes >= 1 << 30);
        let made = fs::metadata(&first.layers[0].path).unwrap().modified().unwrap();
        let second = host.rootfs(&trees).unwrap();
        assert_eq!(fs::metadata(&second.layers[0].path).unwrap().modified().unwrap(), made);
        fs::remove_dir_all(&a).unwrap();
        host.rootfs(&[Tree::Committed(host.snapshot("c"))]).unwrap();
        assert_eq!(host.images(), 2, "b and c");
        // The same name again is another snapshot.
        fs::remove_dir_all(&b).unwrap();
        host.rootfs(&[Tree::Committed(host.snapshot("b"))]).unwrap();
        assert_eq!(host.images(), 2, "the new b and c");
    }

    #[test]
    fn an_active_snapshot_leaves_no_file() {
        if !has_mke2fs() {
            return;
        }
        let host = Host::new();
        let empty = host.directory.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let trees = [Tree::Active(host.snapshot("a")), Tree::Active(empty)];
        let rootfs = host.rootfs(&trees).unwrap();
        assert_eq!(rootfs.layers.len(), 1);
        assert_eq!(fs::read_dir(host.root().join("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_shim_left_is_removed() {
        if !has_mke2fs() {
            return;
        }
        let host = Host::new();
        let scratch = host.root().join("scratch");
        fs::create_dir_all(&scratch).unwrap();
        let mut dead = process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let (stale, living) =
            (format!("a.disk.{}", dead.id()), format!("b.disk.{}", process::id()));
        for name in [&stale, &living] {
            fs::write(scratch.join(name), "").unwrap();
        }
        host.rootfs(&[Tree::Active(host.snapshot("a"))]).unwrap();
        assert!(!scratch.join(stale).exists() && scratch.join(living).exists());
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let host = Host::new();
        let file = host.snapshot("a").join("etc/name");
        for path in [file, host.directory.path().join("missing")] {
            let error = host.rootfs(&[Tree::Committed(path.clone())]).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
