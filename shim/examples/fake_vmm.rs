//! A vmm without a VM, for tests of the shim's processes: it takes the real config and
//! files, and serves a fake agent that runs the container's process on the host.
//!
//! The VM's id says how it behaves: `silent…` never gets ready, `panic…` crashes with
//! words on the console, `refuse…` exits before anything, `hungry…` takes more memory than
//! any VM may once its guest is asked for a stream.

#[path = "../tests/support/fake_agent.rs"]
#[allow(dead_code, unreachable_pub, reason = "tests use more of it")]
mod fake_agent;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::exit,
    sync::{Arc, Mutex},
    thread,
};

use caisson_vmm::{
    config::VmConfig,
    control::{ControlEvent, ControlRequest, EndReason, Report},
};
use fake_agent::{Behaviour, FakeAgent, Streams};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    assert_eq!(words[1], "--config-fd");
    let mut json = String::new();
    File::from(take(words[2].parse().unwrap())).read_to_string(&mut json).unwrap();
    let config: VmConfig = serde_json::from_str(&json).unwrap();
    if config.id.starts_with("refuse") {
        eprintln!("caisson-vmm: refused, as asked");
        exit(2);
    }
    let control = UnixStream::from(take(config.control.unwrap()));
    let vsock = config.vsock.unwrap();
    let agent = UnixStream::from(take(vsock.host_ports[0].socket));
    let listener = UnixListener::from(take(vsock.listener));
    let mut console = File::from(take(config.console.unwrap()));
    // They last as long as this process, and no longer.
    let _taps: Vec<_> = config.net.iter().map(|net| take(net.tap)).collect();
    let ended = Arc::new(Mutex::new(control.try_clone().unwrap()));
    if config.id.starts_with("panic") {
        writeln!(console, "Kernel panic - not syncing: \x1b[31mas asked").unwrap();
        end(&ended, EndReason::TripleFault, &["main", "jailed", "loaded", "first_run"]);
    }
    let streams = Streams::default();
    if !config.id.starts_with("silent") {
        let (streams, ended) = (streams.clone(), ended.clone());
        FakeAgent::serve(agent, streams, Behaviour::Good, move || {
            end(&ended, EndReason::Reset, &["main", "agent_ready"]);
        });
    }
    let appetite = config.id.starts_with("hungry").then_some(config.memory_mib as usize * 4);
    thread::spawn(move || bridge(listener, streams, appetite));
    for line in BufReader::new(control).lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line).unwrap() {
            ControlRequest::Report => {
                send(&ended, &ControlEvent::Report(report(&["main", "jailed", "first_run"])));
            }
            ControlRequest::Stop => end(&ended, EndReason::Stopped, &["main"]),
            ControlRequest::Pause | ControlRequest::Resume => {}
        }
    }
    // The shim is gone.
    exit(0);
}

fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: takes numbers only. The container's process is not to have it.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the config names each inherited descriptor once, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn report(stages: &[&str]) -> Report {
    let stages_usec: BTreeMap<_, _> = stages.iter().map(|stage| ((*stage).to_owned(), 1)).collect();
    Report { stages_usec, ..Default::default() }
}

fn end(control: &Mutex<UnixStream>, reason: EndReason, stages: &[&str]) {
    send(control, &ControlEvent::Ended { reason, report: report(stages) });
    exit(0);
}

fn send(control: &Mutex<UnixStream>, event: &ControlEvent) {
    let _ = writeln!(control.lock().unwrap(), "{}", serde_json::to_string(event).unwrap());
}

/// As the vmm's vsock: `CONNECT <port>\n`, then the port's bytes.
fn bridge(listener: UnixListener, streams: Streams, appetite_mib: Option<usize>) {
    for connection in listener.incoming() {
        if let Some(mib) = appetite_mib {
            // With something in every page, or it takes nothing.
            thread::spawn(move || {
                thread::sleep(std::time::Duration::from_millis(500));
                let mut memory: Vec<Vec<u8>> = Vec::new();
                memory.extend((0..mib).map(|_| vec![1; 1 << 20]));
                std::hint::black_box(memory);
            });
        }
        let (mut connection, streams) = (connection.unwrap(), streams.clone());
        thread::spawn(move || {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                line.push(byte[0]);
            }
            let line = String::from_utf8(line).unwrap();
            let port = line.trim().strip_prefix("CONNECT ").unwrap().parse().unwrap();
            let Some(guest) = streams.lock().unwrap().remove(&port) else { return };
            connection.write_all(b"OK 1\n").unwrap();
            let (from, to) = (connection.try_clone().unwrap(), guest.try_clone().unwrap());
            thread::spawn(move || copy(from, to));
            copy(guest, connection);
        });
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}
