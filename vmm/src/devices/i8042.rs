//! The keyboard controller, of which Linux needs one thing: the line that resets the CPU.

use std::sync::Arc;

use crate::{bus::BusDevice, control::EndReason, lifecycle::Lifecycle};

/// Data at the first port; status and command at [`COMMAND_OFFSET`].
pub const PORT: u64 = 0x60;
pub const PORTS: u64 = 5;
const COMMAND_OFFSET: u64 = 4;
/// Pulses output line 0, the reset line (`reboot=k`).
const RESET_CPU: u8 = 0xfe;

pub struct I8042(pub Arc<Lifecycle>);

impl BusDevice for I8042 {
    /// Ready for a command, without data: a driver never waits.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 || offset == COMMAND_OFFSET {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND_OFFSET && data == [RESET_CPU] {
            self.0.end(EndReason::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_command_ends_the_vm_and_nothing_else_does() {
        let lifecycle = Arc::new(Lifecycle::new(1).unwrap());
        let mut controller = I8042(lifecycle.clone());
        controller.write(0, &[RESET_CPU]);
        controller.write(COMMAND_OFFSET, &[0xad]);
        controller.write(COMMAND_OFFSET, &[RESET_CPU, 0]);
        assert_eq!(lifecycle.ended(), None);
        controller.write(COMMAND_OFFSET, &[RESET_CPU]);
        assert_eq!(lifecycle.ended(), Some(EndReason::Reset));
    }

    #[test]
    fn the_status_never_makes_a_driver_wait() {
        let mut controller = I8042(Arc::new(Lifecycle::new(1).unwrap()));
        let mut data = [0xff];
        controller.read(COMMAND_OFFSET, &mut data);
        assert_eq!(data, [0]);
    }
}
