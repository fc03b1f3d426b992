//! `containerd-shim-caisson-v2 serve`: the Task API for the CLI, without containerd.
//!
//! The CLI has bound and listens on the socket; connections queue there until the server
//! takes them. The shim outlives the CLI and ends after Shutdown.

use std::{
    fs,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use caisson_failpoints::{hit, steps};
use containerd_shim::{
    asynchronous::ExitSignal,
    protos::{
        shim_async::{Task, create_task},
        ttrpc::{self, r#async::Server, asynchronous::transport::Listener},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, sleep_until, timeout},
};

use crate::{
    assets::{AssetError, Assets},
    events::EventSink,
    network::publish::Port,
    rootfs::Source,
    service::Service,
    stages,
    task::TaskService,
    vm::VmLauncher,
};

/// A client that leaves a shim for this long without a container, or with one that is not
/// started, has died on the way.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long replies that are under way may take.
const REPLY_GRACE: Duration = Duration::from_millis(500);

const DEFAULT_ROOT: &str = "/var/lib/caisson";
const DEFAULT_STATE: &str = "/run/caisson";

/// The options of `serve`.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub id: String,
    pub bundle: PathBuf,
    pub socket_fd: RawFd,
    /// The socket's path, to be removed at the end.
    pub socket: Option<PathBuf>,
    pub directories: Directories,
    /// The container is on Caisson's bridge, and these ports of the host lead to it.
    pub bridge: Option<Vec<Port>>,
}

/// Where things are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        let directory = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from)
        };
        Self {
            root: directory("CAISSON_ROOT", DEFAULT_ROOT),
            state: directory("CAISSON_STATE", DEFAULT_STATE),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0}; see containerd-shim-caisson-v2 serve --help")]
    Usage(String),
    #[error("find the installation")]
    Assets(#[from] AssetError),
    #[error("{action}")]
    Io { action: &'static str, source: std::io::Error },
    #[error("serve the Task API")]
    Server(#[from] ttrpc::Error),
}

pub const HELP: &str = "\
Serves the Task API for one container, without containerd. Started by `caisson`.

Usage: containerd-shim-caisson-v2 serve --id ID --bundle DIR --socket-fd N [OPTIONS]

Options:
      --id ID         The container's id
      --bundle DIR    The OCI bundle, with config.json
      --socket-fd N   An inherited file descriptor: a listening Unix socket
      --socket PATH   The socket's path, removed at the end
      --root DIR      Images and converted snapshots [default: /var/lib/caisson]
      --state DIR     What lasts until a restart [default: /run/caisson]
      --network NAME  none, or bridge for a place on Caisson's own [default: none]
      --publish PORT  Lead [ADDRESS:]PORT of the host to the container's: 8080:80
  -h, --help          Print this help";

impl Options {
    /// Reads the words behind `serve`.
    pub fn parse(words: &[String]) -> Result<Self, ServeError> {
        let usage = |problem: String| ServeError::Usage(problem);
        let (mut id, mut bundle, mut socket_fd, mut socket) = (None, None, None, None);
        let mut directories = Directories::default();
        let (mut on_bridge, mut ports) = (false, Vec::new());
        let mut words = words.iter();
        while let Some(name) = words.next() {
            let value = words.next().ok_or_else(|| usage(format!("{name} needs a value")))?;
            match name.as_str() {
                "--id" => id = Some(value.clone()),
                "--bundle" => bundle = Some(PathBuf::from(value)),
                "--socket" => socket = Some(PathBuf::from(value)),
                "--root" => directories.root = value.into(),
                "--state" => directories.state = value.into(),
                "--network" => match value.as_str() {
                    "none" | "bridge" => on_bridge = value == "bridge",
                    _ => return Err(usage(format!("--network {value:?} is none or bridge"))),
                },
                "--publish" => {
                    let port = value.parse::<Port>();
                    ports.push(port.map_err(|error| usage(format!("--publish {error}")))?);
                }
                "--socket-fd" => match value.parse() {
                    Ok(fd) if fd > 2 => socket_fd = Some(fd),
                    _ => {
                        return Err(usage(format!(
                            "--socket-fd {value:?} is no descriptor above 2"
                        )));
                    }
                },
                other => return Err(usage(format!("unknown option {other:?}"))),
            }
        }
        if !on_bridge && !ports.is_empty() {
            return Err(usage("--publish needs --network bridge".into()));
        }
        Ok(Self {
            bridge: on_bridge.then_some(ports),
            id: id.ok_or_else(|| usage("--id is missing".into()))?,
            bundle: bundle.ok_or_else(|| usage("--bundle is missing".into()))?,
            socket_fd: socket_fd.ok_or_else(|| usage("--socket-fd is missing".into()))?,
            socket,
            directories,
        })
    }
}

/// Serves until Shutdown, or a signal that asks to end.
pub async fn serve(options: Options) -> Result<(), ServeError> {
    stages::stamp("shim", "started");
    log::debug!("serving {} from {}", options.id, options.bundle.display());
    let listener = listener(options.socket_fd)?;
    let launcher =
        VmLauncher { assets: Assets::locate()?, state: options.directories.state.clone() };
    let rootfs = Source { root: options.directories.root };
    let service = Service::with_bridge(launcher, rootfs, EventSink::none(), options.bridge);
    let exit = Arc::new(ExitSignal::default());
    let task = TaskService::new(service.clone(), exit.clone());
    let task: Arc<dyn Task + Send + Sync> = Arc::new(task);
    let mut server = Server::new().add_listener(listener).register_service(create_task(task));
    server.start().await?;

    let mut terminate = io("watch for signals", signal(SignalKind::terminate()))?;
    let mut interrupt = io("watch for signals", signal(SignalKind::interrupt()))?;
    // Whoever started it may go.
    let _hangup = io("watch for signals", signal(SignalKind::hangup()))?;
    tokio::select! {
        () = exit.wait() => {}
        _ = terminate.recv() => end(&service, "asked to terminate").await,
        _ = interrupt.recv() => end(&service, "interrupted").await,
        () = abandoned(&service) => end(&service, "nothing was started").await,
    }
    // The reply to Shutdown is on its way; a client that waits for something else is not
    // waited for.
    let _ = timeout(REPLY_GRACE, server.shutdown()).await;
    if let Some(socket) = options.socket {
        // The client may have been quicker.
        let _ = hit(&steps::SHIM_END_SOCKET).and_then(|()| fs::remove_file(socket));
    }
    Ok(())
}

async fn end(service: &Service, why: &str) {
    log::warn!("ending: {why}");
    service.shutdown(true).await;
}

/// Resolves when for a while there has been nothing that anybody started.
async fn abandoned(service: &Service) {
    loop {
        match service.idle_since().map(|since| since + START_DEADLINE) {
            Some(deadline) if deadline <= Instant::now() => return,
            Some(deadline) => sleep_until(deadline.into()).await,
            None => sleep(START_DEADLINE).await,
        }
    }
}

fn listener(fd: RawFd) -> Result<Listener, ServeError> {
    // SAFETY: fcntl takes any number and says whether it is a descriptor.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(ServeError::Usage(format!("--socket-fd {fd} is not open")));
    }
    // SAFETY: it is open, as was just seen, and passed on to be owned here.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    io("use the inherited socket", Listener::try_from(listener))
}

fn io<T>(action: &'static str, result: std::io::Result<T>) -> Result<T, ServeError> {
    result.map_err(|source| ServeError::Io { action, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, ServeError> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let options =
            parse("--id c --bundle /b --socket-fd 5 --socket /s --root /r --state /t --network bridge --publish 8080:80").unwrap();
        let directories = Directories { root: "/r".into(), state: "/t".into() };
        let expected = Options {
            id: "c".into(),
            bundle: "/b".into(),
            socket_fd: 5,
            socket: Some("/s".into()),
            directories,
            bridge: Some(vec!["0.0.0.0:8080:80".parse().unwrap()]),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("", "--id"),
            ("--id c --bundle /b", "--socket-fd"),
            ("--id c --bundle /b --socket-fd 2", "above 2"),
            ("--id", "needs a value"),
            ("--idd c", "--idd"),
            ("--network host", "none or bridge"),
            ("--publish 80", "8080:80"),
            ("--id c --bundle /b --socket-fd 5 --publish 80:80", "--network bridge"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
