//! Root filesystem mounts, in containerd's shape, into the images of a VM's block devices.
//!
//! Every image is opened here, once: the vmm and the plan get what was opened, whatever
//! happens to the path afterwards.

mod mounts;
mod snapshots;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use caisson_agent_protocol::plan::{Extent, RootfsPlan};
use caisson_failpoints::{hit, steps};

use caisson_rootfs::{ConvertTreeError, DiskError};

use self::snapshots::{Snapshots, Tree};
use crate::{client::RootfsMount, kind::ErrorKind};

/// The serial numbers of the VM's block devices.
pub const LAYERS_DEVICE: &str = "layers";
pub const SCRATCH_DEVICE: &str = "scratch";

/// Each file becomes a stretch of its device in units of this.
const BLOCK_BYTES: u64 = 4096;

/// As many as overlayfs stacks.
const MAX_LAYERS: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("open the {fstype} image {}", path.display())]
    Open { fstype: &'static str, path: PathBuf, source: io::Error },
    #[error("the {fstype} image {} is no regular file", path.display())]
    NotAFile { fstype: &'static str, path: PathBuf },
    #[error("the {fstype} image {} holds {bytes} bytes, which no filesystem does", path.display())]
    Size { fstype: &'static str, path: PathBuf, bytes: u64 },
    #[error("a root filesystem of {count} layers: at most {MAX_LAYERS} can be stacked")]
    TooManyLayers { count: usize },
    #[error("a second writable disk, {source_path}: a container has one")]
    SecondDisk { source_path: String },
    #[error(
        "a root filesystem mount of type {fstype:?} ({source_path}): erofs, ext4, overlay and bind are known"
    )]
    UnknownType { fstype: String, source_path: String },
    #[error("a root filesystem without any layer")]
    NoLayers,
    #[error("an overlay mount without lowerdir")]
    NoLowerDir,
    #[error("images and directories are mixed in one root filesystem")]
    Mixed,
    #[error("{} is no directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error(
        "the root directory {} is reached through a symbolic link or .., which could lead anywhere on the host; name the directory itself",
        path.display()
    )]
    Symlink { path: PathBuf },
    #[error("{action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("convert {} to an image", directory.display())]
    Convert { directory: PathBuf, source: Box<ConvertTreeError> },
    #[error("make a writable disk")]
    Disk(#[source] DiskError),
    #[error("the conversion of the root filesystem failed unexpectedly")]
    Panicked,
}

impl RootfsError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source, .. } | Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Internal,
            },
            Self::UnknownType { .. } => ErrorKind::Unsupported,
            Self::Convert { .. } | Self::Disk(_) if self.is_disk_full() => ErrorKind::NoSpace,
            Self::Convert { .. } | Self::Disk(_) | Self::Panicked => ErrorKind::Internal,
            Self::NotAFile { .. }
            | Self::NotADirectory { .. }
            | Self::Symlink { .. }
            | Self::Size { .. }
            | Self::TooManyLayers { .. }
            | Self::SecondDisk { .. }
            | Self::NoLowerDir
            | Self::Mixed
            | Self::NoLayers => ErrorKind::InvalidArgument,
        }
    }

    /// Whether a full disk is among the causes.
    fn is_disk_full(&self) -> bool {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|error| error.kind() == io::ErrorKind::StorageFull) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Where root filesystems come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// `--root`: converted snapshots and disk templates are kept here.
    pub root: PathBuf,
}

