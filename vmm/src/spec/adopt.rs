//! Takes over inherited file descriptors, each once and only if it is what it should be.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
};

use crate::config::Fd;

#[derive(Debug, thiserror::Error)]
pub enum FdError {
    #[error("{0} is named twice; each file needs a descriptor of its own")]
    Twice(Fd),
    #[error("{fd} is not open; the parent must pass it on")]
    NotOpen {
        fd: Fd,
        #[source]
        source: io::Error,
    },
    #[error("inspect {fd}")]
    Inspect {
        fd: Fd,
        #[source]
        source: io::Error,
    },
    #[error("{fd} is no {expected}")]
    Kind { fd: Fd, expected: &'static str },
    #[error("{fd} is open with the flags {flags:#o}, but must be open {expected}")]
    Access { fd: Fd, flags: i32, expected: &'static str },
}

/// The file descriptors that the process inherited, as far as they were taken.
#[derive(Debug, Default)]
pub struct Files {
    taken: BTreeSet<RawFd>,
}

impl Files {
    /// Ready to take what the process inherited.
    ///
    /// # Safety
    ///
    /// Nothing in the process may own the descriptors that will be taken, and there must
    /// be one `Files` at most.
    pub unsafe fn inherited() -> Self {
        Self::default()
    }

    /// The numbers of all that were taken, in their order.
    pub fn taken(&self) -> Vec<RawFd> {
        self.taken.iter().copied().collect()
    }

    /// A character device, for all that can be seen before it is asked for its version.
    pub fn kvm(&mut self, fd: Fd) -> Result<OwnedFd, FdError> {
        let file = self.file(fd)?;
        let kind = metadata(&file)?.file_type();
        if !kind.is_char_device() {
            return Err(FdError::Kind { fd, expected: "character device" });
        }
        expect_access(&file, libc::O_RDWR, "read-write")?;
        Ok(file.into())
    }

    /// A regular file that can be read.
    pub fn regular(&mut self, fd: Fd) -> Result<File, FdError> {
        let file = self.file(fd)?;
        if !metadata(&file)?.is_file() {
            return Err(FdError::Kind { fd, expected: "regular file" });
        }
        let flags = flags(&file)?;
        if ![libc::O_RDONLY, libc::O_RDWR].contains(&(flags & libc::O_ACCMODE)) || is_path(flags) {
            return Err(FdError::Access { fd, flags, expected: "for reading" });
        }
        Ok(file)
    }

    /// A regular file whose access mode is exactly what the device needs.
    pub fn disk(&mut self, fd: Fd, readonly: bool) -> Result<File, FdError> {
        let file = self.regular(fd)?;
        if readonly {
            expect_access(&file, libc::O_RDONLY, "read-only")?;
        } else {
            expect_access(&file, libc::O_RDWR, "read-write")?;
            let flags = flags(&file)?;
            if flags & libc::O_APPEND != 0 {
                return Err(FdError::Access { fd, flags, expected: "without O_APPEND" });
            }
        }
        Ok(file)
    }

    /// A tap device whose frames have a virtio header and nothing else before them.
    pub fn tap(&mut self, fd: Fd) -> Result<File, FdError> {
        const KIND: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let expected = "tap device with IFF_NO_PI and IFF_VNET_HDR";
        let file = self.file(fd)?;
        if !metadata(&file)?.file_type().is_char_device() {
            return Err(FdError::Kind { fd, expected });
        }
        expect_access(&file, libc::O_RDWR, "read-write")?;
        // SAFETY: the all-zero bytes of this plain C structure are a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes an `ifreq`, if this is a tap at all; any other device
        // does not know the request.
        if unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) } < 0 {
            return Err(FdError::Kind { fd, expected });
        }
        // SAFETY: TUNGETIFF fills this member of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let others = libc::IFF_TUN | libc::IFF_MULTI_QUEUE;
        if flags & (KIND | others) == KIND { Ok(file) } else { Err(FdError::Kind { fd, expected }) }
    }

