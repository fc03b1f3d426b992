//! A real agent in namespaces of its own, beside the test that plays the shim.

use std::{
    cell::Cell,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    rc::Rc,
};

use caisson_agent::{
    cgroup::enable_controllers,
    disk::{Disks, remove_partition},
    error::OsError,
    runtime::Config,
    server::{End, Server},
    transport::UnixDirectory,
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork},
};

use crate::{images::Images, shim::Shim};

/// How to find the disks: as in a VM, or as loop devices of these names.
#[derive(Clone)]
pub enum DiskNames {
    BySerial,
    Loop { layers: String, scratch: String },
}

#[derive(Clone)]
pub struct World {
    pub disks: DiskNames,
    pub images: Images,
    /// A cgroup2 directory (below the hierarchy's root) for the containers.
    pub cgroup: String,
    /// Where the tests keep sockets.
    pub scratch_dir: PathBuf,
    next: Rc<Cell<u32>>,
}

pub struct Agent {
    process: Pid,
}

impl World {
    pub fn new(disks: DiskNames, cgroup: String, scratch_dir: PathBuf) -> Self {
        Self { disks, images: Images::new(), cgroup, scratch_dir, next: Rc::default() }
    }

    /// Starts an agent and connects to it.
    pub fn begin(&self) -> (Shim, Agent) {
        self.end_earlier();
        self.next.set(self.next.get() + 1);
        let streams = self.scratch_dir.join(self.next.get().to_string());
        fs::create_dir_all(&streams).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        // SAFETY: this program has one thread.
        let process = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                drop(ours);
                self.become_agent(theirs, streams)
            }
        };
        drop(theirs);
        (Shim::new(ours, streams), Agent { process })
    }

    /// Waits for agents whose shims are gone. In a VM the disks would end with them.
    pub fn end_earlier(&self) {
        while waitpid(None, None).is_ok() {}
        let disk = match &self.disks {
            DiskNames::BySerial => "/dev/vda".to_owned(),
            DiskNames::Loop { layers, .. } => format!("/dev/{layers}"),
        };
        for number in 1..256 {
            // Most are not there.
            let _ = remove_partition(disk.as_ref(), number);
        }
    }

    fn become_agent(&self, control: UnixStream, streams: PathBuf) -> ! {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).unwrap();
        // SAFETY: one thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(control);
                let code = match waitpid(child, None).unwrap() {
                    WaitStatus::Exited(_, code) => code,
                    other => {
                        eprintln!("the agent ended: {other:?}");
                        99
                    }
                };
                std::process::exit(code)
            }
            ForkResult::Child => {
                std::panic::set_hook(Box::new(|panic| {
                    eprintln!("{panic}");
                    std::process::exit(98)
                }));
                std::process::exit(self.serve(control, streams))
            }
        }
    }

    /// As PID 1 of the namespaces.
    fn serve(&self, control: UnixStream, streams: PathBuf) -> i32 {
        mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE);
        mount("proc", "/proc", "proc", 0);
        mount("tmpfs", "/run", "tmpfs", 0);
        if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            // A host of the hybrid kind: the hierarchy is somewhere else.
            mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0);
        }
        let tests = Path::new("/sys/fs/cgroup").join(&self.cgroup);
        let cgroup_root = tests.join(self.next.get().to_string());
        fs::create_dir_all(&cgroup_root).unwrap();
        for dir in [Path::new("/sys/fs/cgroup"), &tests, &cgroup_root] {
            enable_controllers(dir).unwrap();
        }
        caisson_agent::boot::protect_agent().unwrap();
        let disks = self.disks.clone();
        let config = Config {
            cgroup_root,
            transport: Box::new(UnixDirectory(streams)),
            disks: Box::new(move || find(&disks)),
        };
        let mut server = Server::new(control.into(), config).unwrap();
        server.announce().unwrap();
        match server.run() {
            End::Shutdown => {
                server.linger();
                0
            }
            End::ChannelLost(_) => 3,
        }
    }
}

fn find(disks: &DiskNames) -> Result<Disks, OsError> {
    match disks {
        DiskNames::BySerial => Disks::discover("/sys/block".as_ref()),
        DiskNames::Loop { layers, scratch } => {
            let mut found = Disks::default();
            found.add("layers", layers, "/sys/block".as_ref())?;
            found.add("scratch", scratch, "/sys/block".as_ref())?;
            Ok(found)
        }
    }
}

impl Agent {
    /// How many files the agent has open.
    pub fn open_files(&self) -> usize {
        let children = format!("/proc/{0}/task/{0}/children", self.process);
        let server = fs::read_to_string(children).unwrap();
        fs::read_dir(format!("/proc/{}/fd", server.trim())).unwrap().count()
    }

    /// Waits for the agent's end and returns its code.
    pub fn wait(self) -> i32 {
        match waitpid(self.process, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("the agent ended: {other:?}"),
        }
    }
}

fn mount(source: &str, target: &str, fstype: &str, flags: libc::c_ulong) {
    let c = |text: &str| std::ffi::CString::new(text).unwrap();
    let (source, name, fstype) = (c(source), c(target), c(fstype));
    // SAFETY: strings outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), name.as_ptr(), fstype.as_ptr(), flags, std::ptr::null())
    };
    assert_eq!(result, 0, "mount {target}: {}", std::io::Error::last_os_error());
}