impl Source {
    /// Opens the images that `mounts` name, or those made of the directories they name;
    /// without mounts, of the bundle's root directory.
    pub async fn open(
        &self,
        id: &str,
        bundle: &Path,
        mounts: Vec<RootfsMount>,
    ) -> Result<Rootfs, RootfsError> {
        let images = mounts.iter().filter(|mount| is_image(mount)).count();
        if images > 0 && images == mounts.len() {
            return Rootfs::open(&mounts);
        }
        if images > 0 {
            return Err(RootfsError::Mixed);
        }
        let trees = match mounts.is_empty() {
            true => root_directory(bundle)?,
            false => mounts::trees(&mounts)?,
        };
        // Minutes of work for a large tree: not on the thread that serves.
        let (root, id) = (self.root.clone(), id.to_owned());
        let convert = move || {
            let unpacker = caisson_rootfs::Unpacker::default();
            Snapshots { root: &root, unpacker }.rootfs(&id, &trees)
        };
        let converted = tokio::task::spawn_blocking(convert).await;
        // A shim lives as long as its container; what the conversion took goes back.
        // SAFETY: takes a number; glibc locks what it looks at.
        unsafe { libc::malloc_trim(0) };
        converted.unwrap_or(Err(RootfsError::Panicked))
    }
}

fn is_image(mount: &RootfsMount) -> bool {
    ["erofs", "ext4"].contains(&mount.fstype.as_str())
}

/// The bundle's own root directory, or what lies beneath an overlay that is mounted there.
fn root_directory(bundle: &Path) -> Result<Vec<Tree>, RootfsError> {
    // A bundle that cannot be read is reported when it becomes a plan.
    let named = crate::plan::load(bundle)
        .ok()
        .and_then(|spec| spec.root().as_ref().map(|root| bundle.join(root.path())));
    let named = named.unwrap_or_else(|| bundle.join("rootfs"));
    let failed =
        |source| RootfsError::Io { action: "find the root directory", path: named.clone(), source };
    let directory = named.canonicalize().map_err(failed)?;
    // Links on the way to the bundle are the host's affair, those inside it are not.
    let expected = match named.strip_prefix(bundle) {
        Ok(inside) => bundle.canonicalize().map_err(failed)?.join(inside).components().collect(),
        Err(_) => match (named.parent(), named.file_name()) {
            (Some(parent), Some(name)) => parent.canonicalize().map_err(failed)?.join(name),
            _ => directory.clone(),
        },
    };
    if directory != expected {
        return Err(RootfsError::Symlink { path: named });
    }
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let beneath = mounts::mounted_overlay(&directory, &mountinfo);
    Ok(beneath.unwrap_or_else(|| vec![Tree::Active(directory)]))
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    pub file: File,
    pub path: PathBuf,
    pub bytes: u64,
}

/// The images of one container, bottom layer first.
#[derive(Debug, Default)]
pub struct Rootfs {
    pub layers: Vec<Image>,
    /// The writable disk; without one the container writes into the VM's memory.
    pub scratch: Option<Image>,
}

impl Rootfs {
    /// Opens the images of `mounts` that are `erofs` and `ext4` files.
    pub fn open(mounts: &[RootfsMount]) -> Result<Self, RootfsError> {
        let mut rootfs = Self::default();
        for mount in mounts {
            let path = Path::new(&mount.source);
            match mount.fstype.as_str() {
                "erofs" => rootfs.layers.push(Image::open("erofs", path, false)?),
                "ext4" if rootfs.scratch.is_none() => {
                    rootfs.scratch = Some(Image::open("ext4", path, true)?);
                }
                "ext4" => {
                    return Err(RootfsError::SecondDisk { source_path: mount.source.clone() });
                }
                _ => {
                    return Err(RootfsError::UnknownType {
                        fstype: mount.fstype.clone(),
                        source_path: mount.source.clone(),
                    });
                }
            }
        }
        rootfs.check()
    }

    /// Checks that there is something to stack, and not too much of it.
    pub fn check(self) -> Result<Self, RootfsError> {
        match self.layers.len() {
            0 => Err(RootfsError::NoLayers),
            count if count > MAX_LAYERS => Err(RootfsError::TooManyLayers { count }),
            _ => Ok(self),
        }
    }

    /// Where the agent finds them: the layers one after the other on one device, the
    /// writable disk alone on the other.
    pub fn plan(&self, readonly: bool) -> RootfsPlan {
        let mut offset = 0;
        let layers = self
            .layers
            .iter()
            .map(|image| {
                let extent = image.extent(LAYERS_DEVICE, offset);
                offset += extent.length;
                extent
            })
            .collect();
        let writable = self.scratch.as_ref().map(|image| image.extent(SCRATCH_DEVICE, 0));
        RootfsPlan { layers, writable, readonly }
    }
}

