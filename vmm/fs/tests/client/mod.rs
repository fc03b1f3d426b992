//! The vmm's and the guest's part: FUSE messages over a socket (Linux
//! `include/uapi/linux/fuse.h`).

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Seek, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus},
};

use caisson_fs::config::{Config, Share};
use caisson_jail::pid_namespace;

pub(crate) const ROOT: u64 = 1;

/// Operations by their numbers.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const DESTROY: u32 = 38;
}

type Reply<T> = Result<T, i32>;

pub(crate) struct Client {
    socket: OwnedFd,
    server: Child,
    unique: u64,
}

pub(crate) fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

impl Client {
    /// Starts a server of these, each read-only or not.
    pub(crate) fn start(shares: &[(&Path, bool)]) -> Self {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the kernel writes two descriptors to `ends`.
        assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
        // SAFETY: the kernel has just made both for us.
        let [socket, theirs] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let sources: Vec<File> = shares
            .iter()
            .map(|(path, _)| {
                File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap()
            })
            .collect();
        let (mut ready, confined) = std::io::pipe().unwrap();
        let config = Config {
            socket: theirs.as_raw_fd(),
            ready: confined.as_raw_fd(),
            shares: sources
                .iter()
                .zip(shares)
                .map(|(source, (_, readonly))| Share {
                    source: source.as_raw_fd(),
                    readonly: *readonly,
                    recursive: true,
                })
                .collect(),
            max_open_files: 1024,
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&serde_json::to_vec(&config).unwrap()).unwrap();
        file.rewind().unwrap();
        let mut inherited = vec![theirs.as_raw_fd(), confined.as_raw_fd(), file.as_raw_fd()];
        inherited.extend(sources.iter().map(AsRawFd::as_raw_fd));
        let mut command = Command::new(env!("CARGO_BIN_EXE_caisson-fs"));
        command.args(["--config-fd", &file.as_raw_fd().to_string()]);
        // SAFETY: between fork and exec only flags of descriptors are changed.
        unsafe {
            command.pre_exec(move || {
                for &fd in &inherited {
                    libc::fcntl(fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        let server = pid_namespace::spawn(&mut command).unwrap();
        drop(confined);
        ready.read_exact(&mut [0]).expect("the server is confined");
        Self { socket, server, unique: 0 }
    }

    pub(crate) fn init(&mut self) {
        let flags = 1_u32 << 5 | 1 << 22; // big writes, and pages as agreed
        let body = words(&[7, 31, 0, flags]);
        self.call(op::INIT, 0, &body).unwrap();
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Reply<u64> {
        Ok(long(&self.call(op::LOOKUP, parent, &text(name))?))
    }

    pub(crate) fn forget(&mut self, node: u64) {
        self.send_request(op::FORGET, node, &1_u64.to_le_bytes());
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Reply<u64> {
        Ok(long(&self.call(op::OPEN, node, &words(&[flags as u32, 0]))?))
    }

    pub(crate) fn read(&mut self, node: u64) -> Reply<Vec<u8>> {
        let handle = self.open(node, libc::O_RDONLY)?;
        let body = [&handle.to_le_bytes()[..], &[0; 8], &words(&[4096, 0, 0, 0, 0, 0])].concat();
        self.call(op::READ, node, &body)
    }

    pub(crate) fn write(&mut self, node: u64, handle: u64, data: &[u8]) -> Reply<()> {
        let size = data.len() as u32;
        let head = [&handle.to_le_bytes()[..], &[0; 8], &words(&[size, 0, 0, 0, 0, 0])].concat();
        self.call(op::WRITE, node, &[&head, data].concat()).map(drop)
    }

    /// Makes a file as the user `uid`; the node and the handle.
    pub(crate) fn create(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        uid: u32,
    ) -> Reply<(u64, u64)> {
        let flags = (libc::O_CREAT | libc::O_RDWR) as u32;
        let body = [words(&[flags, mode, 0, 0]), text(name)].concat();
        self.send_as(op::CREATE, parent, uid, &body);
        const ENTRY_BYTES: usize = 128;
        self.reply().map(|reply| (long(&reply), long(&reply[ENTRY_BYTES..])))
    }

    pub(crate) fn mknod(&mut self, parent: u64, name: &str, mode: u32, device: u32) -> Reply<()> {
        let body = [words(&[mode, device, 0, 0]), text(name)].concat();
        self.call(op::MKNOD, parent, &body).map(drop)
    }

    pub(crate) fn link(&mut self, node: u64, parent: u64, name: &str) -> Reply<()> {
        let body = [node.to_le_bytes().to_vec(), text(name)].concat();
        self.call(op::LINK, parent, &body).map(drop)
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &str) -> Reply<()> {
        self.call(op::UNLINK, parent, &text(name)).map(drop)
    }

    pub(crate) fn set_xattr(&mut self, node: u64, name: &str, value: &[u8]) -> Reply<()> {
        let head = words(&[value.len() as u32, 0]);
        self.call(op::SETXATTR, node, &[&head, &text(name), value].concat()).map(drop)
    }

    pub(crate) fn get_xattr(&mut self, node: u64, name: &str) -> Reply<Vec<u8>> {
        self.call(op::GETXATTR, node, &[words(&[256, 0]), text(name)].concat())
    }

    /// Closes the socket; how the server ended.
    pub(crate) fn end(self) -> ExitStatus {
        let Self { socket, mut server, .. } = self;
        drop(socket);
        server.wait().unwrap()
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Reply<Vec<u8>> {
        self.send_request(opcode, node, body);
        self.reply()
    }

    pub(crate) fn send_request(&mut self, opcode: u32, node: u64, body: &[u8]) {
        self.send_as(opcode, node, 0, body);
    }

    fn send_as(&mut self, opcode: u32, node: u64, uid: u32, body: &[u8]) {
        self.unique += 1;
        let message = [
            &words(&[40 + body.len() as u32, opcode])[..],
            &self.unique.to_le_bytes(),
            &node.to_le_bytes(),
            &words(&[uid, uid, 1, 0]),
            body,
        ]
        .concat();
        self.send_raw(&message);
    }

    pub(crate) fn send_raw(&self, message: &[u8]) {
        // SAFETY: the kernel reads `message`, which is as long as it is told.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)
        };
        assert_eq!(sent, message.len() as isize);
    }

    /// The reply to the last request. The server answers in any order: other replies, that
    /// nobody waited for, are passed over.
    fn reply(&mut self) -> Reply<Vec<u8>> {
        let mut reply = [0; 8192];
        let length = loop {
            let length = self.receive(&mut reply);
            if long(&reply[8..]) == self.unique {
                break length;
            }
        };
        match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[16..length].to_vec()),
            error => Err(-error),
        }
    }

    fn receive(&self, target: &mut [u8]) -> usize {
        // SAFETY: the kernel writes to `target`, which is as long as it is told.
        let received = unsafe {
            libc::recv(self.socket.as_raw_fd(), target.as_mut_ptr().cast(), target.len(), 0)
        };
        assert!(received >= 16, "the server has ended");
        received as usize
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn long(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn text(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}
