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
    /// The process is being executed, and may run already: signals are kept for it.
    Starting(ShimClient),
    Running(ShimClient),
    /// Ended, or no longer ours.
    Over,
}

struct Inner {
    phase: Phase,
    /// The signal that broke off the start.
    interrupted: Option<i32>,
    interrupts: u32,
    kept: Vec<i32>,
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
    Keep,
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
        let inner =
            Inner { phase: Phase::Preparing, interrupted: None, interrupts: 0, kept: Vec::new() };
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

    /// The process is about to be executed.
    pub fn starting(&self) {
        let mut inner = self.lock();
        if let Phase::Booting(client) = &inner.phase {
            inner.phase = Phase::Starting(client.clone());
        }
    }

    /// The process runs: it gets the signals that were kept for it.
    pub fn running(&self, client: &ShimClient, exec: Option<&str>) {
        let mut inner = self.lock();
        inner.phase = Phase::Running(client.clone());
        for signal in std::mem::take(&mut inner.kept) {
            if let Err(error) = client.kill(exec, signal as u32, false) {
                tracing::debug!(%error, "signal {signal}");
            }
        }
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
            Phase::Booting(client) | Phase::Starting(client) | Phase::Running(client) => {
                Some(client.clone())
            }
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
            (Action::Interrupt, None) if exec.is_some() => {
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
        Phase::Starting(_) if signal == libc::SIGWINCH => Action::Nothing,
        Phase::Starting(_) => {
            let is_for_it = policy.proxy && !policy.terminal;
            if !is_end && !is_for_it {
                return Action::Nothing;
            }
            inner.interrupts += u32::from(is_end);
            if !is_for_it || inner.interrupts >= PATIENCE {
                inner.interrupted.get_or_insert(signal);
                return Action::Interrupt;
            }
            inner.kept.push(signal);
            Action::Keep
        }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const PROXY: Policy = Policy { proxy: true, terminal: false, exec: None };
    const NO_PROXY: Policy = Policy { proxy: false, terminal: false, exec: None };
    const TERMINAL: Policy = Policy { proxy: true, terminal: true, exec: None };

    /// A client of a socket that nobody serves: nothing is called here.
    fn client() -> (tempfile::TempDir, ShimClient) {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let client = ShimClient::connect(&socket, "id", root.path()).unwrap();
        (root, client)
    }

    fn inner(phase: Phase) -> Inner {
        Inner { phase, interrupted: None, interrupts: 0, kept: Vec::new() }
    }

    #[test]
    fn a_boot_is_broken_off_by_what_ends_programs() {
        let (_root, client) = client();
        for policy in [&PROXY, &NO_PROXY, &TERMINAL] {
            let mut booting = inner(Phase::Booting(client.clone()));
            assert_eq!(decide(&mut booting, libc::SIGUSR1, policy), Action::Nothing);
            assert_eq!(decide(&mut booting, libc::SIGTERM, policy), Action::Interrupt);
            assert_eq!(decide(&mut booting, libc::SIGINT, policy), Action::Interrupt);
            assert_eq!(booting.interrupted, Some(libc::SIGTERM));
        }
        assert_eq!(decide(&mut inner(Phase::Preparing), libc::SIGINT, &PROXY), Action::Interrupt);
        assert_eq!(decide(&mut inner(Phase::Over), libc::SIGINT, &PROXY), Action::Nothing);
    }

    #[test]
    fn a_starting_process_gets_its_signals_later() {
        let (_root, client) = client();
        let mut starting = inner(Phase::Starting(client.clone()));
        assert_eq!(decide(&mut starting, libc::SIGUSR1, &PROXY), Action::Keep);
        assert_eq!(decide(&mut starting, libc::SIGTERM, &PROXY), Action::Keep);
        assert_eq!(starting.kept, [libc::SIGUSR1, libc::SIGTERM]);
        decide(&mut starting, libc::SIGINT, &PROXY);
        assert_eq!(decide(&mut starting, libc::SIGINT, &PROXY), Action::Interrupt);
        let mut starting = inner(Phase::Starting(client));
        assert_eq!(decide(&mut starting, libc::SIGHUP, &TERMINAL), Action::Interrupt);
    }

    #[test]
    fn a_running_process_gets_them_now_or_never() {
        let (_root, client) = client();
        let mut running = inner(Phase::Running(client));
        assert_eq!(decide(&mut running, libc::SIGUSR1, &PROXY), Action::PassOn(libc::SIGUSR1));
        assert_eq!(decide(&mut running, libc::SIGUSR1, &NO_PROXY), Action::Nothing);
        assert_eq!(decide(&mut running, libc::SIGTERM, &NO_PROXY), Action::Leave);
        assert_eq!(decide(&mut running, libc::SIGHUP, &TERMINAL), Action::Leave);
        assert_eq!(decide(&mut running, libc::SIGWINCH, &TERMINAL), Action::Resize);
        assert_eq!(decide(&mut running, libc::SIGWINCH, &PROXY), Action::Nothing);
        assert_eq!(decide(&mut running, libc::SIGINT, &PROXY), Action::PassOn(libc::SIGINT));
        assert_eq!(decide(&mut running, libc::SIGINT, &PROXY), Action::PassOn(libc::SIGINT));
        assert_eq!(decide(&mut running, libc::SIGINT, &PROXY), Action::Kill);
    }
}
