//! The kernel's command line: the parent's, and the devices that the vmm adds.

use super::layout::{self, VirtioSlot};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandLineError {
    #[error(
        "the command line has {bytes} bytes with its devices, the kernel takes {}; shorten it",
        layout::COMMAND_LINE_BYTES - 1
    )]
    TooLong { bytes: usize },
    #[error(
        "the command line has the byte {byte:#04x} at {position}; only printable ASCII can be passed"
    )]
    NotPrintable { byte: u8, position: usize },
}

/// `base` checked, with a `virtio_mmio.device=` for each device, and a NUL.
///
/// The devices go before a `--`, behind which the kernel passes everything to init.
pub fn compose(base: &str, devices: &[VirtioSlot]) -> Result<Vec<u8>, CommandLineError> {
    let unprintable = |byte: &u8| !(b' '..=b'~').contains(byte);
    if let Some(position) = base.bytes().position(|byte| unprintable(&byte)) {
        return Err(CommandLineError::NotPrintable { byte: base.as_bytes()[position], position });
    }
    let (kernel, init) = split_init_arguments(base);
    let mut line = kernel.trim_end().to_owned();
    for VirtioSlot { address, irq } in devices {
        line += &format!(" virtio_mmio.device=4K@{address:#x}:{irq}");
    }
    if let Some(init) = init {
        line += " -- ";
        line += init.trim_start();
    }
    let mut bytes = line.trim_start().as_bytes().to_vec();
    if bytes.len() >= layout::COMMAND_LINE_BYTES {
        return Err(CommandLineError::TooLong { bytes: bytes.len() });
    }
    bytes.push(0);
    Ok(bytes)
}

/// What is before and behind a word `--`.
fn split_init_arguments(line: &str) -> (&str, Option<&str>) {
    if let Some(init) = line.strip_prefix("-- ") {
        return ("", Some(init));
    }
    match line.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (line.strip_suffix(" --").unwrap_or(line), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: VirtioSlot = VirtioSlot { address: 0xd000_0000, irq: 5 };

    fn composed(base: &str, devices: &[VirtioSlot]) -> String {
        let mut bytes = compose(base, devices).unwrap();
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn devices_follow_the_given_line() {
        assert_eq!(composed("quiet", &[]), "quiet");
        assert_eq!(composed("quiet ", &[DEVICE]), "quiet virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(composed("", &[DEVICE]), "virtio_mmio.device=4K@0xd0000000:5");
    }

    #[test]
    fn arguments_of_init_stay_last() {
        let with_devices = "a virtio_mmio.device=4K@0xd0000000:5 -- x y";
        assert_eq!(composed("a -- x y", &[DEVICE]), with_devices);
        assert_eq!(composed("-- x", &[]), "-- x");
        assert_eq!(composed("a --", &[]), "a");
        assert_eq!(composed("a --b", &[]), "a --b");
    }

    #[test]
    fn what_the_kernel_would_cut_or_misread_is_refused() {
        let longest = "a".repeat(layout::COMMAND_LINE_BYTES - 1);
        assert!(compose(&longest, &[]).is_ok());
        assert!(matches!(
            compose(&(longest + "a"), &[]),
            Err(CommandLineError::TooLong { bytes: 2048 })
        ));
        assert_eq!(
            compose("a\0b", &[]),
            Err(CommandLineError::NotPrintable { byte: 0, position: 1 })
        );
        assert!(compose("a\nb", &[]).is_err());
    }
}
