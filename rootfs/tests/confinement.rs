//! What is left to `caisson-unpack` while it runs, and what its sudden end leaves.
//!
//! One test: it looks at the children of its process, which all tests of one file share.

mod support;
#[path = "support/worker.rs"]
mod worker;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use caisson_rootfs::Limits;
use support::{chain, noise, tar};
use worker::{gzip, import, is_root, left, store};

/// A stream that waits: what it feeds can be looked at meanwhile.
struct Held {
    data: std::io::Cursor<Vec<u8>>,
    go: Option<mpsc::Receiver<()>>,
}

impl Read for Held {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let half = self.data.get_ref().len() as u64 / 2;
        if self.data.position() >= half
            && let Some(go) = self.go.take()
        {
            go.recv().unwrap();
        }
        let left = half.saturating_sub(self.data.position()).max(1) as usize;
        let length = if self.go.is_some() { left.min(buffer.len()) } else { buffer.len() };
        self.data.read(&mut buffer[..length])
    }
}

/// The confined children of this process's thread that have installed their filter.
fn confined_children(count: usize) -> Vec<u32> {
    let begun = Instant::now();
    loop {
        let children = children();
        if children.len() == count && children.iter().all(|&pid| status(pid, "Seccomp") == "2") {
            return children;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no {count} confined: {children:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .filter(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.starts_with("caisson-unpack"))
        })
        .collect()
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn open_files(pid: u32) -> BTreeSet<PathBuf> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    files.map(|file| fs::read_link(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn confined_processes_have_what_they_need_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let layer = gzip(&tar("file", &noise(3 << 20)));
    let (go, wait) = mpsc::channel();
    let held = Held { data: std::io::Cursor::new(layer), go: Some(wait) };
    let importing = std::thread::spawn({
        let root = root.clone();
        move || import(&store(&root, Limits::default()), held)
    });
    for pid in confined_children(2) {
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Threads"), "1");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(), b"");
        let files = open_files(pid);
        // Pipes and a socket; the converter also the image and the scratch file, by number.
        for file in &files {
            let name = file.to_str().unwrap();
            let expected = name.starts_with("pipe:")
                || name.starts_with("socket:")
                || name.starts_with(root.join("layers").to_str().unwrap());
            assert!(expected, "{pid} has {name} open");
        }
        assert!(files.len() == 3 || files.len() == 4, "{files:?}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        for line in ["Max processes 0 0", "Max open files 16 16", "Max core file size 0 0"] {
            let found = limits.lines().any(|found| {
                found.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(line)
            });
            assert!(found, "{line}: {limits}");
        }
        if !is_root() {
            eprintln!("skipped: only root's processes have namespaces and a user of their own");
            continue;
        }
        assert_eq!(status(pid, "Uid"), "1065536 1065536 1065536 1065536");
        assert_eq!(status(pid, "Gid"), "1065536 1065536 1065536 1065536");
        assert_eq!(status(pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(pid, set), 16).unwrap(), 0, "{set}");
        }
        for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).map_or(0, Iterator::count), 0);
    }
    go.send(()).unwrap();
    importing.join().unwrap().unwrap();

    // Each killed in turn, half-way: an error that says so, and nothing is left.
    for victim in 0..2 {
        let (go, wait) = mpsc::channel();
        let layer = gzip(&tar("file", &noise(3 << 20)));
        let held = Held { data: std::io::Cursor::new(layer), go: Some(wait) };
        let root = directory.path().join(format!("killed-{victim}"));
        let importing = std::thread::spawn({
            let root = root.clone();
            move || import(&store(&root, Limits::default()), held)
        });
        let pid = confined_children(2)[victim];
        let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        assert!(killed.unwrap().success());
        go.send(()).unwrap();
        let error = chain(&importing.join().unwrap().unwrap_err());
        assert!(error.contains("cannot be unpacked") && error.contains("SIGKILL"), "{error}");
        assert_eq!(left(&root), Vec::<PathBuf>::new());
        assert_eq!(children(), Vec::<u32>::new());
        let store = store(&root, Limits::default());
        import(&store, &gzip(&tar("file", &noise(3 << 20)))[..]).unwrap();
    }
}
