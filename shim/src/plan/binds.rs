//! Bind mounts: what of the host a container sees.
//!
//! | source | in the guest |
//! |---|---|
//! | a directory, a file | a share: the host's own, through virtio-fs |
//! | `hosts`, `hostname`, `resolv.conf`, which engines generate, and files over `/proc` | a copy that travels in the plan, so that most VMs need no file server |
//! | the shared memory of a pod or container | a tmpfs of that size |
//! | a socket, a FIFO, a device | refused |

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use caisson_agent_protocol::plan::{COPY_UP, FilePlan, MountPlan};

use super::{PlanError, invalid, mounts::Entry, unsupported};
use crate::sandbox::Share;

/// The largest generated file that travels in the plan.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where engines bind what they generate.
const GENERATED: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

const SHM: &str = "/dev/shm";

/// Each is a directory of the file server's root and two descriptors of the shim.
const MAX_SHARES: usize = 256;

/// One bind mount of the spec.
pub(super) struct Bind<'a> {
    /// What to call it in errors.
    pub(super) field: String,
    pub(super) source: &'a Path,
    pub(super) destination: String,
    /// `MS_*`.
    pub(super) flags: u64,
    pub(super) recursive: bool,
    /// A directory that is empty gets what the image has in its place.
    pub(super) copy_up: bool,
}

/// The shares of one VM so far; equal ones are one.
#[derive(Default)]
pub(super) struct Shares {
    keys: Vec<Key>,
    list: Vec<Share>,
}

#[derive(PartialEq, Eq)]
struct Key {
    source: PathBuf,
    readonly: bool,
    recursive: bool,
}

impl Shares {
    pub(super) fn into_list(self) -> Vec<Share> {
        self.list
    }

    /// The index of the share of what is open in `source`.
    fn add(&mut self, bind: &Bind<'_>, source: File) -> Result<usize, PlanError> {
        let (readonly, recursive) = (bind.flags & libc::MS_RDONLY != 0, bind.recursive);
        let key = Key { source: bind.source.to_owned(), readonly, recursive };
        if let Some(index) = self.keys.iter().position(|other| *other == key) {
            return Ok(index);
        }
        if self.list.len() == MAX_SHARES {
            let problem = format!("a VM sees at most {MAX_SHARES} directories and files");
            return Err(unsupported(&bind.field, problem));
        }
        self.keys.push(key);
        self.list.push(Share { source, readonly, recursive });
        Ok(self.list.len() - 1)
    }
}

pub(super) fn translate(bind: Bind<'_>, shares: &mut Shares) -> Result<Entry, PlanError> {
    let Bind { field, source, .. } = &bind;
    if !source.is_absolute() {
        return Err(invalid(field, format!("its source {} is not absolute", source.display())));
    }
    let failed =
        |source_error| PlanError::Read { path: source.to_path_buf(), source: source_error };
    // Looked at, not opened: that would wait for a FIFO, and start what a device does.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(source);
    let opened = opened.map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    if metadata.is_dir() && bind.destination == SHM {
        return Ok(Entry::Mount(shm_like(&opened, bind.destination)));
    }
    if metadata.is_file()
        && is_copied(&bind.destination)
        && let Some(content) = content(source)?
    {
        let readonly = bind.flags & libc::MS_RDONLY != 0;
        let mode = metadata.mode() & 0o7777;
        return Ok(Entry::File(FilePlan { path: bind.destination, mode, content, readonly }));
    }
    if bind.destination == "/dev" {
        return Err(unsupported(field, "the container's /dev is its VM's, with devices of the VM"));
    }
    check_kind(field, source, metadata.file_type())?;
    check_filesystem(&bind, &opened)?;
    let index = shares.add(&bind, opened)?;
    Ok(Entry::Mount(MountPlan {
        fstype: "virtiofs".to_owned(),
        source: index.to_string(),
        destination: bind.destination,
        flags: bind.flags,
        data: if bind.copy_up { COPY_UP.to_owned() } else { String::new() },
    }))
}

fn is_copied(destination: &str) -> bool {
    GENERATED.contains(&destination) || destination.starts_with("/proc/")
}

fn check_kind(field: &str, source: &Path, kind: std::fs::FileType) -> Result<(), PlanError> {
    if kind.is_dir() || kind.is_file() {
        return Ok(());
    }
    let (what, why) = if kind.is_socket() {
        ("socket", "what listens on it is not in the VM, whose kernel has sockets of its own")
    } else if kind.is_fifo() {
        ("FIFO", "its other end is not in the VM, whose kernel has pipes of its own")
    } else {
        ("device", "a microVM has no devices of the host")
    };
    let problem = format!("the host's {what} {} cannot be mounted: {why}", source.display());
    Err(unsupported(field, problem))
}

/// What is no storage but the host's kernel itself may be looked at, not written to.
fn check_filesystem(bind: &Bind<'_>, opened: &File) -> Result<(), PlanError> {
    const SYSFS_MAGIC: i64 = 0x6265_6572;
    const KERNEL: [(i64, &str); 9] = [
        (libc::BPF_FS_MAGIC, "bpf"),
        (libc::CGROUP_SUPER_MAGIC, "cgroup"),
        (libc::CGROUP2_SUPER_MAGIC, "cgroup2"),
        (libc::DEBUGFS_MAGIC, "debugfs"),
        (libc::DEVPTS_SUPER_MAGIC, "devpts"),
        (libc::PROC_SUPER_MAGIC, "proc"),
        (libc::SECURITYFS_MAGIC, "securityfs"),
        (SYSFS_MAGIC, "sysfs"),
        (libc::TRACEFS_MAGIC, "tracefs"),
    ];
    let found = filesystem(opened).map_or(0, |found| found.f_type);
    let kernel = KERNEL.iter().find(|(magic, _)| *magic == found);
    match kernel.filter(|_| bind.flags & libc::MS_RDONLY == 0) {
        None => Ok(()),
        Some((_, name)) => {
            let source = bind.source.display();
            let problem = format!(
                "{source} is the host kernel's {name}, which a guest may not change; mount it read-only, or the guest's own (type {name})"
            );
            Err(unsupported(&bind.field, problem))
        }
    }
}

/// The text of a generated file; `None` for what an engine would not generate.
fn content(source: &Path) -> Result<Option<String>, PlanError> {
    let failed = |error| PlanError::Read { path: source.to_owned(), source: error };
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(source).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let is_small = bytes.len() as u64 <= MAX_FILE_BYTES;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_small))
}

/// Docker and CRI hand the container's shared memory over as a tmpfs on the host. What
/// shares it is in this VM, so the guest gets a tmpfs of that size.
fn shm_like(directory: &File, destination: String) -> MountPlan {
    const DEFAULT_BYTES: u64 = 64 << 20;
    let size = filesystem(directory).filter(|found| found.f_type == libc::TMPFS_MAGIC);
    let bytes = size
        .and_then(|found| found.f_blocks.checked_mul(found.f_bsize.unsigned_abs()))
        .filter(|&bytes| bytes > 0)
        .unwrap_or(DEFAULT_BYTES);
    MountPlan {
        fstype: "tmpfs".to_owned(),
        source: "shm".to_owned(),
        destination,
        flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        data: format!("mode=1777,size={bytes}"),
    }
}

fn filesystem(file: &File) -> Option<libc::statfs> {
    // SAFETY: all-zero bytes are a valid statfs, which is plain numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` is a valid place to write to.
    let status = unsafe { libc::fstatfs(file.as_raw_fd(), &mut found) };
    (status == 0).then_some(found)
}
