//! The parent's side of a running VM: serves the control socket until the VM has ended.

mod channel;

use std::os::fd::AsRawFd;

pub use channel::{Channel, ChannelError, Received};

use crate::{
    control::{ControlEvent, ControlRequest, EndReason},
    vm::Vm,
};

/// Runs `vm` from its first instruction to its end, and tells the parent of both.
///
/// A parent that is gone, or does not speak the protocol, ends the VM as `Stop` does.
pub fn supervise(vm: &Vm, mut channel: Option<&mut Channel>) -> EndReason {
    tell(vm, &mut channel, &ControlEvent::Running);
    vm.resume();
    let reason = loop {
        if let Some(reason) = vm.ended() {
            break reason;
        }
        if let Err(error) = wait(vm, channel.as_deref()) {
            vm.end(EndReason::Failed { message: format!("wait for events: {error}") });
            continue;
        }
        let Some(open) = channel.as_deref_mut() else { continue };
        match open.receive() {
            Ok(Received::Requests(requests)) => {
                for request in requests {
                    serve(vm, &mut channel, request);
                }
            }
            Ok(Received::End) => vm.end(EndReason::Stopped),
            Err(error) => {
                eprintln!("caisson-vmm: {}", crate::error_chain(&error));
                vm.end(EndReason::Stopped);
            }
        }
    };
    vm.flush_console();
    // Nobody may be listening any more, which is no reason to end otherwise.
    if let Some(channel) = channel {
        let _ = channel.send(&ControlEvent::Ended { reason: reason.clone(), report: vm.report() });
    }
    reason
}

fn serve(vm: &Vm, channel: &mut Option<&mut Channel>, request: ControlRequest) {
    match request {
        ControlRequest::Pause => {
            vm.pause();
            tell(vm, channel, &ControlEvent::Paused);
        }
        ControlRequest::Resume => {
            vm.resume();
            tell(vm, channel, &ControlEvent::Resumed);
        }
        ControlRequest::Report => tell(vm, channel, &ControlEvent::Report(vm.report())),
        ControlRequest::Stop => vm.end(EndReason::Stopped),
    }
}

/// Sends `event`; a parent that does not take it is as good as gone.
fn tell(vm: &Vm, channel: &mut Option<&mut Channel>, event: &ControlEvent) {
    if let Some(channel) = channel
        && let Err(error) = channel.send(event)
    {
        eprintln!("caisson-vmm: {}", crate::error_chain(&error));
        vm.end(EndReason::Stopped);
    }
}

/// Waits until the VM has ended or the parent says something.
fn wait(vm: &Vm, channel: Option<&Channel>) -> std::io::Result<()> {
    let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // A negative number is skipped.
    let mut fds = [poll(vm.end_fd()), poll(channel.map_or(-1, AsRawFd::as_raw_fd))];
    // SAFETY: `fds` outlives the call and has as many entries as said.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    match ready {
        -1 => match std::io::Error::last_os_error() {
            error if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}
