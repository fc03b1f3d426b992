//! Starts the real `caisson-vmm` as the shim does, with a hand-assembled payload as its
//! kernel, and watches it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod payload;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use caisson_jail::pid_namespace;
use caisson_vmm::{
    config::{BlockConfig, BootPages, JailConfig, RateLimit, VmConfig},
    control::{ControlEvent, ControlRequest, EndReason, JailReport, Report},
};
use payload::Payload;

/// Nothing here takes longer on any host that works.
const DEADLINE: Duration = Duration::from_secs(60);

/// True if this host can run the payloads; says why not.
pub fn has_kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIP: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// True if this test may make jails; says why not.
pub fn is_root() -> bool {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIP: a jail needs root");
    }
    root
}

/// A VM to be.
pub struct Builder {
    pub config: VmConfig,
    /// Open until the vmm has inherited them.
    files: Vec<File>,
    console: File,
    control: UnixStream,
    arguments: Vec<String>,
}

impl Builder {
    /// One vCPU, 32 MiB, console and control, no jail.
    pub fn new(payload: &Payload) -> Self {
        let console = tempfile::tempfile().unwrap();
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(DEADLINE)).unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(&payload.elf()).unwrap();
        let mut files = Vec::new();
        let mut keep = |file: File| {
            files.push(file);
            files.last().unwrap().as_raw_fd()
        };
        let config = VmConfig {
            id: "test".to_owned(),
            vcpus: 1,
            memory_mib: 32,
            kvm: keep(kvm),
            kernel: keep(kernel),
            initramfs: None,
            boot_pages: BootPages::of_host(),
            cmdline: "console=ttyS0".to_owned(),
            block: Vec::new(),
            disk_limit: RateLimit::default(),
            net: Vec::new(),
            vsock: None,
            fs: None,
            rng: false,
            balloon: false,
            console: Some(keep(console.try_clone().unwrap())),
            control: Some(keep(File::from(std::os::fd::OwnedFd::from(theirs)))),
            jail: None,
        };
        Self { config, files, console, control, arguments: Vec::new() }
    }

    pub fn jailed(mut self) -> Self {
        self.config.jail =
            Some(JailConfig { uid: 64_001, gid: 64_002, max_open_files: 128, pid_namespace: true });
        self
    }

    /// With these words behind the others on the command line.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }

    /// A disk over a new file of these bytes.
    pub fn disk(mut self, serial: &str, content: &[u8]) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let fd = self.inherit(file);
        let disk = BlockConfig { serial: serial.to_owned(), readonly: false, files: vec![fd] };
        self.config.block.push(disk);
        self
    }

    /// Passes `file` on; the number is for the config.
    pub fn inherit(&mut self, file: File) -> RawFd {
        self.files.push(file);
        self.files.last().unwrap().as_raw_fd()
    }

    pub fn start(self) -> Vmm {
        let json = serde_json::to_vec(&self.config).unwrap();
        self.start_with(&json)
    }

    /// Without a pid namespace, whatever the config says.
    pub fn start_in_this_namespace(self) -> Vmm {
        let json = serde_json::to_vec(&self.config).unwrap();
        self.spawn(&json, Command::spawn)
    }

    /// Starts with this as the config.
    pub fn start_with(self, config: &[u8]) -> Vmm {
        match &self.config.jail {
            Some(jail) if jail.pid_namespace => self.spawn(config, pid_namespace::spawn),
            _ => self.spawn(config, Command::spawn),
        }
    }

    fn spawn(self, config: &[u8], spawn: fn(&mut Command) -> std::io::Result<Child>) -> Vmm {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(config).unwrap();
        let config_fd = file.as_raw_fd();
        let inherited: Vec<RawFd> =
            self.files.iter().map(AsRawFd::as_raw_fd).chain([config_fd]).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_caisson-vmm"));
        command
            .args(["--config-fd", &config_fd.to_string()])
            .args(&self.arguments)
            .env_clear()
            .env("SECRET", "of the parent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: the child only makes system calls that are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                for &fd in &inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = spawn(&mut command).unwrap();
        let lines = BufReader::new(self.control.try_clone().unwrap());
        Vmm { child, control: Some(self.control), lines, console: self.console }
    }
}

/// A started vmm. Killed when dropped.
pub struct Vmm {
    child: Child,
    control: Option<UnixStream>,
    lines: BufReader<UnixStream>,
    console: File,
}

impl Vmm {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn request(&mut self, request: ControlRequest) {
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        self.send(&line);
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.control.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Closes the control socket, as the end of the shim would.
    pub fn hang_up(&mut self) {
        // Both handles are of one socket.
        self.control.take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// The next event; `None` at the end of the socket.
    pub fn event(&mut self) -> Option<ControlEvent> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) => panic!("no event: {error}; {}", self.stderr()),
        }
    }

    /// What the vmm says of its jail, before anything else.
    #[track_caller]
    pub fn jailed(&mut self) -> JailReport {
        match self.event() {
            Some(ControlEvent::Jailed(report)) => report,
            other => panic!("no report of the jail but {other:?}; {}", self.stderr()),
        }
    }

    #[track_caller]
    pub fn expect(&mut self, expected: ControlEvent) {
        assert_eq!(self.event(), Some(expected));
    }

    /// The last event, with the exit status behind it.
    #[track_caller]
    pub fn ended(&mut self) -> (EndReason, Report, ExitStatus) {
        loop {
            match self.event() {
                Some(ControlEvent::Ended { reason, report }) => {
                    return (reason, report, self.wait());
                }
                Some(_) => {}
                None => {
                    let status = self.wait();
                    panic!("no Ended event; {status}: {}", self.stderr());
                }
            }
        }
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the vmm does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub fn stderr(&mut self) -> String {
        let mut text = String::new();
        if self.child.try_wait().unwrap().is_some() {
            self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        }
        text
    }

    /// What the guest has written to the serial port.
    pub fn console(&mut self) -> String {
        String::from_utf8(self.console_bytes()).unwrap()
    }

    pub fn console_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.console.rewind().unwrap();
        self.console.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// A file of the vmm's in /proc.
    pub fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).unwrap()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
