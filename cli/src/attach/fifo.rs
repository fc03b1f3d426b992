//! The caller's ends of a process's FIFOs.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::libc;

use super::AttachError;

/// A FIFO to read output from, non-blocking.
#[derive(Debug)]
pub struct OutputFifo {
    pub reader: File,
    /// Keeps the FIFO from looking ended before the shim has opened it.
    keep_open: Option<File>,
}

impl OutputFifo {
    pub fn open(path: &Path) -> Result<Self, AttachError> {
        let failed = |source| AttachError::Fifo { path: path.to_owned(), source };
        let reader = open(path, OpenOptions::new().read(true)).map_err(failed)?;
        let keep_open = open(path, OpenOptions::new().write(true)).map_err(failed)?;
        Ok(Self { reader, keep_open: Some(keep_open) })
    }

    /// The shim has it open: from here on its closing is the end.
    pub fn opened_by_shim(&mut self) {
        self.keep_open = None;
    }
}

/// Opens the FIFO of a process's input for writing; the shim has it open for reading.
pub fn open_input(path: &Path) -> Result<File, AttachError> {
    let failed = |source| AttachError::Fifo { path: path.to_owned(), source };
    let file = open(path, OpenOptions::new().write(true)).map_err(failed)?;
    // Opened without waiting, written with: a full FIFO is the process not reading.
    set_blocking(&file).map_err(failed)?;
    Ok(file)
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NONBLOCK).open(path)
}

pub fn set_blocking(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::engine::make_fifo;

    #[test]
    fn an_output_fifo_ends_with_its_last_writer() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("stdout");
        make_fifo(&path).unwrap();
        let mut fifo = OutputFifo::open(&path).unwrap();
        let mut buffer = [0; 8];
        let empty = fifo.reader.read(&mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let mut shim = OpenOptions::new().write(true).open(&path).unwrap();
        fifo.opened_by_shim();
        shim.write_all(b"out").unwrap();
        assert_eq!(fifo.reader.read(&mut buffer).unwrap(), 3);
        drop(shim);
        assert_eq!(fifo.reader.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn an_input_fifo_without_a_reader_is_an_error_not_a_wait() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("stdin");
        make_fifo(&path).unwrap();
        assert!(open_input(&path).is_err());
        let _shim = open(&path, OpenOptions::new().read(true)).unwrap();
        open_input(&path).unwrap();
    }
}
