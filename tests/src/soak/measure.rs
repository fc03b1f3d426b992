//! What must not grow: one number each.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::Caisson;

/// How long what ends may take to be gone.
const SETTLE: Duration = Duration::from_secs(20);

/// What the host's own life moves; a leak of many rounds is more.
const MEMORY_SLACK_KIB: u64 = 48 << 10;
/// The database grows in steps and reuses its pages.
const DATABASE_SLACK_KIB: u64 = 1 << 10;

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured(pub BTreeMap<&'static str, u64>);

const MEMORY: &str = "memory outside the page cache, KiB";
const DATABASE: &str = "database, KiB";

impl Measured {
    /// Everything that is more than at the baseline.
    pub fn growth(&self, baseline: &Self) -> Vec<String> {
        let mut growth = Vec::new();
        for (name, &now) in &self.0 {
            let before = baseline.0.get(name).copied().unwrap_or(0);
            let slack = match *name {
                MEMORY => MEMORY_SLACK_KIB,
                DATABASE => DATABASE_SLACK_KIB,
                _ => 0,
            };
            if now > before + slack {
                growth.push(format!("{name}: {before} at the beginning, {now} at the end"));
            }
        }
        growth
    }
}

/// Measures until nothing has grown since the baseline, or for a while.
pub(super) fn settled(caisson: &Caisson, baseline: Option<&Measured>) -> Measured {
    let start = Instant::now();
    // What has just ended is still being collected.
    thread::sleep(Duration::from_millis(500));
    loop {
        let measured = measure(caisson);
        let grown = baseline.is_some_and(|baseline| !measured.growth(baseline).is_empty());
        if !grown || start.elapsed() > SETTLE {
            return measured;
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn measure(caisson: &Caisson) -> Measured {
    let programs = ["caisson", "containerd-shim-caisson-v2", "caisson-vmm", "caisson-fs"];
    let lines = |arguments: &[&str]| {
        caisson.run(arguments).map_or(u64::MAX, |done| done.stdout.lines().count() as u64)
    };
    let state = caisson.state.to_string_lossy().into_owned();
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    Measured(BTreeMap::from([
        ("processes", programs.iter().map(|name| caisson.pids_of(name).len() as u64).sum()),
        ("zombies", zombies()),
        ("descriptors of process 1", count(Path::new("/proc/1/fd"))),
        ("mounts", read("/proc/self/mountinfo").lines().count() as u64),
        ("sockets", sockets.lines().filter(|line| line.contains(&state)).count() as u64),
        ("cgroups", tree(Path::new("/sys/fs/cgroup"), &|path| path.is_dir())),
        (
            "files in the state directory",
            tree(&caisson.state, &|path| !path.starts_with(caisson.state.join("machine"))),
        ),
        (
            "files in the store",
            tree(&caisson.root, &|path| !path.starts_with(caisson.root.join("machine"))),
        ),
        ("containers", lines(&["ps", "-aq"])),
        ("images", lines(&["images", "-q"])),
        (DATABASE, database_kib(&caisson.root)),
        (MEMORY, memory_kib()),
    ]))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn count(directory: &Path) -> u64 {
    fs::read_dir(directory).map_or(0, |entries| entries.count() as u64)
}

/// Entries below a directory; symbolic links are not followed.
fn tree(directory: &Path, counts: &dyn Fn(&Path) -> bool) -> u64 {
    let mut found = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found += u64::from(counts(&entry.path()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found += tree(&entry.path(), counts);
        }
    }
    found
}

/// Processes that nobody collects.
fn zombies() -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(") Z ")).count() as u64
}

fn database_kib(root: &Path) -> u64 {
    let files = ["caisson.db", "caisson.db-wal"];
    files
        .iter()
        .filter_map(|name| fs::metadata(root.join(name)).ok())
        .map(|file| file.len() >> 10)
        .sum()
}

fn memory_kib() -> u64 {
    let meminfo = read("/proc/meminfo");
    let value = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    // Shared memory counts as cached, and is none.
    let cache = value("Cached") + value("Buffers") + value("SReclaimable");
    (value("MemTotal") + value("Shmem")).saturating_sub(value("MemFree") + cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(values: &[(&'static str, u64)]) -> Measured {
        Measured(values.iter().copied().collect())
    }

    #[test]
    fn growth_is_named_and_noise_is_not() {
        let baseline = measured(&[("mounts", 20), (MEMORY, 100_000), ("images", 1)]);
        assert!(baseline.growth(&baseline).is_empty());
        let less = measured(&[("mounts", 19), (MEMORY, 140_000), ("images", 1)]);
        assert!(less.growth(&baseline).is_empty());
        let more = measured(&[("mounts", 21), (MEMORY, 200_000), ("images", 1)]);
        let growth = more.growth(&baseline);
        assert_eq!(growth.len(), 2, "{growth:?}");
        assert!(growth.iter().any(|line| line.contains("mounts: 20") && line.contains("21")));
    }

    #[test]
    fn a_measurement_that_failed_is_growth() {
        let baseline = measured(&[("containers", 0)]);
        assert!(!measured(&[("containers", u64::MAX)]).growth(&baseline).is_empty());
    }

    #[test]
    fn this_host_can_be_measured() {
        assert!(memory_kib() > 0);
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/c"), "").unwrap();
        assert_eq!(tree(directory.path(), &|_| true), 3);
        assert_eq!(tree(directory.path(), &|path| path.is_dir()), 2);
    }
}