    /// Anything that can be written.
    pub fn writable(&mut self, fd: Fd) -> Result<File, FdError> {
        let file = self.file(fd)?;
        let flags = flags(&file)?;
        if ![libc::O_WRONLY, libc::O_RDWR].contains(&(flags & libc::O_ACCMODE)) || is_path(flags) {
            return Err(FdError::Access { fd, flags, expected: "for writing" });
        }
        Ok(file)
    }

    /// A listening Unix stream socket.
    pub fn listener(&mut self, fd: Fd) -> Result<UnixListener, FdError> {
        self.unix_socket(fd, libc::SOCK_STREAM, true, "listening Unix socket").map(Into::into)
    }

    /// A connected Unix stream socket.
    pub fn stream(&mut self, fd: Fd) -> Result<UnixStream, FdError> {
        let stream = UnixStream::from(self.unix_socket(
            fd,
            libc::SOCK_STREAM,
            false,
            "Unix stream socket",
        )?);
        stream.peer_addr().map_err(|_| FdError::Kind { fd, expected: "connected socket" })?;
        Ok(stream)
    }

    /// A connected Unix socket that keeps messages apart.
    pub fn messages(&mut self, fd: Fd) -> Result<OwnedFd, FdError> {
        let expected = "connected Unix socket of messages (SOCK_SEQPACKET)";
        let socket = self.unix_socket(fd, libc::SOCK_SEQPACKET, false, expected)?;
        // The address of any Unix socket can be asked for through a stream's type.
        let socket = UnixStream::from(socket);
        socket.peer_addr().map_err(|_| FdError::Kind { fd, expected })?;
        Ok(socket.into())
    }

    fn unix_socket(
        &mut self,
        fd: Fd,
        kind: i32,
        listening: bool,
        expected: &'static str,
    ) -> Result<OwnedFd, FdError> {
        let socket = self.file(fd)?;
        for (option, value) in [
            (libc::SO_DOMAIN, libc::AF_UNIX),
            (libc::SO_TYPE, kind),
            (libc::SO_ACCEPTCONN, listening.into()),
        ] {
            if socket_option(&socket, option)? != Some(value) {
                return Err(FdError::Kind { fd, expected });
            }
        }
        Ok(socket.into())
    }

    fn file(&mut self, fd: Fd) -> Result<File, FdError> {
        // SAFETY: takes a number and no pointer.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            return Err(FdError::NotOpen { fd, source: io::Error::last_os_error() });
        }
        if !self.taken.insert(fd) {
            return Err(FdError::Twice(fd));
        }
        // SAFETY: it is open, was not taken before, and by the contract of `inherited`
        // nothing else owns it.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

fn metadata(file: &File) -> Result<std::fs::Metadata, FdError> {
    file.metadata().map_err(|source| FdError::Inspect { fd: file.as_raw_fd(), source })
}

fn flags(file: &File) -> Result<i32, FdError> {
    let fd = file.as_raw_fd();
    // SAFETY: takes a number and no pointer.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags == -1 {
        return Err(FdError::Inspect { fd, source: io::Error::last_os_error() });
    }
    Ok(flags)
}

fn is_path(flags: i32) -> bool {
    flags & libc::O_PATH != 0
}

fn expect_access(file: &File, mode: i32, expected: &'static str) -> Result<(), FdError> {
    let flags = flags(file)?;
    if flags & libc::O_ACCMODE != mode || is_path(flags) {
        return Err(FdError::Access { fd: file.as_raw_fd(), flags, expected });
    }
    Ok(())
}

/// An integer option of a socket; `None` if the file is no socket.
fn socket_option(socket: &File, option: i32) -> Result<Option<i32>, FdError> {
    let mut value = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` and `length` outlive the call, and `length` is the size of `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    };
    if result == 0 {
        return Ok(Some(value));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOTSOCK) => Ok(None),
        source => Err(FdError::Inspect { fd: socket.as_raw_fd(), source }),
    }
}
