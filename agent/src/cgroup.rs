//! A container's cgroup (v2): limits, freezing, killing, and who is in it.
//! [`crate::stats`] reads what it counts.

use std::{
    fs::{self, File},
    io::{self, ErrorKind as Io, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    ErrorKind,
    plan::{DeviceRule, Resources},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    device_filter,
    error::{At, Kind, OsError},
};

/// Controllers that containers get, where the kernel has them.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];
/// A file of the kernel's that is longer than this is not read further.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Nested cgroups that are visited at once.
const MAX_NESTED: usize = 4096;
const FREEZE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("resource {file} has no name of a cgroup file")]
    BadName { file: String },
    #[error("this kernel has no {controller} controller, which {file} needs")]
    NoController { controller: String, file: String },
    #[error("set {file} to {value:?}")]
    Set {
        file: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("the container did not freeze within {} ms", FREEZE_TIMEOUT.as_millis())]
    FreezeTimeout,
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for CgroupError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadName { .. } | Self::NoController { .. } | Self::Set { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::FreezeTimeout => ErrorKind::FailedPrecondition,
            Self::Os(error) => error.kind(),
        }
    }
}

/// Lets cgroups below `root` use the controllers. Once, before the first container.
pub fn enable_controllers(root: &Path) -> Result<(), OsError> {
    let path = root.join("cgroup.controllers");
    let available = fs::read_to_string(&path).at(|| format!("read {}", path.display()))?;
    let wanted: Vec<_> = available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    let path = root.join("cgroup.subtree_control");
    fs::write(&path, wanted.join(" ")).at(|| format!("write {}", path.display()))
}

/// One container's cgroup. Dropping it leaves the cgroup; [`Cgroup::remove`] ends it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
    /// `memory.events`, whose changes epoll reports; absent without the controller.
    events: Option<File>,
}

impl Cgroup {
    /// Makes `<root>/<name>` with its limits.
    pub fn create(root: &Path, name: &str, resources: &Resources) -> Result<Self, CgroupError> {
        let path = root.join(name);
        fs::create_dir(&path).at(|| format!("make cgroup {name}"))?;
        Self::fill(&path, resources).inspect_err(|_| {
            // Empty, so it goes; the first error is the one to report.
            let _ = fs::remove_dir(&path);
        })
    }

    fn fill(path: &Path, resources: &Resources) -> Result<Self, CgroupError> {
        let dir = File::options()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
            .open(path)
            .at(|| format!("open {}", path.display()))?;
        let events = File::open(path.join("memory.events")).ok();
        let cgroup = Self { path: path.to_owned(), dir: dir.into(), events };
        cgroup.apply(resources)?;
        Ok(cgroup)
    }

    /// Lets the processes use only the devices that `rules` and the defaults allow.
    pub fn filter_devices(&self, rules: &[DeviceRule]) -> Result<(), OsError> {
        if device_filter::allows_everything(rules) {
            return Ok(());
        }
        let mut rules = rules.to_vec();
        rules.extend(device_filter::default_rules());
        device_filter::attach(self.fd(), &rules).at(|| "attach the device filter")
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// What to watch (for `EPOLLPRI`) to learn of a kill by the OOM killer.
    pub fn events_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.as_ref().map(AsFd::as_fd)
    }

    /// How many processes the OOM killer has ended so far.
    pub fn oom_kills(&self) -> u64 {
        let Some(events) = &self.events else { return 0 };
        let mut bytes = [0; 1024];
        // Through the watched descriptor: reading is what makes it report the next change.
        let count = events.read_at(&mut bytes, 0).unwrap_or(0);
        field(&String::from_utf8_lossy(&bytes[..count]), "oom_kill")
    }

    /// Sets the limits that `resources` states; devices are fixed at creation.
    pub fn apply(&self, resources: &Resources) -> Result<(), CgroupError> {
        for (file, value) in settings(resources) {
            self.set(&file, &value)?;
        }
        Ok(())
    }

    fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        if !is_file_name(file) {
            return Err(CgroupError::BadName { file: file.to_owned() });
        }
        match fs::OpenOptions::new().write(true).open(self.path.join(file)) {
            Err(error) if error.kind() == Io::NotFound => Err(CgroupError::NoController {
                controller: file.split('.').next().unwrap_or(file).to_owned(),
                file: file.to_owned(),
            }),
            opened => opened
                .and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()))
                .map_err(|source| CgroupError::Set {
                    file: file.to_owned(),
                    value: value.to_owned(),
                    source,
                }),
        }
    }

    /// The text of one of the cgroup's files.
    pub fn read(&self, file: &str) -> io::Result<String> {
        read_bounded(&self.path.join(file))
    }

    /// Sends SIGKILL to every process, those of nested cgroups too.
    pub fn kill(&self) -> Result<(), OsError> {
        fs::write(self.path.join("cgroup.kill"), "1").at(|| "kill all processes of the cgroup")
    }

    /// Every process, those of nested cgroups too.
    pub fn pids(&self) -> Result<Vec<u32>, OsError> {
        let mut pids = Vec::new();
        for dir in self.nested() {
            match read_bounded(&dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // Removed meanwhile, or a threaded cgroup, whose processes its parent lists.
                Err(error) if dir != self.path => drop(error),
                Err(error) => return Err(error).at(|| "list the processes of the cgroup"),
            }
        }
        // 0 is a process that this pid namespace does not see.
        pids.retain(|&pid| pid != 0);
        Ok(pids)
    }

    /// This cgroup and those nested in it, parents first.
    fn nested(&self) -> Vec<PathBuf> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while next < found.len() && found.len() < MAX_NESTED {
            let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
            let dirs = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            let dirs: Vec<_> = dirs.map(|entry| entry.path()).collect();
            found.extend(dirs);
            next += 1;
        }
        found
    }

    /// Stops or continues every process; returns when the kernel says that all are.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.set("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = u64::from(frozen);
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let path = self.path.join("cgroup.events");
        let mut events = File::open(&path).at(|| format!("open {}", path.display()))?;
        loop {
            let mut text = String::new();
            events.read_to_string(&mut text).at(|| "read cgroup.events")?;
            if field(&text, "frozen") == wanted {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Half a container frozen is no state to leave.
                self.set("cgroup.freeze", if frozen { "0" } else { "1" })?;
                return Err(CgroupError::FreezeTimeout);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            // An early return or a signal only means another look.
            let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
            io::Seek::rewind(&mut events).at(|| "rewind cgroup.events")?;
        }
    }

    /// Removes the cgroup and those nested in it. `EBUSY` while a process is left, or when
    /// there is more to remove than should be done at once.
    pub fn remove(&self) -> io::Result<()> {
        let mut budget = MAX_NESTED;
        remove_tree(&self.path, &mut budget)
    }
}

fn remove_tree(dir: &Path, budget: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), budget)?;
        }
    }
    *budget = budget.checked_sub(1).ok_or(io::Error::from_raw_os_error(libc::EBUSY))?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != Io::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name that can only be a file directly in the cgroup and not one that moves processes.
fn is_file_name(file: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&file.len())
        && file.bytes().all(plain)
        && file.contains('.')
        && !file.starts_with('.')
        && !["cgroup.procs", "cgroup.threads", "cgroup.kill"].contains(&file)
}

