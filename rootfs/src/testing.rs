//! What tests share: a picture of a directory tree, mounted images, and odd trees.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::erofs::BLOCK;
use crate::layer::{Converted, LayerError, read_layer, uuid_of};
use crate::limits::Limits;

/// Converts a layer into `image` (created).
pub(crate) fn convert_to(tar: impl Read, image: &Path) -> Result<Converted, LayerError> {
    convert_limited(tar, image, &Limits::default())
}

pub(crate) fn convert_limited(
    tar: impl Read,
    image: &Path,
    limits: &Limits,
) -> Result<Converted, LayerError> {
    let file = File::options().read(true).write(true).create_new(true).open(image).unwrap();
    let mut hashing = HashingReader::new(tar, Algorithm::Sha256);
    let contents = read_layer(&mut hashing, &file, tempfile::tempfile().unwrap(), limits)?;
    let (opaque, (diff_id, uncompressed_bytes)) = (contents.opaque, hashing.finish());
    let image_bytes = contents.write(uuid_of(&diff_id))?.bytes;
    assert_eq!(file.metadata().unwrap().len(), image_bytes);
    assert_eq!(image_bytes % BLOCK as u64, 0);
    Ok(Converted { diff_id, uncompressed_bytes, image_bytes, opaque })
}

/// Passes reads through, hashing and counting them.
struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    fn new(inner: R, algorithm: Algorithm) -> Self {
        HashingReader { inner, hasher: Hasher::new(algorithm), bytes: 0 }
    }

    /// The digest and the count of what was read.
    fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.bytes)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hasher.update(&buf[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Everything about a file that an image must keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    pub(crate) size: u64,
    /// A file's digest or a link's target.
    pub(crate) content: String,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub(crate) same_as: Option<PathBuf>,
}

/// Pictures of all files below `root`, by path relative to it; the root is `.`.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, Picture> {
    let mut pictures = BTreeMap::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let mut content = String::new();
        if kind.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names.reverse();
            pending.extend(names.iter().map(|name| relative.join(name)));
        } else if kind.is_symlink() {
            content = format!("{:?}", fs::read_link(&path).unwrap());
        } else if kind.is_file() {
            let mut reader = HashingReader::new(File::open(&path).unwrap(), Algorithm::Sha256);
            std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
            content = reader.finish().0.to_string();
        }
        let same_as = match inodes.get(&metadata.ino()) {
            Some(first) => Some(PathBuf::clone(first)),
            None => {
                inodes.insert(metadata.ino(), relative.clone());
                None
            }
        };
        let picture = Picture {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            // What a directory counts differs between file systems.
            nlink: if kind.is_dir() { 0 } else { metadata.nlink() },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            rdev: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            size: if kind.is_dir() { 0 } else { metadata.size() },
            content,
            xattrs: xattrs(&path),
            same_as,
        };
        pictures.insert(relative, picture);
    }
    pictures
}

/// The same of an image, by a reader that needs no kernel and no privileges.
pub(crate) fn picture_of_image(image: &Path) -> BTreeMap<PathBuf, Picture> {
    use erofs_rs::EroFS;
    use erofs_rs::backend::SliceImage;
    let bytes = fs::read(image).unwrap();
    let fs = EroFS::new(SliceImage::new(&bytes)).unwrap();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut inodes = vec![(PathBuf::from("."), root)];
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().as_bytes().to_vec();
        let relative = path.strip_prefix(b"/").unwrap_or(&path);
        inodes.push((Path::new(".").join(OsString::from_vec(relative.to_vec())), entry.inode));
    }
    // As the walk of a directory gives them: the first name of an inode is the first.
    inodes.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut first_names: HashMap<u64, PathBuf> = HashMap::new();
    let mut pictures = BTreeMap::new();
    for (path, inode) in inodes {
        let same_as = first_names.get(&inode.id()).cloned();
        first_names.entry(inode.id()).or_insert_with(|| path.clone());
        let content = if inode.is_symlink() {
            let target = fs.read_link_inode(inode).unwrap();
            format!("{:?}", OsString::from_vec(target.into_vec()))
        } else if inode.is_file() {
            let mut reader =
                HashingReader::new(fs.open_inode_file(inode).unwrap(), Algorithm::Sha256);
            std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
            reader.finish().0.to_string()
        } else {
            String::new()
        };
        let (seconds, nanoseconds) = inode.modified_unix();
        let device = inode.device().unwrap_or_default();
        let picture = Picture {
            mode: inode.file_type().as_raw_mode() | inode.permissions().mode(),
            uid: inode.uid(),
            gid: inode.gid(),
            nlink: if inode.is_dir() { 0 } else { inode.nlink().into() },
            mtime: (seconds, nanoseconds.into()),
            rdev: rustix::fs::makedev(device.0, device.1),
            size: if inode.is_dir() { 0 } else { inode.data_size() },
            content,
            xattrs: fs.xattrs_inode(inode).unwrap(),
            same_as,
        };
        pictures.insert(path, picture);
    }
    pictures
}