impl Image {
    /// Opens a regular file that is not reached through a symbolic link.
    pub fn open(fstype: &'static str, path: &Path, writable: bool) -> Result<Self, RootfsError> {
        let failed = |source| RootfsError::Open { fstype, path: path.to_owned(), source };
        hit(&steps::SHIM_CREATE_IMAGES).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            // A FIFO in the image's place must not hang the open.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(RootfsError::NotAFile { fstype, path: path.to_owned() });
        }
        let bytes = metadata.size();
        // Half of what fits, so that sums of sizes do too.
        if bytes == 0 || bytes > u64::MAX / 2 / MAX_LAYERS as u64 {
            return Err(RootfsError::Size { fstype, path: path.to_owned(), bytes });
        }
        Ok(Self { file, path: path.to_owned(), bytes })
    }

    fn extent(&self, device: &str, offset: u64) -> Extent {
        let length = self.bytes.next_multiple_of(BLOCK_BYTES);
        Extent { device: device.to_owned(), offset, length }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn mount(fstype: &str, source: &Path) -> RootfsMount {
        RootfsMount {
            fstype: fstype.into(),
            source: source.to_str().unwrap().into(),
            options: vec![],
        }
    }

    #[test]
    fn layers_lie_one_after_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: usize| {
            let path = directory.path().join(name);
            fs::write(&path, vec![0; bytes]).unwrap();
            path
        };
        let (a, b, disk) = (file("a", 4097), file("b", 4096), file("disk", 8192));
        let mounts = [mount("erofs", &a), mount("erofs", &b), mount("ext4", &disk)];
        let plan = Rootfs::open(&mounts).unwrap().plan(true);
        let extent =
            |device: &str, offset, length| Extent { device: device.into(), offset, length };
        assert_eq!(plan.layers, [extent("layers", 0, 8192), extent("layers", 8192, 4096)]);
        assert_eq!(plan.writable, Some(extent("scratch", 0, 8192)));
        assert!(plan.readonly);
    }

    #[test]
    fn a_root_directory_behind_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle");
        fs::create_dir_all(bundle.join("real/sub")).unwrap();
        symlink("/", bundle.join("rootfs")).unwrap();
        symlink("real", bundle.join("link")).unwrap();
        symlink(&bundle, directory.path().join("by-link")).unwrap();
        let root = |path: &str| {
            let spec = serde_json::json!({ "ociVersion": "1.1.0", "root": { "path": path } });
            fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
            root_directory(&bundle)
        };
        let absolute = bundle.join("rootfs");
        for path in
            ["rootfs", "link", "link/sub", "./rootfs", "../bundle/real", absolute.to_str().unwrap()]
        {
            assert!(matches!(root(path), Err(RootfsError::Symlink { .. })), "{path}");
        }
        let real = bundle.join("real").canonicalize().unwrap();
        for path in ["real", "./real/", real.to_str().unwrap()] {
            assert_eq!(root(path).unwrap(), [Tree::Active(real.clone())], "{path}");
        }
        // How one gets to the bundle does not matter.
        assert!(root_directory(&directory.path().join("by-link")).is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::write(&real, [1]).unwrap();
        let (link, empty) = (directory.path().join("link"), directory.path().join("empty"));
        symlink(&real, &link).unwrap();
        fs::write(&empty, []).unwrap();
        for path in [&link, &empty, directory.path(), Path::new("/dev/null"), Path::new("/no")] {
            let error = Rootfs::open(&[mount("erofs", path)]).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        let disks = [mount("erofs", &real), mount("ext4", &real), mount("ext4", &real)];
        assert!(matches!(Rootfs::open(&disks), Err(RootfsError::SecondDisk { .. })));
        assert!(matches!(Rootfs::open(&[]), Err(RootfsError::NoLayers)));
        let unknown = [mount("nfs", &real)];
        assert!(matches!(Rootfs::open(&unknown), Err(RootfsError::UnknownType { .. })));
    }
}
