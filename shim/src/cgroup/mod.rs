//! The cgroup of a VM on the host: what the vmm, and with it the guest, may take.
//!
//! ```text
//!   plan (from the spec) ─► place (journalled) ─► create, limit ─► the vmm enters before exec
//!                                                                    │ its end: was it for
//!                                                 remove ◄───────────┘ want of memory?
//! ```
//!
//! Both versions are served, also side by side (hybrid hosts): each controller is taken from
//! the unified hierarchy if it is there, else from its own. The shim itself stays outside:
//! it must survive the VM's end, above all one for want of memory, to tell of it.

mod hierarchy;
mod limits;
mod path;

use std::{
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

pub use hierarchy::Host;
use hierarchy::{Controller, Hierarchy, Version};
pub use limits::CpuLimits;
use limits::{Limits, Need, Setting};

use crate::{plan::PlanError, sandbox::VmSize};

/// Directories come and go with other VMs.
const CREATE_ATTEMPTS: usize = 10;

/// How long the kernel may take to let go of a process that has ended.
const REMOVE_GRACE: Duration = Duration::from_secs(2);

/// Where a VM's cgroup goes, and what it limits.
#[derive(Clone, Debug)]
pub struct CgroupPlan {
    /// Below the root of each hierarchy.
    path: PathBuf,
    /// The shim has chosen it, not the spec.
    own: bool,
    limits: Limits,
}

impl CgroupPlan {
    /// Of a spec that makes a container and the VM of this size.
    pub fn of(id: &str, bundle: &Path, spec: &Spec, size: &VmSize) -> Result<Self, PlanError> {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.map(|path| path::directory(&path.to_string_lossy())).transpose();
        let path = path.map_err(|problem| PlanError::Invalid {
            field: "linux.cgroupsPath".to_owned(),
            problem,
        })?;
        let limits = Limits::of(linux.and_then(|linux| linux.resources().as_ref()), size);
        let (path, own) = match path.flatten() {
            Some(path) => (path, false),
            None => (own_path(id, bundle), true),
        };
        Ok(Self { path, own, limits })
    }

    /// Leaves room for what the host keeps for files that the guest has open or knows.
    pub fn allow_open_files(&mut self, count: u64) {
        self.limits.memory_bytes += count * limits::OPEN_FILE_BYTES;
    }

    /// What the container's CPU limits mean for the VM.
    pub fn cpu(&self) -> &CpuLimits {
        &self.limits.cpu
    }

    /// The directories of the cgroup to be, for the journal.
    pub fn place(&self, host: &Host) -> Place {
        let mut place = Place::default();
        for hierarchy in &host.hierarchies {
            place.leaves.push(hierarchy.mount.join(&self.path));
            let parents = self.path.ancestors().skip(1).filter(|parent| *parent != Path::new(""));
            // Our own parent goes with its last VM; others' only if they were made for this.
            let made = parents
                .map(|parent| hierarchy.mount.join(parent))
                .filter(|parent| self.own || !parent.exists());
            place.parents.extend(made);
        }
        place
    }
}

/// `caisson/<id>-<number>`: ids are unique for one engine, bundles on the whole host.
fn own_path(id: &str, bundle: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    bundle.hash(&mut hasher);
    Path::new("caisson").join(format!("{id}-{:08x}", hasher.finish() as u32))
}

/// The directories of a VM's cgroup, one leaf a hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    leaves: Vec<PathBuf>,
    /// Innermost first within each hierarchy; removed when nothing is left in them.
    parents: Vec<PathBuf>,
}

impl Place {
    /// The VM's own directory in each hierarchy.
    pub fn leaves(&self) -> &[PathBuf] {
        &self.leaves
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "the host offers no {controller} cgroup controller that the shim could use, which {asked} needs; mount cgroups read-write and delegate it, or leave the limit out"
    )]
    NoController { controller: Controller, asked: &'static str },
    #[error("the host has no {}, which {asked} needs", file.display())]
    NoFile { file: PathBuf, asked: &'static str },
    #[error("the cgroup {} holds other processes; linux.cgroupsPath must name one for this container alone", directory.display())]
    InUse { directory: PathBuf },
    #[error("make the cgroup {}", directory.display())]
    Create { directory: PathBuf, source: io::Error },
    #[error("write {value:?} to {}", file.display())]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("open {}", file.display())]
    Open { file: PathBuf, source: io::Error },
}

/// A VM's cgroup, limited and ready for its process. It is removed by [`remove`].
#[derive(Debug, Default)]
pub struct Cgroup {
    groups: Vec<Group>,
}

/// Its directory in one hierarchy, with the controllers it has there.
#[derive(Debug)]
struct Group {
    version: Version,
    directory: PathBuf,
    controllers: Vec<Controller>,
}

/// How the kernel's OOM killer came to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomKill {
    /// The VM had reached its own limit.
    OwnLimit { limit_bytes: u64 },
    /// The whole host, or a cgroup around it, had no memory left.
    Host,
}

