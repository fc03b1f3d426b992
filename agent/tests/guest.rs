//! The whole agent against a real kernel: containers from EROFS layers, run, looked at
//! from inside, and removed.
//!
//! The same program runs the same cases in two places. On a host it serves from loop
//! devices, in namespaces, with what that kernel has. As PID 1 of a VM (the static
//! program as an initramfs, disks with the serial numbers `layers` and `scratch`) it has
//! everything; see docs/agent.md. It has no test harness because the agent forks, which
//! needs a process of one thread.

// The parts are modules of one program, public to each other.
#![allow(unreachable_pub)]

#[path = "guest/cases.rs"]
mod cases;
#[path = "guest/images.rs"]
mod images;
#[path = "guest/plans.rs"]
mod plans;
#[path = "guest/shim.rs"]
mod shim;
#[path = "guest/tools.rs"]
mod tools;
#[path = "guest/world.rs"]
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use world::{DiskNames, World};

fn main() {
    if std::process::id() == 1 {
        in_a_vm();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--images") {
        let dir = PathBuf::from(args.get(1).expect("--images DIRECTORY"));
        images::build(&dir).unwrap();
        return;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    if args.iter().any(|arg| arg == "--list") {
        cases::all().iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    match on_a_host(&filter) {
        Ok(0) => {}
        Ok(failed) => {
            eprintln!("{failed} cases failed");
            std::process::exit(1);
        }
        Err(reason) => println!("skipped: {reason}"),
    }
}

fn on_a_host(filter: &str) -> Result<usize, String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("namespaces and mounts need root".into());
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (layers, scratch) = images::build(dir.path())?;
    let (layers, scratch) = (Loop::attach(&layers, true)?, Loop::attach(&scratch, false)?);
    let disks = DiskNames::Loop { layers: layers.name.clone(), scratch: scratch.name.clone() };
    let cgroup = format!("caisson-agent-test-{}", std::process::id());
    let world = World::new(disks, cgroup.clone(), dir.path().join("streams"));
    let failed = run(&world, filter);
    world.end_earlier();
    remove_cgroup(&cgroup);
    Ok(failed)
}

/// Removes the tests' cgroups through whichever mount shows them.
fn remove_cgroup(name: &str) {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        remove_tree(&Path::new(root).join(name));
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("remove {}: {error}", dir.display());
    }
}

fn in_a_vm() -> ! {
    caisson_agent::boot::mount_root().unwrap();
    caisson_agent::boot::open_console().unwrap();
    fs::create_dir_all("/tmp").unwrap();
    let world = World::new(DiskNames::BySerial, "tests".into(), "/tmp/streams".into());
    let filter = std::env::var("caisson_test").unwrap_or_default();
    let failed = run(&world, &filter);
    println!("guest: {failed} cases failed");
    caisson_agent::boot::end_vm()
}

fn run(world: &World, filter: &str) -> usize {
    let mut failed = 0;
    for (name, case) in cases::all() {
        if !name.contains(filter) {
            continue;
        }
        let begin = Instant::now();
        let result = std::panic::catch_unwind(|| case(world));
        let word = match &result {
            Ok(cases::Done) => "ok".to_owned(),
            Ok(cases::Skipped(reason)) => format!("skipped: {reason}"),
            Err(_) => "FAILED".to_owned(),
        };
        println!("case {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        failed += usize::from(result.is_err());
    }
    failed
}

/// A file as a block device whose partitions can be added.
struct Loop {
    name: String,
}

impl Loop {
    fn attach(file: &Path, readonly: bool) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--partscan"]);
        if readonly {
            command.arg("--read-only");
        }
        let output = command.arg(file).output().map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let node = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { name: node.trim_start_matches("/dev/").to_owned() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let node = format!("/dev/{}", self.name);
        match Command::new("losetup").args(["--detach", &node]).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("losetup --detach {node}: {other:?}"),
        }
    }
}
