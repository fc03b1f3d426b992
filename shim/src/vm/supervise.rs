//! One task for each vmm, from its start to the last trace of it.

use std::{
    convert::Infallible,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::Arc,
    time::Duration,
};

use caisson_failpoints::{hit, pass, steps};
use caisson_vmm::control::{ControlEvent, ControlRequest, EndReason, JailReport, Report};
use tokio::{io::unix::AsyncFd, net::UnixStream, sync::watch, task::JoinHandle, time::timeout};

use super::{
    EndWatch,
    console::Ring,
    file_server::FileServer,
    journal::{self, Journal, pidfd_open},
    lease::UidLease,
    monitor::{Monitor, MonitorError},
};
use crate::{
    cgroup::{self, Cgroup, OomKill},
    network,
    sandbox::End,
    stages,
};

/// How long a vmm may take to end itself when it is told to.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// How long the last words of a vmm that has ended may take through its pipes.
const PIPE_GRACE: Duration = Duration::from_millis(500);

/// What the host holds for a VM; dropping it removes that.
pub(super) struct Owned {
    bundle: PathBuf,
    _lease: Option<UidLease>,
    place: cgroup::Place,
    network: Option<network::Place>,
    pub(super) on_bridge: Option<network::Kept>,
    pub(super) file_server: Option<FileServer>,
    /// What of the place was made.
    pub(super) cgroup: Arc<Cgroup>,
}

impl Owned {
    /// What the journal of a VM to be announces.
    pub(super) fn new(bundle: PathBuf, lease: Option<UidLease>, journal: &Journal) -> Self {
        let (place, network) = (journal.cgroup.clone(), journal.network.clone());
        let (on_bridge, file_server, cgroup) = Default::default();
        Self { bundle, _lease: lease, place, network, on_bridge, file_server, cgroup }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // A cgroup goes only when nobody is in it.
        self.file_server = None;
        cgroup::remove(&self.place);
        // The journal last: it tells of the rest.
        match self.network.as_ref().map_or(Ok(()), network::remove) {
            Ok(()) => journal::remove_files(&self.bundle),
            Err(error) => log::warn!("left to `shim delete`: {}", crate::error::chain(&error)),
        }
    }
}

/// What others see of a VM, and ask of it.
pub(super) struct Watched {
    kill: watch::Sender<Option<String>>,
    end: EndWatch,
    report: watch::Sender<Option<Report>>,
    report_wanted: watch::Sender<bool>,
    pub(super) console: Ring,
    /// What the vmm itself wrote to its standard error.
    pub(super) complaints: Ring,
}

impl Watched {
    pub(super) fn new(console: Ring, complaints: Ring) -> Self {
        Self {
            kill: watch::Sender::new(None),
            end: watch::Sender::new(None),
            report: watch::Sender::new(None),
            report_wanted: watch::Sender::new(false),
            console,
            complaints,
        }
    }

    /// Ends the VM for this reason, unless it is ending for another.
    pub(super) fn kill(&self, reason: &str) {
        self.kill.send_if_modified(|kill| {
            let first = kill.is_none();
            kill.get_or_insert_with(|| reason.to_owned());
            first
        });
    }

    /// Resolves with the reason once the VM is to end.
    async fn killed(&self) -> String {
        let mut kill = self.kill.subscribe();
        let killed = kill.wait_for(Option::is_some).await;
        killed.ok().and_then(|kill| kill.clone()).expect("the sender lives in `self`")
    }

    pub(super) async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        let ended = end.wait_for(Option::is_some).await;
        ended.ok().and_then(|end| end.clone()).expect("the sender lives in `self`")
    }

    /// The vmm's latest report, asked for if it still can be.
    pub(super) async fn report(&self, patience: Duration) -> Option<Report> {
        let mut report = self.report.subscribe();
        self.report_wanted.send_replace(true);
        let _ = timeout(patience, report.wait_for(Option::is_some)).await;
        report.borrow().clone()
    }
}

