//! Plans as the shim makes them for an ordinary container.

use caisson_agent_protocol::{
    ContainerPlan,
    plan::{
        Capabilities, Extent, MountPlan, Namespaces, PidNamespace, ProcessPlan, Resources,
        RootfsPlan, StdioPorts, UserPlan,
    },
};

use crate::images::Images;

/// Docker's default capabilities.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

pub fn process(args: &[&str]) -> ProcessPlan {
    let capabilities = DEFAULT_CAPABILITIES;
    ProcessPlan {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        cwd: "/".into(),
        user: UserPlan::Ids { uid: 0, gid: 0, additional_gids: vec![], umask: None },
        terminal: None,
        capabilities: Capabilities {
            bounding: capabilities,
            effective: capabilities,
            permitted: capabilities,
            inheritable: 0,
            ambient: 0,
        },
        rlimits: vec![],
        no_new_privileges: true,
        seccomp: vec![],
        oom_score_adj: None,
    }
}

pub fn shell(script: &str) -> ProcessPlan {
    process(&["sh", "-c", script])
}

fn mount(fstype: &str, destination: &str, flags: u64, data: &str) -> MountPlan {
    MountPlan {
        fstype: fstype.into(),
        source: fstype.into(),
        destination: destination.into(),
        flags,
        data: data.into(),
    }
}

pub fn tmpfs(destination: &str, flags: u64) -> MountPlan {
    mount("tmpfs", destination, flags, "")
}

pub fn default_mounts() -> Vec<MountPlan> {
    use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_STRICTATIME};
    let strict = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    vec![
        mount("proc", "/proc", strict, ""),
        mount("tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"),
        mount(
            "devpts",
            "/dev/pts",
            MS_NOSUID | MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("sysfs", "/sys", strict | MS_RDONLY, ""),
        mount("cgroup2", "/sys/fs/cgroup", strict | MS_RDONLY, ""),
        mount("mqueue", "/dev/mqueue", strict, ""),
        mount("tmpfs", "/dev/shm", strict, "mode=1777,size=65536k"),
    ]
}

pub fn container(images: &Images, id: &str, process: ProcessPlan) -> ContainerPlan {
    ContainerPlan {
        id: id.into(),
        rootfs: RootfsPlan { layers: images.layers.clone(), writable: None, readonly: false },
        process,
        stdio: StdioPorts::default(),
        namespaces: Namespaces {
            pid: PidNamespace::Own,
            ipc: true,
            uts: true,
            cgroup: true,
            network: true,
        },
        interfaces: vec![],
        hostname: Some("box".into()),
        domainname: None,
        mounts: default_mounts(),
        files: vec![],
        devices: vec![],
        masked_paths: vec!["/proc/kcore".into(), "/proc/scsi".into(), "/no/such".into()],
        readonly_paths: vec!["/proc/sys".into()],
        sysctls: Default::default(),
        resources: Resources::default(),
    }
}

/// The container on the ext4 disk.
pub fn on_disk(images: &Images, mut plan: ContainerPlan) -> ContainerPlan {
    plan.rootfs.writable = Some(Extent { ..images.scratch.clone() });
    plan
}
