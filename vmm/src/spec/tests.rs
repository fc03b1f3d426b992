use std::{
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use super::*;

/// Inherited files of a test. Their numbers are given away, so that `Files` may own them.
struct Inherited {
    directory: tempfile::TempDir,
}

impl Inherited {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, flags: i32) -> i32 {
        let path = self.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let read = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let options = File::options()
            .read(read)
            .write(write)
            .custom_flags(flags & !libc::O_ACCMODE)
            .open(path);
        options.unwrap().into_raw_fd()
    }

    /// A device that is not KVM, but all that is seen here is that it is a device.
    fn device(&self) -> i32 {
        File::options().read(true).write(true).open("/dev/null").unwrap().into_raw_fd()
    }

    fn listener(&self, name: &str) -> i32 {
        UnixListener::bind(self.path().join(name)).unwrap().into_raw_fd()
    }

    fn stream(&self) -> i32 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // The peer may be gone: the socket is connected all the same.
        drop(theirs);
        ours.into_raw_fd()
    }

    fn config(&self) -> VmConfig {
        VmConfig {
            id: "test".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            kvm: self.device(),
            kernel: self.file(libc::O_RDONLY),
            initramfs: Some(self.file(libc::O_RDONLY)),
            boot_pages: BootPages::default(),
            cmdline: "quiet".to_owned(),
            block: vec![BlockConfig {
                serial: "layers".to_owned(),
                readonly: true,
                files: vec![self.file(libc::O_RDONLY), self.file(libc::O_RDONLY)],
            }],
            disk_limit: RateLimit::default(),
            net: Vec::new(),
            vsock: Some(VsockConfig {
                cid: 3,
                listener: self.listener("vsock"),
                host_ports: vec![crate::config::HostPort { port: 1024, socket: self.stream() }],
            }),
            fs: None,
            rng: true,
            balloon: true,
            console: Some(self.file(libc::O_WRONLY)),
            control: None,
            jail: None,
        }
    }
}

fn adopt(config: &VmConfig) -> Result<VmSpec, SpecError> {
    // SAFETY: the numbers in `config` come from `into_raw_fd`, and no test uses two
    // `Files` for the same ones.
    let mut files = unsafe { Files::inherited() };
    VmSpec::adopt(config, &mut files)
}

#[track_caller]
fn refused(change: impl FnOnce(&Inherited, &mut VmConfig), message: &str) {
    let inherited = Inherited::new();
    let mut config = inherited.config();
    change(&inherited, &mut config);
    let error = crate::error_chain(&adopt(&config).unwrap_err());
    assert!(error.contains(message), "{error}");
}

#[test]
fn a_valid_config_becomes_a_spec() {
    let inherited = Inherited::new();
    let config = inherited.config();
    // SAFETY: as in `adopt`.
    let mut files = unsafe { Files::inherited() };
    let spec = VmSpec::adopt(&config, &mut files).unwrap();
    assert_eq!(spec.memory_bytes, 128 << 20);
    assert_eq!(spec.kernel.as_raw_fd(), config.kernel);
    assert_eq!(spec.block[0].files.len(), 2);
    assert_eq!(files.taken().len(), 8);
    let line = String::from_utf8(spec.command_line).unwrap();
    assert_eq!(line.matches("virtio_mmio.device=4K@0xd000").count(), 4, "{line}");
    assert!(line.starts_with("quiet virtio_mmio.device=4K@0xd0000000:5 "), "{line}");
    assert!(line.ends_with(":9\0"), "the RTC keeps 8: {line}");
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused(|_, config| config.vcpus = 0, "0 vCPUs");
    refused(|_, config| config.vcpus = 33, "33 vCPUs");
    refused(|_, config| config.memory_mib = 31, "31 MiB");
    refused(|_, config| config.memory_mib = 65537, "65537 MiB");
    refused(|_, config| config.vsock.as_mut().unwrap().cid = 2, "CID 2");
    refused(|_, config| config.vsock.as_mut().unwrap().cid = u32::MAX, "CID 4294967295");
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    let rate = crate::config::Rate { per_second: 0, burst: 1 };
    refused(
        |_, config| config.disk_limit.operations = Some(rate),
        "limit of the disks: a rate in operations a second of 0; it is 1 to 1000000000",
    );
}

