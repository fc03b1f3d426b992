//! COM1, a 16550A without input: early console output and panics.

use std::{
    fs::File,
    io::{self, Write},
};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

pub const PORT: u64 = 0x3f8;
pub const PORTS: u64 = 8;

/// A serial port that writes its lines to a file, if it has one.
pub struct SerialPort(Serial<Line, NoEvents, Console>);

impl SerialPort {
    /// `interrupt` is bound to the port's IRQ.
    pub fn new(interrupt: EventFd, console: Option<File>) -> Self {
        Self(Serial::new(Line(interrupt), Console { file: console, line: Vec::new() }))
    }

    /// Writes what is held of an unfinished line.
    pub fn flush(&mut self) {
        self.0.writer_mut().write_line();
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([register], Ok(offset)) = (data, u8::try_from(offset)) {
            *register = self.0.read(offset);
        }
    }

    /// `rep outsb` comes as several bytes for one register.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = u8::try_from(offset) else { return };
        for &byte in data {
            // What fails is the interrupt or the console: the one is signalled already,
            // the other's bytes are lost, and the guest can do nothing about either.
            let _ = self.0.write(offset, byte);
        }
    }
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Gathers a line, then writes it at once: a system call a line, not a byte.
struct Console {
    file: Option<File>,
    line: Vec<u8>,
}

/// Longer lines are written in pieces.
const LINE_BYTES: usize = 256;

impl Console {
    /// A reader that does not drain its pipe stops the vCPU here, until a signal (pause)
    /// or the end of the process; what a signal interrupts is lost.
    fn write_line(&mut self) {
        if let (Some(file), false) = (&mut self.file, self.line.is_empty()) {
            let _ = file.write(&self.line);
        }
        self.line.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_some() {
            for &byte in bytes {
                self.line.push(byte);
                if byte == b'\n' || self.line.len() >= LINE_BYTES {
                    self.write_line();
                }
            }
        }
        Ok(bytes.len())
    }

    /// The UART flushes after every byte; see [`Console`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn port(console: Option<File>) -> SerialPort {
        SerialPort::new(EventFd::new(EFD_NONBLOCK).unwrap(), console)
    }

    #[test]
    fn output_comes_a_line_at_a_time_and_the_rest_at_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        let mut port = port(Some(file.try_clone().unwrap()));
        let written = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        port.write(0, b"a");
        assert_eq!(written(&mut file), "");
        port.write(0, b"b\nc");
        assert_eq!(written(&mut file), "ab\n");
        port.flush();
        assert_eq!(written(&mut file), "ab\nc");
    }

    #[test]
    fn lines_without_an_end_are_bounded() {
        let mut port = port(Some(tempfile::tempfile().unwrap()));
        for _ in 0..10 * LINE_BYTES {
            port.write(0, b"x");
        }
        assert!(port.0.writer().line.len() < LINE_BYTES);
    }

    #[test]
    fn every_register_and_width_is_answered() {
        let mut port = port(None);
        for offset in 0..PORTS {
            for width in [1, 2, 4] {
                port.write(offset, &[0xff; 4][..width]);
                port.read(offset, &mut [0; 4][..width]);
            }
        }
    }
}