/// Watches over the child until it has ended, then removes what was its.
pub(super) fn start(
    child: Child,
    control: UnixStream,
    owned: Owned,
    vm: Arc<Watched>,
    pipes: [JoinHandle<()>; 2],
) -> io::Result<()> {
    let mut process = Process { child };
    hit(&steps::SHIM_VM_WATCH)?;
    let pidfd = pidfd_open(process.child.id())?;
    // SAFETY: an OwnedFd is one open descriptor from its making to its drop, and AsyncFd
    // owns it from here on.
    let pidfd = unsafe { AsyncFd::register(pidfd) }?;
    tokio::spawn(async move {
        let mut monitor = Monitor::new(control);
        let mut owned = owned;
        let reason = tokio::select! {
            reason = run(&mut monitor, &pidfd, &vm) => reason,
            never = watch_file_server(&mut owned.file_server) => match never {},
        };
        let status = process.end();
        pass(&steps::SHIM_VM_ENDED);
        // A dead vmm's pipes have ended; what they hold is read first.
        let _ = timeout(PIPE_GRACE, async {
            for pipe in pipes {
                let _ = pipe.await;
            }
        })
        .await;
        let oom = owned.cgroup.oom_kill().filter(|_| was_killed(&status));
        drop(owned);
        let oom_killed = oom.is_some() && matches!(reason, Reason::Silent);
        let end = End { reason: describe(reason, status, oom, &vm), oom_killed };
        log::info!("the VM has ended: {}", end.reason);
        vm.end.send_replace(Some(end));
    });
    Ok(())
}

/// Tells of a file server that ends before its VM.
async fn watch_file_server(server: &mut Option<FileServer>) -> Infallible {
    if let Some(running) = server {
        running.ended().await;
        running.report_end();
        *server = None;
    }
    std::future::pending().await
}

/// The child, which is ended and collected however its owner goes.
struct Process {
    child: Child,
}

