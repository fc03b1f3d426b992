//! The VM around a hostile guest, and what must hold whatever the guest does: it lives, the
//! disk beside the one it plays with works, its vmm stays small, it stops when told to, and
//! files are as they ought to be.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    thread,
    time::{Duration, Instant},
};

use caisson_vmm::{
    config::{BlockConfig, HostPort, VsockConfig},
    control::{ControlRequest, EndReason},
};

use crate::{
    guest::{Device, Guest, Queue, word},
    support::{Builder, Vmm, has_kvm},
};

/// Nothing here takes longer on any host that works.
const DEADLINE: Duration = Duration::from_secs(60);

const BLOCK: u32 = 2;

/// The disk to play with, a read-only one, and the one that must go on working.
pub const VICTIM: Device = Device { number: 0, id: BLOCK };
pub const READONLY: Device = Device { number: 1, id: BLOCK };
const WITNESS: Device = Device { number: 2, id: BLOCK };
pub const VSOCK: Device = Device { number: 3, id: 19 };
pub const RNG: Device = Device { number: 4, id: 4 };
pub const BALLOON: Device = Device { number: 5, id: 5 };

pub const CID: u32 = 7;
/// Ports of the host that the guest may connect to.
pub const HOST_PORTS: std::ops::Range<u32> = 1024..1040;

/// Each disk begins with sectors of [`word`]s; the rest is zeros.
pub const SECTORS: u32 = 16;
const SMALL_DISK_BYTES: u64 = 512 * SECTORS as u64;
pub const VICTIM_BYTES: u64 = 8 << 20;

/// All of the guest's RAM, and what the vmm may use beside it.
const MEMORY_MAX_KIB: u64 = (32 + 32) << 10;
/// Far more than any vmm here has, and far less than the sizes that guests name.
const ADDRESS_SPACE_MAX_KIB: u64 = 2 << 20;

/// The host's side of a scene.
pub struct Host {
    pub vmm: Vmm,
    /// The files of the disks, by the number of the device.
    pub disks: [File; 3],
    /// The other ends of the ports that the guest may connect to.
    pub ports: BTreeMap<u32, UnixStream>,
}

/// The guest's side: its program, and the queue of the disk that must go on working.
pub struct Scene {
    pub guest: Guest,
    witness: Queue,
}

impl Scene {
    /// The other disk still answers.
    pub fn look_at_witness(&mut self) {
        self.guest.read_well(&mut self.witness, 5);
        self.guest.read_well(&mut self.witness, SECTORS - 1);
    }

    /// The disk that was played with works after a reset.
    pub fn look_at_victim(&mut self) {
        let [mut queue] = self.guest.set_up(VICTIM, 0, [8]);
        self.guest.read_well(&mut queue, 3);
    }
}

/// Runs a guest that does `act`, and checks what must hold after anything.
pub fn play(act: impl FnOnce(&mut Scene)) {
    run(1, act, |_| ());
}

/// The same, while the host does `meanwhile`.
pub fn play_with(act: impl FnOnce(&mut Scene), meanwhile: impl FnOnce(&mut Host)) {
    run(1, act, meanwhile);
}

/// The same with several vCPUs.
pub fn play_on(vcpus: u8, act: impl FnOnce(&mut Scene)) {
    run(vcpus, act, |_| ());
}

fn run(vcpus: u8, act: impl FnOnce(&mut Scene), meanwhile: impl FnOnce(&mut Host)) {
    if !has_kvm() {
        return;
    }
    let mut guest = Guest::default();
    let [witness] = guest.set_up(WITNESS, 0, [16]);
    let mut scene = Scene { guest, witness };
    scene.look_at_witness();
    act(&mut scene);
    scene.look_at_witness();
    scene.look_at_victim();
    scene.guest.say("done");
    scene.guest.code(|program| program.spin());

    let mut host = start(vcpus, scene.guest);
    meanwhile(&mut host);
    host.hear("done");
    host.assert_small();
    host.vmm.request(ControlRequest::Stop);
    let (reason, _, status) = host.vmm.ended();
    let log = host.vmm.stderr();
    assert_eq!((reason, status.code()), (EndReason::Stopped, Some(0)), "{log}");
    // However much a guest does wrong, few lines tell of it.
    assert!(log.lines().count() < 60, "{log}");
    host.assert_files();
}