impl Cgroup {
    /// Makes the directories of `place` and sets every limit but those of the CPU, which
    /// would only slow down the boot ([`Self::limit_cpu`]).
    ///
    /// What this host does not offer is done without if nobody asked for it. After an error
    /// the caller removes the place.
    pub fn create(host: &Host, plan: &CgroupPlan, place: &Place) -> Result<Self, CgroupError> {
        let mut groups = Vec::new();
        for (hierarchy, leaf) in host.hierarchies.iter().zip(&place.leaves) {
            match create_group(hierarchy, leaf) {
                Ok(group) => groups.push(group),
                Err(CgroupError::Create { directory, source }) if is_refusal(&source) => {
                    log::warn!("no cgroup at {}: {source}", directory.display());
                }
                Err(error) => return Err(error),
            }
        }
        let cgroup = Self { groups };
        for controller in Controller::ALL {
            let asked = plan.limits.asked(controller);
            match (cgroup.group_of(controller), asked) {
                (None, Some(asked)) => return Err(CgroupError::NoController { controller, asked }),
                (None, None) => log::info!("the VM has no {controller} limit on this host"),
                (Some(_), _) => {}
            }
        }
        let settings = |version| {
            let mut settings = plan.limits.memory(version);
            settings.extend(plan.limits.pids());
            settings.extend(plan.limits.io(version));
            settings
        };
        for group in &cgroup.groups {
            group.apply(settings(group.version))?;
        }
        Ok(cgroup)
    }

    /// Limits the CPU time of the vmm; what `limits` leaves out stays.
    pub fn limit_cpu(&self, limits: &CpuLimits) -> Result<(), CgroupError> {
        match self.group_of(Controller::Cpu) {
            Some(group) => group.apply(limits.settings(group.version)),
            None => Ok(()),
        }
    }

    /// The files to which a process writes `0` to enter. To be opened by who may.
    pub fn entrances(&self) -> Result<Vec<File>, CgroupError> {
        let open = |group: &Group| {
            let file = group.directory.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&file)
                .map_err(|source| CgroupError::Open { file, source })
        };
        self.groups.iter().map(open).collect()
    }

    /// Whether the OOM killer has ended the process in it, and why.
    pub fn oom_kill(&self) -> Option<OomKill> {
        let group = self.group_of(Controller::Memory)?;
        let read = |name| fs::read_to_string(group.directory.join(name)).ok();
        let number = |name| read(name)?.trim().parse::<u64>().ok();
        let (events, limit) = match group.version {
            Version::Two => ("memory.events", "memory.max"),
            Version::One => ("memory.oom_control", "memory.limit_in_bytes"),
        };
        let events = read(events)?;
        if counter(&events, "oom_kill")? == 0 {
            return None;
        }
        let limit = number(limit);
        let at_limit = match group.version {
            Version::Two => counter(&events, "oom").is_some_and(|count| count > 0),
            // Not every kernel counts failures; the peak may be a few pages below the limit.
            Version::One => number("memory.max_usage_in_bytes")
                .zip(limit)
                .is_some_and(|(peak, limit)| peak >= limit - limit / 64),
        };
        Some(match limit.filter(|_| at_limit) {
            Some(limit_bytes) => OomKill::OwnLimit { limit_bytes },
            None => OomKill::Host,
        })
    }

    fn group_of(&self, controller: Controller) -> Option<&Group> {
        self.groups.iter().find(|group| group.controllers.contains(&controller))
    }
}

impl Group {
    /// Writes the settings of the controllers that are here.
    fn apply(&self, settings: Vec<Setting>) -> Result<(), CgroupError> {
        let here = |setting: &Setting| self.controllers.contains(&setting.controller);
        for Setting { file, value, need, .. } in settings.into_iter().filter(here) {
            let file = self.directory.join(file);
            match (hierarchy::write(&file, &value), need) {
                (Ok(()), _) => {}
                (Err(error), Need::IfThere) if error.kind() == io::ErrorKind::NotFound => {}
                (Err(error), Need::Asked(asked)) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(CgroupError::NoFile { file, asked });
                }
                (Err(source), _) => return Err(CgroupError::Write { file, value, source }),
            }
        }
        Ok(())
    }
}

fn create_group(hierarchy: &Hierarchy, leaf: &Path) -> Result<Group, CgroupError> {
    let failed = |source| CgroupError::Create { directory: leaf.to_owned(), source };
    // One of an earlier VM would bring its counters along.
    match fs::remove_dir(leaf) {
        Err(error) if is_busy(&error) => {
            return Err(CgroupError::InUse { directory: leaf.to_owned() });
        }
        _ => {}
    }
    let mut made = hierarchy.make_directories(leaf);
    for _ in 0..CREATE_ATTEMPTS {
        match &made {
            // The last VM below a parent has just taken it along.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                made = hierarchy.make_directories(leaf);
            }
            _ => break,
        }
    }
    made.map_err(failed)?;
    let controllers = hierarchy.controllers_at(leaf).map_err(failed)?;
    Ok(Group { version: hierarchy.version, directory: leaf.to_owned(), controllers })
}

/// Removes the directories of a VM that has ended. What others use stays.
pub fn remove(place: &Place) {
    for leaf in &place.leaves {
        if let Err(error) = remove_leaf(leaf) {
            log::warn!("remove the cgroup {}: {error}", leaf.display());
        }
    }
    for parent in &place.parents {
        match fs::remove_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::NotFound && !is_busy(&error) => {
                log::warn!("remove the cgroup {}: {error}", parent.display());
            }
            _ => {}
        }
    }
}

/// A process that was killed is in its cgroup for a moment more.
fn remove_leaf(leaf: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVE_GRACE;
    loop {
        match fs::remove_dir(leaf) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refusal(&error) => {
                return Ok(());
            }
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A process, or another cgroup, is in it.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

/// This shim may not change cgroups here.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM))
}

/// The number behind `name` on a line of its own.
fn counter(text: &str, name: &str) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
mod tests;
