//! The process on the host that stands for a process in a container.
//!
//! Engines know a container by a process that they can wait for, whose standard streams they
//! have made, and whose exit code is the container's. A microVM has no such process, so one
//! keeps its place: it lends its streams, or the terminal it made, to the process in the guest,
//! and ends as that does.
//!
//! ```text
//!  engine ── create ──► spawn ──► keep ──► hooks, shim, VM ──► "it stands" ──► create ends
//!     └── waits for the keeper, whose parent it is by then ◄── the same exit code
//! ```

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use caisson_cli::attach::{
    session::{Attachment, Event, Session},
    signals::Policy,
};
use caisson_shim::{
    assets::Assets,
    client::{CreateSpec, ShimClient, SpawnSpec, Stdio as Streams},
    exit::Exit,
    host_process::HostProcess,
    serve::Directories,
};
use nix::{
    fcntl::OFlag,
    libc,
    sched::{CloneFlags, unshare},
    unistd::pipe2,
};
use oci_spec::runtime::{Hook, Process};

use crate::{
    args::KeepArgs,
    bundle::{self, Bundle},
    console,
    container::{Container, ContainerStatus},
    error::{RuntimeError, io_error},
    hooks::{self, HostHooks},
    state,
};

/// What a keeper says when it stands.
const STANDS: &[u8] = b"stands";

/// The process of an exec, in its directory.
pub(crate) const EXEC_PROCESS: &str = "process.json";