/// Compares pictures file by file, so that a difference is readable.
pub(crate) fn assert_same(
    expected: &BTreeMap<PathBuf, Picture>,
    actual: &BTreeMap<PathBuf, Picture>,
) {
    for (path, picture) in expected {
        let other = actual.get(path).unwrap_or_else(|| panic!("{path:?} is missing"));
        assert_eq!(picture, other, "{path:?}");
    }
    for path in actual.keys() {
        assert!(expected.contains_key(path), "{path:?} is too many");
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    list[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..])
                .unwrap_or_else(|error| panic!("{path:?} {}: {error}", name.escape_ascii()));
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// An image mounted by this host's kernel.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// `None`, with a word on standard error, where mounting is not possible.
    pub(crate) fn new(image: &Path) -> Option<Mounted> {
        let mounted = Mounted::try_new("erofs", "ro,loop", image);
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let permitted =
            rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
        mounted.unwrap_or_else(|reason| {
            // A kernel that knows EROFS must take the image.
            assert!(!(filesystems.contains("\terofs\n") && permitted), "{reason}");
            eprintln!("skipped: this host cannot mount EROFS: {reason}");
            None
        })
    }

    /// What overlayfs makes of layers, the bottom one first.
    pub(crate) fn overlay(layers: &[Mounted]) -> Option<Mounted> {
        let lower: Vec<&str> =
            layers.iter().rev().map(|layer| layer.path().to_str().unwrap()).collect();
        let options = format!("ro,lowerdir={}", lower.join(":"));
        Mounted::try_new("overlay", &options, Path::new("overlay")).unwrap_or_else(|reason| {
            eprintln!("skipped: this host cannot mount overlayfs: {reason}");
            None
        })
    }

    fn try_new(kind: &str, options: &str, source: &Path) -> Result<Option<Mounted>, String> {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", kind, "-o", options])
            .arg(source)
            .arg(directory.path())
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(Some(Mounted { directory })),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => {
                eprintln!("skipped: mount cannot run: {error}");
                Ok(None)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a test that fails may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

/// Runs `fsck.erofs`, which must be content; says so if it is not installed.
pub(crate) fn check_with_fsck(image: &Path) {
    match Command::new("fsck.erofs").arg("--extract").arg(image).output() {
        Ok(output) => assert!(output.status.success(), "fsck.erofs: {output:?}"),
        Err(error) => eprintln!("skipped: fsck.erofs cannot run: {error}"),
    }
}

/// Packs a directory with GNU tar, an independent writer. `None` if it is not installed.
pub(crate) fn gnu_tar(directory: &Path, options: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("tar")
        .args(options)
        .args(["--numeric-owner", "-c", "-C"])
        .arg(directory)
        .arg(".")
        .output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(error) => {
            eprintln!("skipped: tar cannot run: {error}");
            None
        }
    }
}

/// A tree with one of everything. Without root, without devices and foreign owners.
pub(crate) fn odd_tree(root: &Path) {
    use std::os::unix::fs::{chown, symlink};
    let write = |name: &str, data: &[u8]| fs::write(root.join(name), data).unwrap();
    let pattern =
        |length: usize| -> Vec<u8> { (0..length).map(|i| (i * 31 + i / 255) as u8 | 1).collect() };
    for (index, size) in
        [0, 1, 100, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 65535, 65536, 65537, 1_000_003]
            .into_iter()
            .enumerate()
    {
        write(&format!("size{index}-{size}"), &pattern(size));
    }
    fs::create_dir_all(root.join("a/b/c/d")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for index in 0..700 {
        write(&format!("many/{index:03}-{}", "n".repeat(index % 240)), &pattern(index % 50));
    }
    for name in [
        "many/-before-dot",
        "many/!",
        "many/~after",
        "many/.hidden",
        "many/...",
        "a/\u{e9}\u{4e2d}",
    ] {
        write(name, name.as_bytes());
    }
    let raw = OsString::from_vec(vec![b'r', 0xff, 0xfe, b'\n', 0x1b]);
    fs::write(root.join(raw), b"not utf-8").unwrap();
    symlink("short", root.join("link")).unwrap();
    symlink("/etc/passwd", root.join("absolute-link")).unwrap();
    symlink("x".repeat(4000), root.join("long-link")).unwrap();
    symlink("y".repeat(4095), root.join("longest-link")).unwrap();
    write("linked", &pattern(5000));
    fs::hard_link(root.join("linked"), root.join("a/b/linked-too")).unwrap();
    fs::hard_link(root.join("linked"), root.join("linked-three")).unwrap();
    // Zeros in all places: whole chunks, half chunks, at the ends.
    let mut zeros = vec![0; 400_000];
    zeros[70_000..70_100].fill(1);
    zeros[300_000..300_001].fill(2);
    write("zeros-inside", &zeros);
    write("all-zeros", &vec![0; 200_000]);
    write("zeros-small", &vec![0; 40_000]);
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(24 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 9 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (24 << 20) - 3).unwrap();
    write("setuid", b"#!");
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for (name, value) in [("user.one", &b"1"[..]), ("user.two", &[0, 255, 10]), ("user.empty", b"")]
    {
        rustix::fs::lsetxattr(root.join("linked"), name, value, rustix::fs::XattrFlags::empty())
            .unwrap();
    }
    let large = vec![b'v'; 3000];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(root.join("size2-100"), "user.large", &large, flags).unwrap();
    rustix::fs::lsetxattr(root.join("empty"), "user.dir", b"d", flags).unwrap();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: devices, owners and trusted attributes need root");
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    chown(root.join("size1-1"), Some(1000), Some(65_534)).unwrap();
    chown(root.join("size2-100"), Some(100_000), Some(4_000_000_000)).unwrap();
    chown(root.join("many"), Some(65_536), Some(1)).unwrap();
    rustix::fs::lsetxattr(root.join("setuid"), "security.capability", &capability, flags).unwrap();
    rustix::fs::lsetxattr(root.join("empty"), "trusted.t", b"t", flags).unwrap();
    rustix::fs::lsetxattr(root.join("link"), "trusted.on-link", b"l", flags).unwrap();
    for (name, kind, major, minor) in [
        ("null", rustix::fs::FileType::CharacterDevice, 1, 3),
        ("wide", rustix::fs::FileType::BlockDevice, 259, 70_000),
    ] {
        let device = rustix::fs::makedev(major, minor);
        if let Err(error) =
            rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, 0o660.into(), device)
        {
            eprintln!("skipped: devices cannot be made here: {error}");
        }
    }
    // Times last: the above changed them.
    let times = |seconds, nanoseconds| {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        rustix::fs::Timestamps { last_access: time, last_modification: time }
    };
    for (name, time) in [
        ("link", times(1, 1)),
        ("setuid", times(4_102_444_800, 999_999_999)),
        ("size0-0", times(-5, 500_000_000)),
        ("a/b", times(1_000_000_000, 0)),
    ] {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &time, flags).unwrap();
    }
}

/// The digest of a whole file.
pub(crate) fn file_digest(path: &Path) -> Digest {
    Digest::of(&fs::read(path).unwrap())
}