/// What to write where, in an order in which each write can succeed.
fn settings(resources: &Resources) -> Vec<(String, String)> {
    let r = resources;
    let mut settings = Vec::new();
    let mut put = |file: &str, value: Option<String>| {
        settings.extend(value.map(|value| (file.to_owned(), value)));
    };
    put("cpuset.cpus", r.cpuset_cpus.clone());
    put("cpuset.mems", r.cpuset_mems.clone());
    put("memory.max", r.memory_bytes.map(|n| n.to_string()));
    put("memory.swap.max", r.swap_bytes.map(|n| n.to_string()));
    put("memory.low", r.memory_reservation_bytes.map(|n| n.to_string()));
    put("cpu.weight", r.cpu_weight.map(|n| n.to_string()));
    put("cpu.max", cpu_max(r.cpu_quota_usec, r.cpu_period_usec));
    put("pids.max", r.pids.map(|n| n.to_string()));
    settings.extend(r.unified.clone());
    settings
}

fn cpu_max(quota: Option<u64>, period: Option<u64>) -> Option<String> {
    if quota.is_none() && period.is_none() {
        return None;
    }
    let quota = quota.map_or("max".to_owned(), |usec| usec.to_string());
    Some(match period {
        Some(period) => format!("{quota} {period}"),
        None => quota,
    })
}

/// The number after `name` in a file of `name number` lines; 0 without it.
pub fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn fake(files: &[&str]) -> (tempfile::TempDir, Cgroup) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let cgroup = Cgroup {
            path: dir.path().to_owned(),
            dir: File::open(dir.path()).unwrap().into(),
            events: None,
        };
        (dir, cgroup)
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let (dir, cgroup) = fake(&["memory.max", "memory.swap.max", "cpu.max", "pids.max"]);
        cgroup
            .apply(&Resources {
                memory_bytes: Some(64 << 20),
                swap_bytes: Some(0),
                cpu_quota_usec: Some(50_000),
                cpu_period_usec: Some(100_000),
                pids: Some(100),
                ..Resources::default()
            })
            .unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("pids.max"), "100");
    }

    #[test]
    fn a_missing_controller_is_named() {
        let (_dir, cgroup) = fake(&[]);
        let error = cgroup.apply(&Resources { pids: Some(1), ..Resources::default() });
        assert_eq!(
            error.unwrap_err().to_string(),
            "this kernel has no pids controller, which pids.max needs"
        );
    }

    #[test]
    fn unified_names_stay_in_the_cgroup() {
        let (_dir, cgroup) = fake(&[]);
        for file in ["../x", "a/b.max", "", ".", "..", "cgroup.procs", "memory.max\n", "x"] {
            let unified = BTreeMap::from([(file.to_owned(), "1".to_owned())]);
            let error = cgroup.apply(&Resources { unified, ..Resources::default() }).unwrap_err();
            assert!(matches!(error, CgroupError::BadName { .. }), "{file:?}: {error}");
        }
    }

    #[test]
    fn what_a_container_nested_is_removed_bit_by_bit() {
        let (dir, cgroup) = fake(&[]);
        for n in 0..100 {
            fs::create_dir_all(dir.path().join(format!("{n}/a/b"))).unwrap();
        }
        let mut budget = 50;
        let error = remove_tree(&cgroup.path, &mut budget).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        cgroup.remove().unwrap();
        assert!(!dir.path().exists());
        cgroup.remove().unwrap();
        std::mem::forget(dir);
    }

    #[test]
    fn half_a_cpu_limit_is_completed() {
        assert_eq!(cpu_max(None, None), None);
        assert_eq!(cpu_max(Some(1000), None).unwrap(), "1000");
        assert_eq!(cpu_max(None, Some(5000)).unwrap(), "max 5000");
    }

    #[test]
    fn fields_are_found_by_whole_name() {
        let text = "oom 3\noom_kill 2\noom_group_kill x\n";
        assert_eq!(field(text, "oom_kill"), 2);
        assert_eq!(field(text, "oom_group_kill"), 0);
        assert_eq!(field(text, "absent"), 0);
    }

    #[test]
    fn only_controllers_that_exist_are_enabled() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory rdma pids\n").unwrap();
        enable_controllers(dir.path()).unwrap();
        let written = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(written, "+cpu +memory +pids");
    }
}
