//! Starting a shim in `serve` mode.

use std::{
    env, fs, io,
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, net::UnixListener, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use super::{ClientError, io_error};
use crate::{assets::Assets, logger, network::publish::Port, text};

/// How much of the shim's log an error quotes, in bytes.
const LOG_TAIL_BYTES: usize = 2048;

/// Where a shim finds and keeps its things.
#[derive(Clone, Debug)]
pub struct SpawnSpec<'a> {
    pub assets: &'a Assets,
    pub id: &'a str,
    /// With `config.json`; the shim's log, console log and exit record go here.
    pub bundle: &'a Path,
    /// Where the shim listens, `<state>/shims/<id>.sock`.
    pub socket: &'a Path,
    /// `--root` and `--state`.
    pub root: &'a Path,
    pub state: &'a Path,
    /// A place on Caisson's bridge, and the ports of the host that lead to it.
    pub bridge: Option<&'a [Port]>,
}

/// Starts the shim in a session of its own, with the listening socket.
pub(super) fn spawn_serve(
    program: &Path,
    spec: &SpawnSpec<'_>,
    listener: &UnixListener,
) -> Result<(), ClientError> {
    let log_path = spec.bundle.join(logger::FILE);
    let log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(io_error("open", &log_path))?;
    let socket_fd = listener.as_raw_fd();
    let mut command = Command::new(program);
    command
        .args(["serve", "--id", spec.id, "--socket-fd", &socket_fd.to_string()])
        .arg("--bundle")
        .arg(spec.bundle)
        .arg("--socket")
        .arg(spec.socket)
        .arg("--root")
        .arg(spec.root)
        .arg("--state")
        .arg(spec.state)
        .args(spec.bridge.map_or(&[][..], |_| &["--network", "bridge"]))
        .args(
            spec.bridge
                .into_iter()
                .flatten()
                .flat_map(|port| ["--publish".to_owned(), port.to_string()]),
        )
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CAISSON_")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, so that
    // the terminal's signals do not reach the shim, and fcntl, so that the socket survives.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(socket_fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().map(drop).map_err(io_error("run", program))
}

/// The end of the shim's log, for an error message.
pub(super) fn log_tail(bundle: &Path) -> String {
    let log = fs::read(bundle.join(logger::FILE)).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    match text::inert(tail) {
        tail if tail.trim().is_empty() => String::new(),
        tail => format!("\nthe end of its log:\n{}", tail.trim_end()),
    }
}