/// Starts a keeper in a session of its own, with this process's standard streams, and
/// returns its number when it stands.
pub(crate) fn spawn(
    root: &Path,
    container: &Container,
    exec: Option<&str>,
    console_socket: Option<&Path>,
) -> Result<u32, RuntimeError> {
    let (said, status) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| RuntimeError::Keeper(errno.into()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("caisson-runtime").arg("--root").arg(root).arg("keep");
    command.arg("--status-fd").arg(status.as_raw_fd().to_string());
    if let Some(socket) = console_socket {
        command.arg("--console-socket").arg(socket);
        // The streams will be the terminal's.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    if let Some(exec) = exec {
        command.arg("--exec").arg(exec);
    }
    command.arg(container.id());
    let status_fd = status.as_raw_fd();
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, and fcntl
    // on a descriptor that is open in the child too.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(status_fd, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().map_err(RuntimeError::Keeper)?;
    drop(status);
    let mut words = Vec::new();
    File::from(said).read_to_end(&mut words).map_err(RuntimeError::Keeper)?;
    match words.as_slice() {
        STANDS => Ok(child.id()),
        b"" => Err(RuntimeError::KeeperSilent),
        error => Err(RuntimeError::Kept(String::from_utf8_lossy(error).into_owned())),
    }
}

/// The keeper's own life; its exit code.
pub(crate) fn keep(root: &Path, args: &KeepArgs) -> u8 {
    // SAFETY: the number is of a descriptor that `spawn` has made for this process, which
    // has only just begun and has no other owner for it.
    let mut status = File::from(unsafe { OwnedFd::from_raw_fd(args.status_fd) });
    // Whoever waits for these words must not get what the shim or a hook would keep open.
    set_close_on_exec(&status);
    match prepare(root, args) {
        Ok(kept) => {
            // If nobody listens any more, the engine finds the container all the same.
            let _ = status.write_all(STANDS);
            drop(status);
            kept.attend()
        }
        Err(error) => {
            let _ = status.write_all(error.words().as_bytes());
            1
        }
    }
}

fn prepare(root: &Path, args: &KeepArgs) -> Result<Kept, RuntimeError> {
    let mut container = Container::load(root, &args.id)?;
    if let Some(socket) = &args.console_socket {
        console::take(socket)?;
    }
    match &args.exec {
        None => prepare_container(&mut container),
        Some(exec) => prepare_exec(&container, exec),
    }
}

/// Boots the VM with the container, whose keeper this process becomes.
pub(crate) fn prepare_container(container: &mut Container) -> Result<Kept, RuntimeError> {
    let bundle = Bundle::load(&container.record.bundle)?;
    let hooks = HostHooks::of(bundle.spec.hooks().as_ref())?;
    let own = HostProcess::of(std::process::id()).map_err(RuntimeError::Keeper)?;
    container.record.keeper = Some(own);
    container.record.poststart = hooks.poststart;
    container.record.poststop = hooks.poststop;
    container.save()?;
    let streams = bundle::make_streams(&container.bundle(), bundle.has_terminal())?;
    let mut session = session(&streams, None)?;
    // In the host's network, whatever becomes of this process's.
    let client = spawn_shim(container)?;
    let created = run_hooks(container, bundle, &hooks.create)
        .and_then(|bundle| bundle.write_for_shim(&container.bundle()))
        .and_then(|()| create(&client, &mut session, &streams));
    if created.is_err()
        && let Err(error) = client.shutdown(true)
    {
        tracing::warn!(%error, "end the shim");
    }
    created?;
    Ok(Kept { client, exec: None, session, directory: None })
}

/// Runs the hooks of a creation. The network namespace that they fill is this process's,
/// whose number they get; they themselves run in the host's.
fn run_hooks(
    container: &Container,
    mut bundle: Bundle,
    hooks: &[(&'static str, Hook)],
) -> Result<Bundle, RuntimeError> {
    if hooks.is_empty() {
        return Ok(bundle);
    }
    let pid = std::process::id();
    let state = state::json(container, ContainerStatus::Creating, pid);
    let run = || hooks.iter().try_for_each(|(kind, hook)| hooks::run(kind, hook, &state));
    if !bundle.wants_new_network() {
        run()?;
        return Ok(bundle);
    }
    thread::scope(|scope| {
        let (begin, begun) = mpsc::channel();
        // A thread begins, and stays, in the namespace of the one that makes it. Without a
        // word it has nothing to do.
        let running = scope.spawn(move || begun.recv().map_or(Ok(()), |()| run()));
        unshare(CloneFlags::CLONE_NEWNET).map_err(RuntimeError::NetworkNamespace)?;
        let _ = begin.send(());
        let ended = running.join().map_err(|_| RuntimeError::KeeperSilent)?;
        ended.map_err(RuntimeError::from)
    })?;
    bundle.use_network(Path::new(&format!("/proc/{pid}/ns/net")));
    Ok(bundle)
}

fn create(
    client: &ShimClient,
    session: &mut Session,
    streams: &Streams,
) -> Result<(), RuntimeError> {
    session.signals.booting(client);
    client.create(&CreateSpec { rootfs: Vec::new(), stdio: streams.clone() })?;
    Ok(session.copy_output()?)
}

fn spawn_shim(container: &Container) -> Result<ShimClient, RuntimeError> {
    let directories = Directories::default();
    Ok(ShimClient::spawn(&SpawnSpec {
        assets: &Assets::locate()?,
        id: container.id(),
        bundle: &container.bundle(),
        socket: &container.socket(),
        root: &directories.root,
        state: &directories.state,
        bridge: None,
    })?)
}

/// Starts a further process, which its directory describes.
pub(crate) fn prepare_exec(container: &Container, exec: &str) -> Result<Kept, RuntimeError> {
    let directory = container.exec_directory(exec);
    let path = directory.join(EXEC_PROCESS);
    let text = std::fs::read(&path).map_err(io_error("read", &path))?;
    let process: Process =
        serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path, source })?;
    let client = container.connect_alive()?;
    let streams = bundle::make_streams(&directory, process.terminal().unwrap_or(false))?;
    let mut session = session(&streams, Some(exec))?;
    client.exec(exec, &process, &streams)?;
    let started = session
        .copy_output()
        .map_err(RuntimeError::from)
        .and_then(|()| Ok(client.start(Some(exec))?));
    if started.is_err() {
        forget(&client, exec);
    }
    started?;
    Ok(Kept { client, exec: Some(exec.to_owned()), session, directory: Some(directory) })
}

fn session(streams: &Streams, exec: Option<&str>) -> Result<Session, RuntimeError> {
    let terminal = streams.terminal;
    let signals = Policy { proxy: false, terminal, exec: exec.map(str::to_owned) };
    let attachment = Attachment { stdin: true, terminal, signals, detach_keys: None, log: None };
    let mut session = Session::new(attachment)?;
    session.open(streams)?;
    Ok(session)
}

fn forget(client: &ShimClient, exec: &str) {
    if let Err(error) = client.delete(Some(exec)) {
        tracing::debug!(%error, "delete exec {exec}");
    }
}

/// A process in a guest, and this one's streams.
pub(crate) struct Kept {
    client: ShimClient,
    exec: Option<String>,
    session: Session,
    /// An exec's, to be removed.
    directory: Option<PathBuf>,
}

impl Kept {
    /// Until the process has ended; its exit code.
    pub(crate) fn attend(mut self) -> u8 {
        let code = match self.wait() {
            Ok(exit) => exit.code,
            Err(error) => {
                tracing::error!("{}", error.words());
                LOST_CODE
            }
        };
        self.session.finish();
        if let Some(exec) = &self.exec {
            forget(&self.client, exec);
        }
        if let Some(directory) = &self.directory {
            // What stays goes with the container.
            let _ = std::fs::remove_dir_all(directory);
        }
        code
    }

    /// The connection, for a caller that starts the container itself.
    pub(crate) fn client(&self) -> &ShimClient {
        &self.client
    }

    fn wait(&mut self) -> Result<Exit, RuntimeError> {
        let (waiting, exec) = (self.client.clone(), self.exec.clone());
        let waiter = self.session.run(&self.client, move || waiting.wait(exec.as_deref()))?;
        loop {
            match self.session.next_event(None) {
                None | Some(Event::Exited) => break,
                // Signals to this process are meant for the one it stands for.
                Some(Event::Terminated(signal)) => {
                    let sent = self.client.kill(self.exec.as_deref(), signal as u32, false);
                    if let Err(error) = sent {
                        tracing::debug!(%error, "signal {signal}");
                    }
                }
                // Output that nobody reads is dropped; the container goes on.
                Some(Event::OutputClosed | Event::Detached) => {}
            }
        }
        let exit = waiter.join().map_err(|_| RuntimeError::KeeperSilent)?;
        Ok(exit?)
    }
}

/// The exit code of a container whose shim went away.
const LOST_CODE: u8 = 137;

fn set_close_on_exec(file: &File) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    // It is open: the call cannot fail.
    let _ = fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
}