fn start(vcpus: u8, guest: Guest) -> Host {
    let directory = tempfile::tempdir().unwrap();
    let disks = std::array::from_fn(|number| disk(number as u32, VICTIM.number == number as u32));
    let mut builder = Builder::new(&guest.into_payload());
    for (number, (file, _)) in disks.iter().enumerate() {
        let readonly = number as u32 == READONLY.number;
        let file = File::options().read(true).write(!readonly).open(file.path()).unwrap();
        let files = vec![builder.inherit(file)];
        let serial = format!("disk{number}");
        builder.config.block.push(BlockConfig { serial, readonly, files });
    }
    let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
    let listener = builder.inherit(File::from(OwnedFd::from(listener)));
    let mut ports = BTreeMap::new();
    let mut host_ports = Vec::new();
    for port in HOST_PORTS {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ports.insert(port, ours);
        host_ports.push(HostPort { port, socket: builder.inherit(OwnedFd::from(theirs).into()) });
    }
    builder.config.vsock = Some(VsockConfig { cid: CID, listener, host_ports });
    builder.config.vcpus = vcpus;
    builder.config.rng = true;
    builder.config.balloon = true;
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        builder = builder.jailed();
    } else {
        eprintln!("without a jail: that needs root");
    }
    Host { vmm: builder.start(), disks: disks.map(|(_, file)| file), ports }
}

/// A new file for a disk, and a handle that outlives it.
fn disk(number: u32, large: bool) -> (tempfile::NamedTempFile, File) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&content(number), 0).unwrap();
    file.as_file().set_len(if large { VICTIM_BYTES } else { SMALL_DISK_BYTES }).unwrap();
    let handle = file.as_file().try_clone().unwrap();
    (file, handle)
}

fn content(number: u32) -> Vec<u8> {
    let words = |sector| (0..128).map(move |index| word(number, sector, index));
    (0..SECTORS).flat_map(words).flat_map(u32::to_le_bytes).collect()
}

impl Host {
    /// Waits until the guest has said this; panics with what it has said instead if it says
    /// that something failed.
    #[track_caller]
    pub fn hear(&mut self, line: &str) {
        let late = Instant::now() + DEADLINE;
        loop {
            let text = String::from_utf8_lossy(&self.vmm.console_bytes()).into_owned();
            if text.lines().any(|heard| heard == line) {
                return;
            }
            let failed = text.contains("FAILED") || Instant::now() > late;
            assert!(!failed, "the guest does not say {line:?} but {text:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Neither memory nor address space has ever grown with what the guest asked for.
    fn assert_small(&self) {
        let status = self.vmm.proc("status");
        for (field, max) in [("VmHWM", MEMORY_MAX_KIB), ("VmPeak", ADDRESS_SPACE_MAX_KIB)] {
            let line = status.lines().find(|line| line.starts_with(field)).unwrap();
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            assert!(kib < max, "{line}");
        }
    }

    /// The disks have what they had. A test that writes to the victim puts it back.
    fn assert_files(&self) {
        for (number, file) in (0..).zip(&self.disks) {
            let expected = content(number);
            let mut found = vec![0; expected.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "disk {number} was changed");
            let bytes = if number == VICTIM.number { VICTIM_BYTES } else { SMALL_DISK_BYTES };
            assert_eq!(file.metadata().unwrap().len(), bytes, "disk {number}");
        }
    }

    /// The file of the disk to play with.
    pub fn victim(&self) -> &File {
        &self.disks[VICTIM.number as usize]
    }
}
