//! Where streams come in: vsock ports in a VM, Unix sockets elsewhere.

use std::{
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use crate::sys;

/// How the other side reaches a stream port.
pub trait Transport {
    /// A non-blocking listening socket for `port`.
    fn listen(&self, port: u32) -> io::Result<OwnedFd>;

    /// The next connection from the other side, if one is there.
    fn accept(&self, listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>>;
}

/// AF_VSOCK: the host, and nobody in the guest, connects.
pub struct Vsock;

impl Transport for Vsock {
    fn listen(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = vsock_socket(libc::SOCK_NONBLOCK)?;
        let address = vsock_address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the address is a whole `sockaddr_vm` that outlives the call.
        sys::check(unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH)
        })?;
        // SAFETY: no pointers.
        sys::check(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
        Ok(socket)
    }

    fn accept(&self, listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
        loop {
            // SAFETY: plain data, valid when zero.
            let mut peer: libc::sockaddr_vm = unsafe { zeroed() };
            let mut length = ADDRESS_LENGTH;
            // SAFETY: the address and its length are valid for writes during the call.
            let result = unsafe {
                libc::accept4(
                    listener.as_raw_fd(),
                    (&raw mut peer).cast(),
                    &raw mut length,
                    libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                )
            };
            let Some(socket) = accepted(sys::check(result))? else { return Ok(None) };
            // A process in the guest could connect to its own VM's port.
            if peer.svm_cid == libc::VMADDR_CID_HOST {
                return Ok(Some(socket));
            }
        }
    }
}

/// Connects to the host's `port`, blocking.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket(0)?;
    let address = vsock_address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is a whole `sockaddr_vm` that outlives the call.
    sys::check(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH)
    })?;
    Ok(socket)
}

const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn vsock_socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags;
    // SAFETY: no pointers.
    let fd = sys::check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: plain data, valid when zero.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// A descriptor that accept(2) returned; `None` if nobody is waiting (any more).
fn accepted(result: io::Result<libc::c_long>) -> io::Result<Option<OwnedFd>> {
    match result {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Unix sockets `<directory>/<port>.sock`, for an agent that runs beside its caller.
pub struct UnixDirectory(pub PathBuf);

impl Transport for UnixDirectory {
    fn listen(&self, port: u32) -> io::Result<OwnedFd> {
        let listener = UnixListener::bind(self.0.join(format!("{port}.sock")))?;
        listener.set_nonblocking(true)?;
        Ok(listener.into())
    }

    fn accept(&self, listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the optional address is not asked for.
        let result = unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
        };
        accepted(sys::check(result))
    }
}

impl UnixDirectory {
    /// Connects as the other side does.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        UnixStream::connect(self.0.join(format!("{port}.sock")))
    }
}
