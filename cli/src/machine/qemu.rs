//! The emulator's command line.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use caisson_agent_protocol::machine::{BootArguments, CONTROL_PORT, SESSION_PORTS};

use super::directory::MachineDirectory;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// For the machine's kernel. It runs no hostile code, so it need not defend itself, nor
/// test its ciphers at each start; namespaces are made and dropped quickly with expedited
/// RCU.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet panic=1 mitigations=off rodata=off \
    cryptomgr.notests=1 audit=0 apparmor=0 nowatchdog tsc=reliable no_timer_check \
    random.trust_cpu=on rcupdate.rcu_expedited=1 cgroup_no_v1=all";

/// What a machine is made of.
pub(super) struct Plan<'a> {
    pub(super) cpus: u32,
    pub(super) memory_bytes: u64,
    pub(super) icount: bool,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) boot: BootArguments,
    pub(super) directory: &'a MachineDirectory,
}

/// The name of a port's socket in the directory of ports.
pub(super) fn socket_name(port: u32) -> String {
    format!("{port}.sock")
}

impl Plan<'_> {
    /// The arguments. Sockets are named relative to the directory of ports, which shall be
    /// QEMU's working directory.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut line = Line::default();
        line.words(&["-name", "caisson-machine", "-nodefaults", "-no-user-config"]);
        line.words(&["-display", "none", "-no-reboot", "-rtc", "base=utc"]);
        // Without 5-level paging a walk is shorter, here and in the guests. Where steps are
        // counted, kernels fill and copy pages by words (without ERMS), as one step of the
        // emulator is a byte else, and the count would say little of anything but that.
        let processor = if self.icount { "max,+svm,-la57,-erms" } else { "max,+svm,-la57" };
        line.words(&["-M", "q35,usb=off", "-cpu", processor]);
        match self.icount {
            true => line.words(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]),
            false => line.words(&["-accel", "tcg,thread=multi"]),
        }
        line.word("-smp").word(self.cpus.to_string());
        line.word("-m").word((self.memory_bytes >> 20).to_string());
        line.word("-kernel").word(&self.kernel);
        line.word("-initrd").word(&self.initramfs);
        let counted = if self.icount { "init_on_alloc=0 " } else { "" };
        let boot = self.boot.to_command_line();
        line.word("-append").word(format!("{KERNEL_OPTIONS} {counted}{boot}"));
        line.option("-chardev", "file,id=console,path=", &self.directory.console());
        line.words(&["-serial", "chardev:console"]);
        self.file_shares(&mut line);
        line.option(
            "-drive",
            "if=none,id=disk,format=raw,cache=writeback,discard=unmap,file=",
            &self.directory.disk(),
        );
        line.words(&["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]);
        line.words(&["-device", "virtio-serial-pci,id=ports,max_ports=31"]);
        for port in std::iter::once(CONTROL_PORT).chain(SESSION_PORTS) {
            let socket = socket_name(port);
            line.word("-chardev");
            line.word(format!("socket,id=port{port},path={socket},server=on,wait=off"));
            line.word("-device");
            line.word(format!("virtserialport,bus=ports.0,nr={port},chardev=port{port}"));
        }
        line.0
    }

    fn file_shares(&self, line: &mut Line) {
        let common = "path=/,security_model=none,multidevs=remap";
        line.word("-fsdev").word(format!("local,id=root,readonly=on,{common}"));
        line.words(&["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
        line.word("-fsdev").word(format!("local,id=host,{common}"));
        line.words(&["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    }
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn word(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(word.as_ref().into());
        self
    }

    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    /// An option whose last value is a path; a comma in it is doubled.
    fn option(&mut self, name: &str, value: &str, path: &Path) {
        let mut bytes = value.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            bytes.push(*byte);
            if *byte == b',' {
                bytes.push(b',');
            }
        }
        self.word(name).word(OsString::from_vec(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_end_an_option() {
        let mut line = Line::default();
        line.option("-drive", "file=", Path::new("/a,b/c"));
        assert_eq!(line.0, ["-drive", "file=/a,,b/c"]);
    }
}
