//! The VM's block devices and the stretches of them that are images.
//!
//! Each device is found by its virtio serial number. An [`Extent`] that is not a whole
//! device becomes a partition (`BLKPG_ADD_PARTITION`), shared by every container that
//! uses it and removed with the last.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{c_char, c_int},
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use caisson_agent_protocol::{ErrorKind, plan::Extent};

use crate::{
    error::{At, Kind, OsError},
    sys,
};

/// The kernel's DISK_MAX_PARTS, the whole disk included.
const MAX_PARTITIONS: u32 = 255;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("no block device has the serial number {serial:?}; there are: {present}")]
    NoDevice { serial: String, present: String },
    #[error("{length} bytes at {offset} lie beyond the end of device {device:?} ({size} bytes)")]
    Beyond { device: String, offset: u64, length: u64, size: u64 },
    #[error(
        "the {} bytes at {} of {:?} are another container's writable disk",
        .extent.length, .extent.offset, .extent.device
    )]
    Taken { extent: Extent },
    #[error("device {device:?} cannot be cut into more than {MAX_PARTITIONS} parts")]
    TooMany { device: String },
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for DiskError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Os(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// One block device.
#[derive(Clone, Debug)]
struct Disk {
    /// The node, `/dev/vda`.
    node: PathBuf,
    size: u64,
}

#[derive(Debug)]
struct Part {
    /// The partition's number; 0 is the whole device.
    number: u32,
    users: u32,
}

/// Every device and what is cut out of it.
#[derive(Debug, Default)]
pub struct Disks {
    disks: BTreeMap<String, Disk>,
    parts: HashMap<(String, u64, u64), Part>,
    /// Partitions that were still busy when their last user went.
    stale: Vec<(String, u32)>,
}

impl Disks {
    /// The virtio disks that `sys_block` (`/sys/block`) lists. Devices are never added to
    /// a running VM, so once is enough.
    pub fn discover(sys_block: &Path) -> Result<Self, OsError> {
        let mut disks = Self::default();
        let entries = fs::read_dir(sys_block).at(|| format!("list {}", sys_block.display()))?;
        for entry in entries {
            let entry = entry.at(|| format!("list {}", sys_block.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("vd") {
                continue;
            }
            let serial = fs::read_to_string(entry.path().join("serial"))
                .at(|| format!("read the serial number of {name}"))?;
            disks.add(serial.trim(), &name, sys_block)?;
        }
        Ok(disks)
    }

    /// Adds the device `name` of `sys_block` under `serial`.
    pub fn add(&mut self, serial: &str, name: &str, sys_block: &Path) -> Result<(), OsError> {
        let path = sys_block.join(name).join("size");
        let sectors = fs::read_to_string(&path)
            .and_then(|text| text.trim().parse::<u64>().map_err(io::Error::other))
            .at(|| format!("read {}", path.display()))?;
        let disk = Disk { node: Path::new("/dev").join(name), size: sectors.saturating_mul(512) };
        self.disks.insert(serial.to_owned(), disk);
        Ok(())
    }

    /// The node of the device that is exactly `extent`; made if it is new.
    pub fn acquire(&mut self, extent: &Extent) -> Result<PathBuf, DiskError> {
        let disk = self.disk(&extent.device)?.clone();
        let end = extent.offset.checked_add(extent.length);
        if end.is_none_or(|end| end > disk.size) || extent.length == 0 {
            return Err(DiskError::Beyond {
                device: extent.device.clone(),
                offset: extent.offset,
                length: extent.length,
                size: disk.size,
            });
        }
        let key = key(extent);
        if let Some(part) = self.parts.get_mut(&key) {
            part.users += 1;
            return Ok(node(&disk.node, part.number));
        }
        let number = if extent.offset == 0 && extent.length == disk.size {
            0
        } else {
            self.cut(extent, &disk)?
        };
        self.parts.insert(key, Part { number, users: 1 });
        Ok(node(&disk.node, number))
    }

    /// Whether some container uses exactly `extent`.
    pub fn is_used(&self, extent: &Extent) -> bool {
        self.parts.contains_key(&key(extent))
    }

    fn cut(&mut self, extent: &Extent, disk: &Disk) -> Result<u32, DiskError> {
        self.sweep();
        let device = &extent.device;
        let used = |number: &u32| {
            self.parts.iter().any(|(key, part)| key.0 == *device && part.number == *number)
                || self.stale.contains(&(device.clone(), *number))
        };
        let number = (1..=MAX_PARTITIONS)
            .find(|number| !used(number))
            .ok_or_else(|| DiskError::TooMany { device: device.clone() })?;
        blkpg(&disk.node, BLKPG_ADD_PARTITION, number, extent.offset, extent.length)
            .at(|| format!("make partition {number} of device {device:?}"))?;
        Ok(number)
    }

    /// Gives back what [`Self::acquire`] gave.
    pub fn release(&mut self, extent: &Extent) {
        let key = key(extent);
        let Some(part) = self.parts.get_mut(&key) else { return };
        part.users -= 1;
        if part.users == 0 {
            let number = part.number;
            self.parts.remove(&key);
            if number != 0 {
                self.stale.push((extent.device.clone(), number));
                self.sweep();
            }
        }
    }

    /// Removes partitions without users; one that the kernel still unmounts waits for the
    /// next time.
    fn sweep(&mut self) {
        let mut stale = std::mem::take(&mut self.stale);
        stale.retain(|(device, number)| {
            let Some(disk) = self.disks.get(device) else { return false };
            let removed = remove_partition(&disk.node, *number);
            removed.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
        });
        self.stale = stale;
    }

    fn disk(&self, serial: &str) -> Result<&Disk, DiskError> {
        self.disks.get(serial).ok_or_else(|| DiskError::NoDevice {
            serial: serial.to_owned(),
            present: self.disks.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

fn key(extent: &Extent) -> (String, u64, u64) {
    (extent.device.clone(), extent.offset, extent.length)
}

/// The node of partition `number`: a "p" goes between when the name ends in a digit.
fn node(disk: &Path, number: u32) -> PathBuf {
    let name = disk.to_string_lossy();
    match number {
        0 => disk.to_owned(),
        _ if name.ends_with(|last: char| last.is_ascii_digit()) => {
            format!("{name}p{number}").into()
        }
        _ => format!("{name}{number}").into(),
    }
}

/// Takes partition `number` from the device `disk`.
pub fn remove_partition(disk: &Path, number: u32) -> io::Result<()> {
    blkpg(disk, BLKPG_DEL_PARTITION, number, 0, 0)
}

const BLKPG_ADD_PARTITION: c_int = 1;
const BLKPG_DEL_PARTITION: c_int = 2;

/// The BLKPG ioctl (`linux/blkpg.h`).
fn blkpg(disk: &Path, operation: c_int, number: u32, start: u64, length: u64) -> io::Result<()> {
    const BLKPG: libc::c_ulong = 0x1269;

    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: c_int,
        device_name: [c_char; 64],
        volume_name: [c_char; 64],
    }
    #[repr(C)]
    struct Argument {
        operation: c_int,
        flags: c_int,
        data_length: c_int,
        data: *mut Partition,
    }
    let mut partition = Partition {
        start: start as i64,
        length: length as i64,
        number: number as c_int,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = Argument {
        operation,
        flags: 0,
        data_length: size_of::<Partition>() as c_int,
        data: &raw mut partition,
    };
    let file = File::open(disk)?;
    // SAFETY: both structures have the kernel's layout and outlive the call.
    sys::check(unsafe { libc::ioctl(file.as_raw_fd(), BLKPG, &raw const argument) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(size: u64) -> Disks {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vda")).unwrap();
        fs::write(dir.path().join("vda/serial"), "layers\n").unwrap();
        fs::write(dir.path().join("vda/size"), format!("{}\n", size / 512)).unwrap();
        fs::create_dir(dir.path().join("loop0")).unwrap();
        Disks::discover(dir.path()).unwrap()
    }

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { device: "layers".into(), offset, length }
    }

    #[test]
    fn a_whole_device_needs_no_partition() {
        let mut disks = disks(8192);
        assert_eq!(disks.acquire(&extent(0, 8192)).unwrap(), Path::new("/dev/vda"));
        assert_eq!(disks.acquire(&extent(0, 8192)).unwrap(), Path::new("/dev/vda"));
        disks.release(&extent(0, 8192));
        disks.release(&extent(0, 8192));
        assert!(disks.parts.is_empty());
    }

    #[test]
    fn what_lies_beyond_the_device_is_refused() {
        let mut disks = disks(8192);
        for (offset, length) in [(0, 12288), (8192, 4096), (u64::MAX - 4095, 8192), (0, 0)] {
            let error = disks.acquire(&extent(offset, length)).unwrap_err();
            assert!(matches!(error, DiskError::Beyond { .. }), "{offset} {length}: {error}");
        }
    }

    #[test]
    fn an_unknown_serial_names_those_that_exist() {
        let wrong = Extent { device: "scratch".into(), offset: 0, length: 4096 };
        let error = disks(4096).acquire(&wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no block device has the serial number \"scratch\"; there are: layers"
        );
    }

    #[test]
    fn partition_nodes_are_named_as_the_kernel_does() {
        assert_eq!(node(Path::new("/dev/vda"), 3), Path::new("/dev/vda3"));
        assert_eq!(node(Path::new("/dev/loop0"), 3), Path::new("/dev/loop0p3"));
    }
}
