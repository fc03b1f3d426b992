//! The container's root filesystem: EROFS layers under an overlay whose writable part is
//! an ext4 disk or a tmpfs. Runs in the container's own mount namespace, so that all of it
//! goes with the container's last process.
//!
//! ```text
//!   /run/container        a tmpfs, this container's staging area
//!     0 1 2 …             the layers, bottom first
//!     rw/{upper,work}     the writable disk
//!     root                the overlay: what becomes /
//!     null empty files/   what masks and generated files are bound from
//! ```

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use caisson_agent_protocol::plan::Extent;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use crate::{
    error::{At, OsError},
    path::Root,
    sys::{self, mount},
};

/// Where a container is put together, in its own mount namespace.
pub const STAGING: &str = "/run/container";
/// Generated files count against the container's memory; this bounds what a writable
/// one may grow to.
const STAGING_OPTIONS: &str = "mode=0755,size=16m,nr_inodes=8192";

/// The device nodes of a plan's extents.
#[derive(Debug, Default)]
pub struct RootDevices {
    /// Bottom layer first.
    pub layers: Vec<PathBuf>,
    pub writable: Option<(PathBuf, Extent)>,
}

/// Mounts the root filesystem below [`STAGING`] and makes that the current directory.
pub fn assemble(devices: &RootDevices) -> Result<Root, OsError> {
    mount_layers(devices)?;
    let top = match devices.layers.len() {
        0 => {
            make_dir("none")?;
            "none".to_owned()
        }
        count => (count - 1).to_string(),
    };
    make_dir("rw")?;
    mount_writable(devices)?;
    make_upper(&top)?;
    make_dir("root")?;
    // No mknod or setuid is held back: the image's are meant for this container, and the
    // device filter decides about devices.
    mount("overlay", "root", "overlay", 0, &overlay_options(devices.layers.len()))
        .at(|| format!("stack {} layers", devices.layers.len()))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(Root::new(open("root", flags, Mode::empty()).at(|| "open the root filesystem")?))
}

fn mount_layers(devices: &RootDevices) -> Result<(), OsError> {
    fs::create_dir_all(STAGING).at(|| format!("make {STAGING}"))?;
    mount("tmpfs", STAGING, "tmpfs", libc::MS_NOSUID, STAGING_OPTIONS)
        .at(|| "mount the staging area")?;
    // Short relative names keep the overlay's options within one page.
    std::env::set_current_dir(STAGING).at(|| format!("enter {STAGING}"))?;
    let count = devices.layers.len();
    for (index, device) in devices.layers.iter().enumerate() {
        let name = index.to_string();
        make_dir(&name)?;
        mount(&device.to_string_lossy(), &name, "erofs", libc::MS_RDONLY, "")
            .at(|| format!("mount layer {index} of {count} from {}", device.display()))?;
    }
    Ok(())
}

/// Mounts the layers as [`assemble`] does, without the writable disk: what the image has. In
/// a mount namespace of the caller's own.
pub fn assemble_image(devices: &RootDevices) -> Result<OwnedFd, OsError> {
    let count = devices.layers.len();
    mount_layers(devices)?;
    make_dir("none")?;
    make_dir("root")?;
    // One at least beside the layers: an overlay without a writable part wants two.
    let lower = (0..count).rev().map(|n| format!("{n}:")).collect::<String>();
    let result = match count {
        0 => Ok(()),
        _ => mount("overlay", "root", "overlay", libc::MS_RDONLY, &format!("lowerdir={lower}none")),
    };
    result.at(|| format!("stack {count} layers"))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("root", flags, Mode::empty()).at(|| "open the image's root")
}

fn overlay_options(layers: usize) -> String {
    let lower = match layers {
        0 => "none".to_owned(),
        // Topmost first.
        _ => (0..layers).rev().map(|n| n.to_string()).collect::<Vec<_>>().join(":"),
    };
    // A directory of the image can be renamed, as on any other filesystem.
    format!("lowerdir={lower},upperdir=rw/upper,workdir=rw/work,redirect_dir=on,index=off")
}

fn mount_writable(devices: &RootDevices) -> Result<(), OsError> {
    match &devices.writable {
        None => mount("tmpfs", "rw", "tmpfs", 0, "mode=0755").at(|| "mount a tmpfs to write to"),
        Some((device, extent)) => {
            // The lazy initialisation of inode tables would write to every block of a
            // sparse file that already reads as zeros.
            mount(&device.to_string_lossy(), "rw", "ext4", libc::MS_NOATIME, "noinit_itable")
                .at(|| format!("mount the writable disk {}", device.display()))?;
            grow(extent.length).at(|| {
                format!("grow the filesystem of the writable disk to {} bytes", extent.length)
            })
        }
    }
}

/// Grows the ext4 at `rw` online to `length` bytes; nothing to do is no error.
fn grow(length: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    let dir = File::open("rw")?;
    let stat = sys::statfs(std::os::fd::AsFd::as_fd(&dir))?;
    let block_size = u64::try_from(stat.f_bsize).unwrap_or(0).max(1024);
    let blocks = length / block_size;
    // The kernel counts what the filesystem reports without its own overhead; only a
    // disk that is clearly larger is worth the call.
    if blocks.saturating_sub(stat.f_blocks) < blocks / 8 {
        return Ok(());
    }
    // SAFETY: the argument is a whole 64-bit number that outlives the call.
    sys::check(unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) })
        .map(drop)
}

/// Makes the overlay's directories; a disk that was used before has them. The root takes
/// its owner and mode from the upper directory, so a new one copies the image's.
fn make_upper(top: &str) -> Result<(), OsError> {
    make_dir_if_missing("rw/work")?;
    if !make_dir_if_missing("rw/upper")? {
        return Ok(());
    }
    let image = Path::new(top).metadata().at(|| "examine the image's root directory")?;
    let mode = fs::Permissions::from_mode(image.permissions().mode() & 0o7777);
    fs::set_permissions("rw/upper", mode).at(|| "set the root directory's mode")?;
    if (image.uid(), image.gid()) != (0, 0) {
        chown("rw/upper", Some(image.uid()), Some(image.gid()))
            .at(|| "set the root directory's owner")?;
    }
    Ok(())
}

fn make_dir(name: &str) -> Result<(), OsError> {
    fs::create_dir(name).at(|| format!("make {STAGING}/{name}"))
}

fn make_dir_if_missing(name: &str) -> Result<bool, OsError> {
    match fs::create_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true).at(|| format!("make {STAGING}/{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_layer_comes_first() {
        assert!(overlay_options(3).starts_with("lowerdir=2:1:0,upperdir="));
        assert!(overlay_options(0).starts_with("lowerdir=none,"));
    }

    #[test]
    fn the_options_of_the_most_layers_fit_a_page() {
        assert!(overlay_options(200).len() < 4096);
    }
}
