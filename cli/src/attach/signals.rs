//! Signals to this process, answered by what the container's phase asks for.

use std::{
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread,
};

use caisson_shim::client::ShimClient;
use nix::libc;
use signal_hook::iterator::Signals;

use super::{AttachError, session::Event, tty};

/// Passed on to the container, or ending this process.
const CAUGHT: [libc::c_int; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGWINCH,
];

/// So many interrupts of a container that ignores them kill it.
const PATIENCE: u32 = 3;

/// What the process that signals are about is doing.
enum Phase {
    /// Nothing runs yet that could be ended.
    Preparing,
    /// A shim boots the VM.
    Booting(ShimClient),
    Running(ShimClient),
    /// Ended, or no longer ours.
    Over,
}

struct Inner {
    phase: Phase,
    /// The signal that broke off the start.
    interrupted: Option<i32>,
    interrupts: u32,
}

/// How signals are passed on.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Pass signals on to the process (`--sig-proxy`).
    pub proxy: bool,
    /// The process has this terminal; its keys are input, and signals from elsewhere mean
    /// this process.
    pub terminal: bool,
    /// The exec's id, for an exec.
    pub exec: Option<String>,
}

/// Shared between the thread that catches signals and the one that runs the container.
#[derive(Clone)]
pub struct SignalHandling {
    inner: Arc<Mutex<Inner>>,
}

/// What is to be done about a signal, decided without doing it.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Break off the start.
    Interrupt,
    PassOn(i32),
    Kill,
    /// End this process, leaving the container.
    Leave,
    Resize,
}

impl SignalHandling {
    /// Starts catching.
    pub fn start(policy: Policy, events: Sender<Event>) -> Result<Self, AttachError> {
        let mut signals = Signals::new(CAUGHT).map_err(AttachError::Signals)?;
        let inner = Inner { phase: Phase::Preparing, interrupted: None, interrupts: 0 };
        let handling = Self { inner: Arc::new(Mutex::new(inner)) };
        let own = handling.clone();
        let serve = move || {
            for signal in signals.forever() {
                own.handle(signal, &policy, &events);
            }
        };
        thread::Builder::new()
            .name("signals".into())
            .spawn(serve)
            .map_err(|source| AttachError::Thread { what: "signals", source })?;
        Ok(handling)
    }

    /// A shim boots. False if the start was broken off before.
    pub fn booting(&self, client: &ShimClient) -> bool {
        let mut inner = self.lock();
        inner.phase = Phase::Booting(client.clone());
        inner.interrupted.is_none()
    }

    pub fn running(&self, client: &ShimClient) {
        self.lock().phase = Phase::Running(client.clone());
    }

    pub fn over(&self) {
        self.lock().phase = Phase::Over;
    }

    /// The signal that broke off the start.
    pub fn interrupted(&self) -> Option<i32> {
        self.lock().interrupted
    }

    fn handle(&self, signal: i32, policy: &Policy, events: &Sender<Event>) {
        let mut inner = self.lock();
        let action = decide(&mut inner, signal, policy);
        let client = match &inner.phase {
            Phase::Booting(client) | Phase::Running(client) => Some(client.clone()),
            Phase::Preparing | Phase::Over => None,
        };
        // A call may take long, and the next signal must find the phase.
        drop(inner);
        let exec = policy.exec.as_deref();
        let called = match (action, client) {
            (Action::Leave, _) => {
                let _ = events.send(Event::Terminated(signal));
                Ok(())
            }
            (Action::Interrupt, _) if exec.is_some() => {
                // An exec's interrupt must not end its container. What it has made is in the
                // bundle, and goes with that.
                tty::restore();
                std::process::exit(128 | (signal & 0x7f));
            }
            (Action::Interrupt, Some(client)) => client.shutdown(true),
            (Action::Kill, Some(client)) => {
                let notice =
                    format!("caisson: interrupted {PATIENCE} times, killing the process\n");
                // Where standard error is closed nobody listens.
                let _ = std::io::stderr().write_all(notice.as_bytes());
                client.kill(exec, libc::SIGKILL as u32, exec.is_none())
            }
            (Action::PassOn(signal), Some(client)) => client.kill(exec, signal as u32, false),
            (Action::Resize, Some(client)) => match tty::size() {
                Some((columns, rows)) => client.resize(exec, columns, rows),
                None => Ok(()),
            },
            _ => Ok(()),
        };
        if let Err(error) = called {
            tracing::debug!(%error, "signal {signal}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decide(inner: &mut Inner, signal: i32, policy: &Policy) -> Action {
    let is_end = matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT);
    match inner.phase {
        Phase::Over => Action::Nothing,
        Phase::Preparing | Phase::Booting(_) if is_end => {
            inner.interrupted.get_or_insert(signal);
            Action::Interrupt
        }
        Phase::Preparing | Phase::Booting(_) => Action::Nothing,
        Phase::Running(_) if signal == libc::SIGWINCH => match policy.terminal {
            true => Action::Resize,
            false => Action::Nothing,
        },
        Phase::Running(_) if policy.terminal || !policy.proxy => match is_end {
            true => Action::Leave,
            false => Action::Nothing,
        },
        Phase::Running(_) => {
            if matches!(signal, libc::SIGINT | libc::SIGTERM) {
                inner.interrupts += 1;
            }
            match inner.interrupts >= PATIENCE {
                true => Action::Kill,
                false => Action::PassOn(signal),
            }
        }
    }
}