#[test]
fn networks_are_of_the_field() {
    fn net(inherited: &Inherited) -> crate::config::NetConfig {
        crate::config::NetConfig {
            tap: inherited.device(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            addresses: Vec::new(),
            receive_limit: RateLimit::default(),
            transmit_limit: RateLimit::default(),
        }
    }
    let with = |change: fn(&mut crate::config::NetConfig), message: &str| {
        refused(
            |inherited, config| {
                let mut net = net(inherited);
                change(&mut net);
                config.net.push(net);
            },
            message,
        );
    };
    with(|_| (), "no tap device");
    with(|net| net.mac.0[0] = 3, "03:00:00:00:00:01 is no single interface's");
    with(|net| net.mtu = 67, "an MTU of 67");
    with(|net| net.addresses = vec!["0.0.0.0".parse().unwrap()], "0.0.0.0 to send from");
    with(|net| net.addresses = vec!["10.0.0.1".parse().unwrap(); 65], "65 addresses");
    let rate = crate::config::Rate { per_second: 1, burst: 1 };
    refused(
        |inherited, config| {
            let mut net = net(inherited);
            net.receive_limit.bandwidth = Some(rate);
            config.net.push(net);
        },
        "limit of the network",
    );
    refused(|i, config| config.net.extend([net(i), net(i)]), "two network devices");
}

#[test]
fn names_that_could_mislead_are_refused() {
    refused(|_, config| config.id = String::new(), "id");
    refused(|_, config| config.id = "x".repeat(129), "129 bytes");
    refused(|_, config| config.id = "a\nb".to_owned(), "control character");
    refused(|_, config| config.block[0].serial = "x".repeat(21), "serial");
    refused(|_, config| config.block[0].serial = String::new(), "serial");
    refused(|_, config| config.cmdline = "a\0b".to_owned(), "0x00 at 1");
    refused(|_, config| config.cmdline = "x".repeat(2000), "kernel takes 2047");
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    refused(|_, config| config.kernel = 999_999, "999999 is not open");
    refused(|_, config| config.kernel = -1, "-1 is not open");
    refused(|_, config| config.initramfs = Some(config.kernel), "named twice");
    refused(|inherited, config| config.kernel = inherited.device(), "no regular file");
    refused(|inherited, config| config.kvm = inherited.file(libc::O_RDWR), "no character device");
    refused(|inherited, config| config.kernel = inherited.file(libc::O_WRONLY), "for reading");
    refused(|inherited, config| config.kernel = inherited.file(libc::O_PATH), "for reading");
    refused(
        |inherited, config| config.console = Some(inherited.file(libc::O_RDONLY)),
        "for writing",
    );
}

#[test]
fn a_disk_is_open_as_the_device_is() {
    let disk = |config: &mut VmConfig, readonly, fd| {
        config.block[0] = BlockConfig { serial: "a".to_owned(), readonly, files: vec![fd] };
    };
    refused(|i, config| disk(config, true, i.file(libc::O_RDWR)), "read-only");
    refused(|i, config| disk(config, false, i.file(libc::O_RDONLY)), "read-write");
    refused(|i, config| disk(config, false, i.file(libc::O_RDWR | libc::O_APPEND)), "O_APPEND");
    refused(|i, config| disk(config, false, i.device()), "no regular file");
    refused(|_, config| config.block[0].files.clear(), "has no file");
    refused(|_, config| config.block.push(config.block[0].clone()), "two block devices");
}

#[test]
fn sockets_are_of_their_kind() {
    fn vsock(config: &mut VmConfig) -> &mut VsockConfig {
        config.vsock.as_mut().unwrap()
    }
    refused(|i, config| vsock(config).listener = i.stream(), "no listening Unix socket");
    refused(|i, config| vsock(config).listener = i.device(), "no listening Unix socket");
    refused(|i, config| vsock(config).host_ports[0].socket = i.listener("b"), "no Unix stream");
    refused(
        |i, config| {
            let port = crate::config::HostPort { port: 1024, socket: i.stream() };
            vsock(config).host_ports.push(port);
        },
        "host port 1024 is named twice",
    );
}

#[test]
fn a_file_system_has_a_tag_and_a_socket_of_messages() {
    fn fs(tag: &str, kind: i32) -> Option<FsConfig> {
        let mut ends = [0; 2];
        // SAFETY: the kernel writes two descriptors to `ends`.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
        Some(FsConfig { tag: tag.to_owned(), server: ends[0] })
    }
    let inherited = Inherited::new();
    let longest = "t".repeat(FS_TAG_BYTES);
    let config = VmConfig { fs: fs(&longest, libc::SOCK_SEQPACKET), ..inherited.config() };
    let spec = adopt(&config).unwrap();
    assert_eq!((spec.fs.unwrap().tag, spec.slots.len()), (longest, 5));
    for tag in ["", "a b", "\u{e9}", &"t".repeat(FS_TAG_BYTES + 1)] {
        refused(|_, config| config.fs = fs(tag, libc::SOCK_SEQPACKET), "the tag");
    }
    refused(|_, config| config.fs = fs("t", libc::SOCK_STREAM), "SOCK_SEQPACKET");
}

#[test]
fn more_devices_than_interrupt_lines_are_refused() {
    refused(
        |inherited, config| {
            config.block = (0..20)
                .map(|number| BlockConfig {
                    serial: number.to_string(),
                    readonly: true,
                    files: vec![inherited.file(libc::O_RDONLY)],
                })
                .collect();
        },
        "23 virtio devices",
    );
}

#[test]
fn the_jail_is_never_roots() {
    let jail =
        |uid, gid| super::jail(&JailConfig { uid, gid, max_open_files: 64, ..Default::default() });
    assert!(jail(1000, 1000).is_ok());
    for (uid, gid) in [(0, 1000), (1000, 0), (u32::MAX, 1000), (1000, u32::MAX)] {
        assert!(matches!(jail(uid, gid), Err(SpecError::JailRoot { .. })));
    }
}
