//! Which cgroup hierarchies this host has, and making directories in them.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Cpu,
    Io,
    Memory,
    Pids,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Cpu, Self::Io, Self::Memory, Self::Pids];

    fn name(self, version: Version) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Io if version == Version::One => "blkio",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name(Version::Two))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    /// The unified hierarchy.
    Two,
}

/// One tree of cgroups with the controllers that are used of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) mount: PathBuf,
    controllers: Vec<Controller>,
}

/// The hierarchies of a host; each controller is used in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub(super) hierarchies: Vec<Hierarchy>,
}

impl Host {
    /// This host's, as far as this process sees them.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::of_mounts(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// As the kernel lists mounts (proc(5), mountinfo).
    pub(super) fn of_mounts(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        // The unified one first: it has what the others have not.
        for version in [Version::Two, Version::One] {
            for mount in mounts.iter().filter(|mount| mount.version == version) {
                let free = |controller: &Controller| {
                    let taken = |other: &Hierarchy| other.controllers.contains(controller);
                    !hierarchies.iter().any(taken)
                };
                let offered = mount.controllers();
                let controllers: Vec<_> = Controller::ALL
                    .into_iter()
                    .filter(|c| offered.contains(c))
                    .filter(free)
                    .collect();
                if !controllers.is_empty() {
                    let mount = mount.point.clone();
                    hierarchies.push(Hierarchy { version, mount, controllers });
                }
            }
        }
        Self { hierarchies }
    }
}

struct Mount {
    version: Version,
    point: PathBuf,
    /// Of the file system; in version 1 they name the controllers.
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (own, file_system) = line.split_once(" - ")?;
        let point = own.split(' ').nth(4)?;
        let mut fields = file_system.split(' ');
        let version = match fields.next()? {
            "cgroup2" => Version::Two,
            "cgroup" => Version::One,
            _ => return None,
        };
        let options = fields.nth(1).unwrap_or_default().to_owned();
        Some(Self { version, point: PathBuf::from(unescape(point)), options })
    }

    fn controllers(&self) -> Vec<Controller> {
        match self.version {
            Version::One => named(self.options.split(','), Version::One),
            Version::Two => controllers_of(&self.point).unwrap_or_default(),
        }
    }
}

/// Blanks and the like are written as `\040` (proc(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn named<'a>(names: impl Iterator<Item = &'a str>, version: Version) -> Vec<Controller> {
    let names: Vec<&str> = names.collect();
    let there = |controller: &Controller| names.contains(&controller.name(version));
    Controller::ALL.into_iter().filter(there).collect()
}

/// The controllers that a directory of the unified hierarchy has.
fn controllers_of(directory: &Path) -> io::Result<Vec<Controller>> {
    let names = fs::read_to_string(directory.join("cgroup.controllers"))?;
    Ok(named(names.split_whitespace(), Version::Two))
}

/// Writes to a file that the kernel has made.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

impl Hierarchy {
    /// Makes `leaf`, which lies below the mount, and what is missing above it.
    ///
    /// In the unified hierarchy each parent hands its controllers on; one that may not (it
    /// holds processes, or has not got them) leaves the leaf without.
    pub(super) fn make_directories(&self, leaf: &Path) -> io::Result<()> {
        let mut directory = self.mount.clone();
        let below = leaf.strip_prefix(&self.mount).map_err(|_| io::ErrorKind::InvalidInput)?;
        for name in below {
            if self.version == Version::Two {
                self.hand_on(&directory);
            }
            directory.push(name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        Ok(())
    }

    fn hand_on(&self, directory: &Path) {
        let control = directory.join("cgroup.subtree_control");
        let already = fs::read_to_string(&control).unwrap_or_default();
        let already = named(already.split_whitespace(), Version::Two);
        for controller in self.controllers.iter().filter(|c| !already.contains(c)) {
            // One by one: a write is refused as a whole.
            if let Err(error) = write(&control, &format!("+{controller}")) {
                log::info!("hand on {controller} in {}: {error}", directory.display());
            }
        }
    }

    /// The controllers that `leaf` has got.
    pub(super) fn controllers_at(&self, leaf: &Path) -> io::Result<Vec<Controller>> {
        let mut controllers = self.controllers.clone();
        if self.version == Version::Two {
            let there = controllers_of(leaf)?;
            controllers.retain(|controller| there.contains(controller));
        }
        Ok(controllers)
    }
}
