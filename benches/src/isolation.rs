//! What jail and filters cost: the same guest with both and with neither.
//!
//! Two guests: one whose init resets at once (the boot), and one whose init first reads and
//! writes a disk in memory. Turns are interleaved, so that whatever drifts on the host drifts
//! for both sides.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::Path,
    process::{Child, Command},
};

use anyhow::{Context, ensure};
use caisson_jail::pid_namespace;
use caisson_vmm::config::{BlockConfig, JailConfig};
use serde::{Deserialize, Serialize};

use crate::{
    boot::{Programs, alone},
    initramfs,
    process::{Spent, median, run_by},
};

/// The disk's size, and what [`block-init`](../bin/block_init.rs) reads and writes of it.
pub const DISK_BYTES: u64 = 16 << 20;
pub const SEQUENTIAL_BYTES: usize = 64 << 10;
pub const RANDOM_READS: u64 = 500;
pub const RANDOM_BYTES: usize = 4096;
/// What the init writes to the disk's last bytes when all went well.
pub const DONE: &[u8; 16] = b"bench: finished\n";

/// Nobody's user on any host.
const USER: u32 = 1_100_000;
const MAX_OPEN_FILES: u64 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Pid namespace, jail, filters: as the shim starts a vmm.
    On,
    Off,
}

/// What the bench measures with.
pub struct Guests<'a> {
    programs: &'a Programs,
    boot: tempfile::NamedTempFile,
    block: tempfile::NamedTempFile,
    disk: File,
}

/// Each turn of each kind, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    pub boot_on: Vec<Spent>,
    pub boot_off: Vec<Spent>,
    pub block_on: Vec<Spent>,
    pub block_off: Vec<Spent>,
}

impl<'a> Guests<'a> {
    pub fn new(programs: &'a Programs, block_init: &Path) -> anyhow::Result<Self> {
        let init =
            std::fs::read(block_init).with_context(|| format!("read {}", block_init.display()))?;
        let mut block = tempfile::NamedTempFile::new().context("a file for the initramfs")?;
        block.write_all(&initramfs::with_init(&init))?;
        // Without holes, and in memory, so that no host disk is measured.
        let disk = alone::memory_file().context("a disk")?;
        let piece = vec![0x5a; 1 << 20];
        for offset in (0..DISK_BYTES).step_by(piece.len()) {
            disk.write_all_at(&piece, offset).context("fill the disk")?;
        }
        Ok(Self { programs, boot: alone::reset_initramfs(programs)?, block, disk })
    }

    /// `turns` of everything, first one side first, then the other.
    pub fn measure(&self, turns: usize) -> anyhow::Result<Measured> {
        let mut measured = Measured::default();
        for isolation in [Isolation::On, Isolation::Off] {
            self.boot(isolation).context("warm up")?;
        }
        for turn in 0..turns {
            let mut sides = [Isolation::On, Isolation::Off];
            if turn % 2 == 1 {
                sides.reverse();
            }
            for isolation in sides {
                let (boot, block) = (self.boot(isolation)?, self.block(isolation)?);
                let (boots, blocks) = match isolation {
                    Isolation::On => (&mut measured.boot_on, &mut measured.block_on),
                    Isolation::Off => (&mut measured.boot_off, &mut measured.block_off),
                };
                boots.push(boot);
                blocks.push(block);
            }
        }
        Ok(measured)
    }

    fn boot(&self, isolation: Isolation) -> anyhow::Result<Spent> {
        self.run(self.boot.path(), None, isolation)
    }

    fn block(&self, isolation: Isolation) -> anyhow::Result<Spent> {
        let last = DISK_BYTES - DONE.len() as u64;
        self.disk.write_all_at(&[0; DONE.len()], last).context("clear the disk's mark")?;
        let spent = self.run(self.block.path(), Some(&self.disk), isolation)?;
        let mut mark = [0; DONE.len()];
        self.disk.read_exact_at(&mut mark, last).context("read the disk's mark")?;
        ensure!(&mark == DONE, "the guest did not finish with its disk ({isolation:?})");
        Ok(spent)
    }