impl Process {
    fn end(&mut self) -> io::Result<ExitStatus> {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Why there is no VM any more.
enum Reason {
    /// The shim wanted it.
    Killed(String),
    /// The vmm said so.
    Said(EndReason),
    /// The vmm went without a word.
    Silent,
}

async fn run(monitor: &mut Monitor, pidfd: &AsyncFd<OwnedFd>, vm: &Watched) -> Reason {
    let mut report_wanted = vm.report_wanted.subscribe();
    let mut said = None;
    let mut connected = true;
    loop {
        tokio::select! {
            event = monitor.next(), if connected => match event {
                Ok(ControlEvent::Report(report)) => {
                    vm.report.send_replace(Some(report));
                }
                Ok(ControlEvent::Ended { reason, report }) => {
                    record(&report);
                    vm.report.send_replace(Some(report));
                    said = Some(reason);
                }
                Ok(ControlEvent::Jailed(report)) => tell_of_jail(&report),
                Ok(ControlEvent::Running | ControlEvent::Paused | ControlEvent::Resumed) => {}
                // Its exit status follows.
                Err(MonitorError::Ended) => connected = false,
                Err(error) => {
                    connected = false;
                    vm.kill(&error.to_string());
                }
            },
            _ = report_wanted.changed(), if connected => {
                monitor.ask(ControlRequest::Report).await;
            }
            _ = pidfd.readable() => {
                // Its last word may still be in the socket, which has ended behind it.
                if said.is_none() && connected {
                    said = timeout(STOP_GRACE, last_word(monitor, vm)).await.ok().flatten();
                }
                return said.map_or(Reason::Silent, Reason::Said);
            }
            reason = vm.killed() => {
                stop(monitor, pidfd, vm).await;
                return Reason::Killed(reason);
            }
        }
    }
}

/// Asks the vmm to stop, which gives it the time for a last report; [`Process::end`] does
/// the rest.
async fn stop(monitor: &mut Monitor, pidfd: &AsyncFd<OwnedFd>, vm: &Watched) {
    monitor.ask(ControlRequest::Stop).await;
    let ended = async {
        last_word(monitor, vm).await;
        let _ = pidfd.readable().await;
    };
    let _ = timeout(STOP_GRACE, ended).await;
}

/// Reads on until the vmm says why it ends, or the socket does.
async fn last_word(monitor: &mut Monitor, vm: &Watched) -> Option<EndReason> {
    while let Ok(event) = monitor.next().await {
        if let ControlEvent::Ended { reason, report } = event {
            record(&report);
            vm.report.send_replace(Some(report));
            return Some(reason);
        }
    }
    None
}

/// The host's part in the jail, for those who look after the host.
fn tell_of_jail(report: &JailReport) {
    if let Some(refused) = &report.no_user_namespace {
        let refused = crate::text::inert(refused.as_bytes());
        log::warn!("the vmm has no user namespace, which this host does not allow: {refused}");
    }
    if report.landlock_abi == 0 {
        log::info!("the vmm has no Landlock, which this host's kernel does not offer");
    }
}

fn record(report: &Report) {
    stages::append(&serde_json::json!({ "process": "vmm", "report": report }));
}

fn was_killed(status: &io::Result<ExitStatus>) -> bool {
    status.as_ref().is_ok_and(|status| status.signal() == Some(libc::SIGKILL))
}

fn describe(
    reason: Reason,
    status: io::Result<ExitStatus>,
    oom: Option<OomKill>,
    vm: &Watched,
) -> String {
    let said = match reason {
        Reason::Killed(reason) => return reason,
        Reason::Said(EndReason::Stopped) => "the VM was stopped".to_owned(),
        Reason::Said(EndReason::Reset) => "the guest has reset the VM".to_owned(),
        Reason::Said(EndReason::TripleFault) => "the guest has crashed (triple fault)".to_owned(),
        Reason::Said(EndReason::Halted) => "the guest has halted".to_owned(),
        Reason::Said(EndReason::Failed { message }) => {
            format!("the vmm has failed: {}", crate::text::inert(message.as_bytes()))
        }
        Reason::Silent => oom.map_or_else(|| describe_status(status), describe_oom),
    };
    with_tails(said, vm)
}

/// Not the guest's OOM killer, which ends a process in it and not the VM.
fn describe_oom(oom: OomKill) -> String {
    match oom {
        OomKill::OwnLimit { limit_bytes } => format!(
            "the vmm was ended by the host's OOM killer: the VM went over its host memory limit of {} MiB",
            limit_bytes >> 20
        ),
        OomKill::Host => {
            "the vmm was ended by the host's OOM killer: the host has run out of memory".to_owned()
        }
    }
}

fn describe_status(status: io::Result<ExitStatus>) -> String {
    match status.map(|status| (status.signal(), status.code())) {
        Ok((Some(libc::SIGSYS), _)) => {
            "the vmm was ended for a forbidden system call (SIGSYS)".to_owned()
        }
        Ok((Some(libc::SIGKILL), _)) => "the vmm was ended by SIGKILL from outside".to_owned(),
        Ok((Some(signal), _)) => format!("the vmm was ended by signal {signal}"),
        Ok((None, Some(code))) => format!("the vmm exited with code {code}"),
        Ok((None, None)) | Err(_) => "the vmm is gone".to_owned(),
    }
}

/// `text` with what the vmm and the guest's console said last.
pub(super) fn with_tails(mut text: String, vm: &Watched) -> String {
    for (what, ring) in
        [("the vmm said", &vm.complaints), ("the end of the guest's console", &vm.console)]
    {
        let tail = ring.tail();
        if !tail.is_empty() {
            text.push_str(&format!("; {what}:\n  {}", tail.replace('\n', "\n  ")));
        }
    }
    text
}
