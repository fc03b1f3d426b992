//! What happens by itself: children report, processes exit, deadlines pass.
//!
//! A process's exit is reported after its last output was passed on. Two things may keep
//! that from coming: a reader that takes nothing, and, for an exec, another process that
//! holds its outputs open. Neither holds the report back longer than [`DRAIN_TIMEOUT`].

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use caisson_agent_protocol::{AgentError, ErrorKind, Event, ExitStatus, Outcome};

use crate::{
    error::{At, OsError, wire},
    process::{DRAIN_TIMEOUT, State},
    reaper,
    report::{self, Received, Report},
    runtime::{Runtime, kill},
    watch::{Key, Wake},
};

/// How often a removal that waits for the kernel looks again.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(5);

impl Runtime {
    /// Does what `wake` is about.
    pub fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Stream(key) => self.on_stream(key),
            Wake::Report(key) => self.on_report(key),
            Wake::Memory(key) => self.on_memory(key),
            Wake::Children => self.on_children(),
            Wake::Control => {}
        }
    }

    /// Continues what is in progress: relays with more to move, removals, deadlines.
    pub fn tick(&mut self) {
        for key in self.busy.clone() {
            self.on_stream(key);
        }
        self.continue_removals();
        let now = Instant::now();
        let late = self.processes.iter().filter_map(|(&key, process)| match process.state {
            State::Draining { deadline, .. } if deadline <= now => Some(key),
            _ => None,
        });
        for key in late.collect::<Vec<_>>() {
            self.give_up_draining(key);
        }
    }

    /// When [`Self::tick`] has something to do next.
    pub fn timeout(&self) -> Option<Duration> {
        if !self.busy.is_empty() {
            return Some(Duration::ZERO);
        }
        let draining = self.processes.values().filter_map(|process| match process.state {
            State::Draining { deadline, .. } => Some(deadline),
            _ => None,
        });
        let now = Instant::now();
        let next = draining.chain(self.shutdown.map(|(_, deadline)| deadline)).min();
        let next = next.map(|deadline| deadline.saturating_duration_since(now));
        if self.removals.is_empty() {
            next
        } else {
            Some(next.map_or(REMOVAL_INTERVAL, |next| next.min(REMOVAL_INTERVAL)))
        }
    }

    fn on_stream(&mut self, key: Key) {
        let progress = self.pump(key);
        let Some(process) = self.processes.get_mut(&key) else { return };
        if let State::Draining { deadline, .. } = &mut process.state
            && progress
            && (process.exec.is_none() || process.is_tool)
        {
            *deadline = Instant::now() + DRAIN_TIMEOUT;
        }
        self.report_exit_if_drained(key);
    }

    fn on_report(&mut self, key: Key) {
        loop {
            let Some(process) = self.processes.get(&key) else { return };
            let Some(report) = &process.report else { return };
            match report::receive(report.as_fd()) {
                Ok(Received::Nothing) => return,
                Ok(Received::Report(Report::Ready, terminal)) => self.on_ready(key, terminal),
                Ok(Received::Report(Report::Failed(error), _)) => self.on_failed(key, error),
                Ok(Received::Closed) => return self.on_closed(key),
                Err(error) => {
                    let message = format!("read the child's report: {error}");
                    self.on_failed(key, wire(ErrorKind::Internal, message));
                }
            }
        }
    }

    fn on_ready(&mut self, key: Key, terminal: Option<OwnedFd>) {
        if let Err(error) = self.close_in(key) {
            return self.on_failed(key, error.into());
        }
        if let Some(master) = terminal {
            let watch = &self.watch;
            let process = self.processes.get_mut(&key).expect("looked up by the caller");
            let attached =
                process.stdio.attach_terminal(master, &mut |fd| watch.add(fd, Wake::Stream(key)));
            if let Err(error) = attached {
                return self.on_failed(key, error.into());
            }
        }
        let process = self.process(key);
        if let State::Preparing { request } = process.state {
            process.state = State::Created;
            let pid = process.pid as u32;
            self.reply(request, Ok(Outcome::Created { pid }));
        }
    }

    /// Puts the device filter on a container that its first process has built.
    fn close_in(&self, key: Key) -> Result<(), OsError> {
        let process = &self.processes[&key];
        match self.containers.get(&process.container) {
            Some(container) if container.init == key => {
                container.cgroup.filter_devices(&container.devices)
            }
            _ => Ok(()),
        }
    }

    /// The child could not become its program and is about to exit.
    fn on_failed(&mut self, key: Key, error: AgentError) {
        let process = self.process(key);
        process.report = None;
        let (request, forget) = match process.state {
            State::Preparing { request } => (request, true),
            State::Starting { request } => (request, false),
            // A call for it has been answered; its exit tells the rest.
            _ => return,
        };
        process.state = State::Failing { request, error, forget };
        // It exits by itself; this only makes sure, and a zombie does not mind.
        let _ = kill(process.pid, libc::SIGKILL);
    }

    /// The child's end of the socket is gone: `execve` succeeded, or the child is dead.
    fn on_closed(&mut self, key: Key) {
        let process = self.process(key);
        match process.state {
            State::Preparing { .. } => {
                let message = format!("{} ended while it was set up", process.name());
                self.on_failed(key, wire(ErrorKind::Internal, message));
            }
            State::Starting { request } => {
                process.report = None;
                process.state = State::Running;
                let pid = process.pid as u32;
                self.reply(request, Ok(Outcome::Started { pid }));
            }
            _ => process.report = None,
        }
    }

    fn on_children(&mut self) {
        while let Some((pid, status)) = reaper::reap() {
            if let Some(key) = self.pids.remove(&pid) {
                // What it said before it died comes before its death.
                self.on_report(key);
                self.on_exit(key, status);
            }
        }
        self.continue_removals();
    }

    fn on_exit(&mut self, key: Key, status: ExitStatus) {
        let process = self.process(key);
        let (container, is_init) = (process.container.clone(), process.exec.is_none());
        match std::mem::replace(&mut process.state, State::Exited { status }) {
            State::Failing { request, error, forget: true } => {
                let error = with_status(error, status);
                self.forget(key, request, Err(error));
            }
            State::Failing { request, error, forget: false } => {
                self.reply(request, Err(error));
            }
            State::Forgetting { request } => self.forget(key, request, Ok(Outcome::Done)),
            _ => {
                let deadline = Instant::now() + DRAIN_TIMEOUT;
                process.state = State::Draining { status, deadline };
                process.stdio.process_exited();
                if is_init && let Some(container) = self.containers.get(&container) {
                    // In a shared pid namespace the kernel does not end the others.
                    let _ = container.cgroup.kill();
                }
                self.on_stream(key);
            }
        }
    }

    /// Removes a process that never ran, and with an init its container.
    fn forget(&mut self, key: Key, request: u64, result: Result<Outcome, AgentError>) {
        let process = self.process(key);
        let container = process.container.clone();
        match process.exec.clone() {
            None if self.containers.contains_key(&container) => {
                self.begin_removal(&container, request, result);
            }
            None => self.reply(request, result),
            Some(exec) => {
                self.processes.remove(&key);
                if let Some(container) = self.containers.get_mut(&container) {
                    container.execs.remove(&exec);
                }
                self.reply(request, result);
            }
        }
    }

    fn give_up_draining(&mut self, key: Key) {
        let process = self.process(key);
        if process.exec.is_some() && !process.is_tool {
            process.stdio.cut_outputs();
            self.pump(key);
        }
        self.report_exit(key);
    }

    fn report_exit_if_drained(&mut self, key: Key) {
        let process = self.process(key);
        if matches!(process.state, State::Draining { .. }) && process.stdio.outputs_finished() {
            self.report_exit(key);
        }
    }

    fn report_exit(&mut self, key: Key) {
        let process = self.process(key);
        let State::Draining { status, .. } = process.state else { return };
        process.state = State::Exited { status };
        let (container, exec) = (process.container.clone(), process.exec.clone());
        let before = process.oom_kills_before;
        let Some(found) = self.containers.get(&container) else { return };
        let init = found.init;
        let oom_killed = found.cgroup.oom_kills() > before;
        self.on_memory(init);
        self.event(Event::ProcessExited { container, exec, status, oom_killed });
    }

    /// Reports that the OOM killer has struck, if it has since the last time.
    fn on_memory(&mut self, init: Key) {
        let Some(process) = self.processes.get(&init) else { return };
        let id = process.container.clone();
        let Some(container) = self.containers.get_mut(&id) else { return };
        let kills = container.cgroup.oom_kills();
        if kills > container.oom_kills {
            container.oom_kills = kills;
            self.event(Event::OutOfMemory { container: id });
        }
    }

    /// Lets a prepared process execute its program.
    pub(crate) fn start(&mut self, request: u64, key: Key) -> Result<(), AgentError> {
        let process = self.process(key);
        let (State::Created, Some(report)) = (&process.state, &process.report) else {
            let message = format!("cannot start {}: it is {}", process.name(), process.describe());
            return Err(wire(ErrorKind::FailedPrecondition, message));
        };
        report::start(report.as_fd()).at(|| "let the process start")?;
        process.state = State::Starting { request };
        let container = process.container.clone();
        let kills = self.container(&container)?.cgroup.oom_kills();
        self.process(key).oom_kills_before = kills;
        Ok(())
    }
}

/// Says how the child ended where its own words are missing.
fn with_status(mut error: AgentError, status: ExitStatus) -> AgentError {
    if let ExitStatus::Signaled(signal) = status
        && error.message.ends_with("while it was set up")
    {
        error.message.push_str(&format!(": killed by signal {signal}"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_without_words_gets_its_signal_named() {
        let mute = wire(ErrorKind::Internal, "container \"c\" ended while it was set up");
        assert!(with_status(mute, ExitStatus::Signaled(9)).message.ends_with("signal 9"));
        let told = wire(ErrorKind::Internal, "mount");
        assert_eq!(with_status(told, ExitStatus::Signaled(9)).message, "mount");
    }
}