    fn run(
        &self,
        initramfs: &Path,
        disk: Option<&File>,
        isolation: Isolation,
    ) -> anyhow::Result<Spent> {
        let kvm = alone::open("/dev/kvm".as_ref(), true)?;
        let kernel = alone::open(&self.programs.kernel(), false)?;
        let initramfs = alone::open(initramfs, false)?;
        // Its end would end the VM; what is said on it fits its buffer.
        let (_ours, theirs) = UnixStream::pair().context("a control socket")?;
        let theirs = File::from(OwnedFd::from(theirs));
        let mut config = alone::config(&kvm, &kernel, Some(&initramfs), Some(&theirs));
        let mut files = vec![kvm, kernel, initramfs, theirs];
        if let Some(disk) = disk {
            let disk = disk.try_clone().context("another descriptor of the disk")?;
            let serial = "disk".to_owned();
            config.block =
                vec![BlockConfig { serial, readonly: false, files: vec![disk.as_raw_fd()] }];
            files.push(disk);
        }
        if isolation == Isolation::On {
            config.jail = Some(JailConfig {
                uid: USER,
                gid: USER,
                max_open_files: MAX_OPEN_FILES,
                pid_namespace: true,
            });
        }
        let mut command = alone::command(&self.programs.vmm(), &config, &files)?;
        let spawn: fn(&mut Command) -> std::io::Result<Child> = match isolation {
            Isolation::On => pid_namespace::spawn,
            Isolation::Off => {
                command.arg("--no-seccomp");
                Command::spawn
            }
        };
        run_by(&mut command, spawn)
    }
}

impl Measured {
    /// The figures that have budgets.
    pub fn figures(&self) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        let both = cpu(&self.boot_on).zip(cpu(&self.block_on));
        let neither = cpu(&self.boot_off).zip(cpu(&self.block_off));
        if let (Some((boot_on, block_on)), Some((boot_off, block_off))) = (both, neither) {
            let percent = |on: f64, off: f64| (on / off - 1.0) * 100.0;
            figures.insert("boot_cost_percent".into(), percent(boot_on, boot_off));
            figures.insert("block_cost_percent".into(), percent(block_on, block_off));
            let cost = percent(boot_on + block_on, boot_off + block_off);
            figures.insert("cost_percent".into(), cost);
        }
        figures
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "Jail and filters, on and off: medians of interleaved runs, CPU seconds\n\n",
        );
        let rows = [
            ("boot to /init and reset", &self.boot_on, &self.boot_off),
            ("the same with disk I/O", &self.block_on, &self.block_off),
        ];
        text += &format!("{:<26} {:>9} {:>9} {:>8}\n", "", "on", "off", "on/off");
        for (what, on, off) in rows {
            if let Some((on, off)) = cpu(on).zip(cpu(off)) {
                text += &format!("{what:<26} {on:>9.4} {off:>9.4} {:>8.4}\n", on / off);
            }
        }
        for (side, boot, block) in
            [("on", &self.boot_on, &self.block_on), ("off", &self.boot_off, &self.block_off)]
        {
            if let Some(mib_per_second) = throughput(boot, block) {
                text += &format!("disk, {side:<20} {mib_per_second:>9.1} MiB/s\n");
            }
        }
        text
    }
}

fn cpu(spent: &[Spent]) -> Option<f64> {
    median(spent.iter().map(|spent| spent.cpu_seconds).collect())
}

/// MiB a second of wall time that a run with the disk takes longer than one without.
fn throughput(boot: &[Spent], block: &[Spent]) -> Option<f64> {
    let wall = |spent: &[Spent]| median(spent.iter().map(|spent| spent.wall_seconds).collect());
    let seconds = wall(block)? - wall(boot)?;
    // Read, and written, from end to end; then the random reads.
    let bytes = 2 * DISK_BYTES + RANDOM_READS * RANDOM_BYTES as u64;
    (seconds > 0.0).then(|| bytes as f64 / (1 << 20) as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(seconds: [f64; 3]) -> Vec<Spent> {
        let spent = |cpu_seconds| Spent { cpu_seconds, wall_seconds: cpu_seconds };
        seconds.map(spent).into()
    }

    #[test]
    fn the_cost_is_of_the_medians_together() {
        let measured = Measured {
            boot_on: turns([1.1, 9.0, 1.0]),
            boot_off: turns([1.0, 1.0, 1.0]),
            block_on: turns([3.0, 3.0, 3.0]),
            block_off: turns([3.0, 0.0, 3.0]),
        };
        let figures = measured.figures();
        assert!((figures["boot_cost_percent"] - 10.0).abs() < 1e-6, "{figures:?}");
        assert!(figures["block_cost_percent"].abs() < 1e-6, "{figures:?}");
        assert!((figures["cost_percent"] - 2.5).abs() < 1e-6, "{figures:?}");
        assert!(measured.table().contains("1.1000    1.0000   1.1000"), "{}", measured.table());
    }

    #[test]
    fn nothing_measured_is_no_figure() {
        assert!(Measured::default().figures().is_empty());
    }

    #[test]
    fn the_disk_is_whole_blocks() {
        assert_eq!(DISK_BYTES % SEQUENTIAL_BYTES as u64, 0);
        assert_eq!(DISK_BYTES % RANDOM_BYTES as u64, 0);
    }
}
