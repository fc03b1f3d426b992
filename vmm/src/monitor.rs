//! The parent's side of a running VM: serves the control socket until the VM has ended.

mod channel;

use std::{io, os::fd::AsRawFd, time::Duration};

pub use channel::{Channel, ChannelError, Received};

use crate::{
    control::{ControlEvent, ControlRequest, EndReason},
    log,
    vm::Vm,
};

/// A kick just before a system call blocks does not interrupt it: so kick again.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// Runs `vm` from its first instruction to its end, and tells the parent of both.
///
/// A parent that is gone, or does not speak the protocol, ends the VM as `Stop` does.
pub fn supervise(vm: &Vm, channel: Option<&mut Channel>) -> EndReason {
    let mut monitor = Monitor { vm, channel, pausing: false };
    monitor.tell(&ControlEvent::Running);
    vm.resume();
    let reason = monitor.serve_until_end();
    vm.flush_console();
    if let Some(channel) = monitor.channel {
        let ended = ControlEvent::Ended { reason: reason.clone(), report: vm.report() };
        // Nobody may be listening any more, which is no reason to end otherwise.
        let _ = channel.send(&ended);
    }
    reason
}

struct Monitor<'a> {
    vm: &'a Vm,
    channel: Option<&'a mut Channel>,
    /// A pause was asked for, and not every vCPU has left the guest. Nothing waits for
    /// them: a vCPU may be stuck in a device, and the parent must still be heard.
    pausing: bool,
}

impl Monitor<'_> {
    fn serve_until_end(&mut self) -> EndReason {
        loop {
            if let Some(reason) = self.vm.ended() {
                return reason;
            }
            if self.pausing && self.vm.is_paused() {
                self.pausing = false;
                self.tell(&ControlEvent::Paused);
            }
            match self.wait() {
                Ok(true) => self.receive(),
                Ok(false) => {}
                Err(error) => {
                    let message = format!("wait for events: {error}");
                    self.vm.end(EndReason::Failed { message });
                }
            }
            if self.pausing {
                self.vm.kick();
            }
        }
    }

    fn receive(&mut self) {
        let Some(channel) = self.channel.as_deref_mut() else { return };
        match channel.receive() {
            Ok(Received::Requests(requests)) => {
                for request in requests {
                    self.serve(request);
                }
            }
            Ok(Received::End) => self.vm.end(EndReason::Stopped),
            Err(error) => {
                log::line(format_args!("{}", crate::error_chain(&error)));
                self.vm.end(EndReason::Stopped);
            }
        }
    }

    fn serve(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Pause => {
                self.vm.pause();
                self.pausing = true;
            }
            ControlRequest::Resume => {
                self.pausing = false;
                self.vm.resume();
                self.tell(&ControlEvent::Resumed);
            }
            ControlRequest::Report => self.tell(&ControlEvent::Report(self.vm.report())),
            ControlRequest::Stop => self.vm.end(EndReason::Stopped),
        }
    }

    /// Sends `event`; a parent that does not take it is as good as gone.
    fn tell(&mut self, event: &ControlEvent) {
        if let Some(channel) = self.channel.as_deref_mut()
            && let Err(error) = channel.send(event)
        {
            log::line(format_args!("{}", crate::error_chain(&error)));
            self.vm.end(EndReason::Stopped);
        }
    }

    /// Waits for a change of the VM, a request of the parent (then true), or the time to
    /// kick again.
    fn wait(&self) -> io::Result<bool> {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative number is skipped.
        let channel = self.channel.as_deref().map_or(-1, AsRawFd::as_raw_fd);
        let mut fds = [poll(self.vm.changes().as_raw_fd()), poll(channel)];
        let timeout = if self.pausing { KICK_AGAIN.as_millis() as i32 } else { -1 };
        // SAFETY: `fds` outlives the call and has as many entries as said.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        if ready == -1 {
            let error = io::Error::last_os_error();
            let interrupted = error.kind() == io::ErrorKind::Interrupted;
            return if interrupted { Ok(false) } else { Err(error) };
        }
        if fds[0].revents != 0 {
            // What has changed is asked afterwards, so no change is missed.
            let _ = self.vm.changes().read();
        }
        Ok(fds[1].revents != 0)
    }
}
