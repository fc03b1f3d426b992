//! The host's end of a network device.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, RawFd},
};

use super::header::{HEADER_BYTES, Offloads};

const TUN_F_CSUM: u32 = libc::TUN_F_CSUM;
const TUN_F_TSO4: u32 = libc::TUN_F_TSO4;
const TUN_F_TSO6: u32 = libc::TUN_F_TSO6;
const TUN_F_TSO_ECN: u32 = libc::TUN_F_TSO_ECN;
/// Every bit that [`Tap::set_offloads`] may set.
pub const OFFLOAD_MASK: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

/// A tap whose frames have a virtio 1 header before them; never blocks.
pub(super) struct Tap(File);

impl Tap {
    /// `file` is a tap with `IFF_VNET_HDR`.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: the kernel reads an int.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes) }
            < 0
        {
            return Err(io::Error::last_os_error());
        }
        Self::nonblocking(file)
    }

    pub(super) fn nonblocking(file: File) -> io::Result<Self> {
        // SAFETY: takes numbers and no pointer.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = flags | libc::O_NONBLOCK;
        // SAFETY: as above.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// Tells the host's kernel what it may leave to the guest.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = [
            (offloads.checksum, TUN_F_CSUM),
            (offloads.tcp4, TUN_F_TSO4),
            (offloads.tcp6, TUN_F_TSO6),
            (offloads.ecn && (offloads.tcp4 || offloads.tcp6), TUN_F_TSO_ECN),
        ];
        let bits =
            bits.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
        // SAFETY: the argument is a number.
        if unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits))
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The next frame with its header; `None` if there is none now. What does not fit
    /// `buffer` is lost.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match (&self.0).read(buffer) {
                Ok(bytes) if bytes > 0 => return Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing there, or the interface is gone or down: the guest hears nothing.
                _ => return None,
            }
        }
    }

    /// Sends a frame with its header, whole or not at all.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match (&self.0).write(frame) {
                Ok(bytes) if bytes == frame.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
