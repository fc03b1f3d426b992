//! The fake's agent: it takes the real messages and runs the plan's process as a child of
//! the test, with the streams the plan asks for.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use caisson_agent_protocol::{
    AgentError, Call, ErrorKind, Event, ExitStatus, FromAgent, Outcome, PROTOCOL_VERSION, Ready,
    Request, Stats,
    plan::{ProcessPlan, StdioPorts},
    read_frame, write_frame,
};

/// The shim's ends of the streams on which the agent listens.
pub type Streams = Arc<Mutex<HashMap<u32, UnixStream>>>;

/// How the agent misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    #[default]
    Good,
    /// Answers nothing but the creation.
    SilentAfterCreate,
    /// Ends the channel when it is to create.
    DiesOnCreate,
    /// Replies to `CreateContainer` with something else.
    LiesOnCreate,
    /// Tells the exit of a process twice, and of processes that never were.
    TellsExitsTwice,
    /// Tells that the OOM killer struck before each exit.
    OutOfMemory,
}

type Key = (String, Option<String>);

pub struct FakeAgent {
    control: Arc<Mutex<UnixStream>>,
    streams: Streams,
    behaviour: Behaviour,
    prepared: HashMap<Key, (ProcessPlan, StdioPorts, HashMap<u32, UnixStream>)>,
    running: Arc<Mutex<HashMap<Key, i32>>>,
}

impl FakeAgent {
    pub fn serve(
        control: UnixStream,
        streams: Streams,
        behaviour: Behaviour,
        at_end: impl FnOnce() + Send + 'static,
    ) {
        let mut reader = control.try_clone().unwrap();
        let mut agent = Self {
            control: Arc::new(Mutex::new(control)),
            streams,
            behaviour,
            prepared: HashMap::new(),
            running: Arc::default(),
        };
        thread::spawn(move || {
            agent.send(&FromAgent::Event(Event::Ready(Ready {
                protocol: PROTOCOL_VERSION,
                agent: "fake".into(),
                kernel: "none".into(),
            })));
            while let Ok(Some(request)) = read_frame::<Request>(&mut reader) {
                let last = matches!(request.call, Call::Shutdown);
                agent.handle(request);
                if last {
                    break;
                }
            }
            // The VM's end is the end of all that runs in it.
            for &pid in agent.running.lock().unwrap().values() {
                // SAFETY: kill takes any numbers; the group is one that this test made.
                unsafe { libc::kill(-pid, libc::SIGKILL) };
            }
            agent.streams.lock().unwrap().clear();
            at_end();
        });
    }

    fn handle(&mut self, request: Request) {
        let created = matches!(request.call, Call::CreateContainer(_));
        match self.behaviour {
            Behaviour::SilentAfterCreate if !created => return,
            Behaviour::DiesOnCreate if created => {
                let control = self.control.lock().unwrap();
                control.shutdown(std::net::Shutdown::Both).unwrap();
                return;
            }
            Behaviour::LiesOnCreate if created => {
                self.send(&FromAgent::Reply { id: request.id, result: Ok(Outcome::Pids(vec![])) });
                return;
            }
            _ => {}
        }
        if let Call::Start { container, exec } = &request.call {
            // The process may be gone before its start is answered, so both go in order.
            let result = self.start(request.id, (container.clone(), exec.clone()));
            if let Err(error) = result {
                self.send(&FromAgent::Reply { id: request.id, result: Err(error) });
            }
            return;
        }
        let result = self.perform(request.call);
        self.send(&FromAgent::Reply { id: request.id, result });
    }

    fn perform(&mut self, call: Call) -> Result<Outcome, AgentError> {
        match call {
            Call::CreateContainer(plan) => {
                self.prepare((plan.id, None), plan.process, plan.stdio);
                Ok(Outcome::Created { pid: 2 })
            }
            Call::CreateExec { container, exec, process, stdio } => {
                self.prepare((container, Some(exec)), *process, stdio);
                Ok(Outcome::Created { pid: 3 })
            }
            Call::Signal { container, exec, signal, .. } => {
                match self.running.lock().unwrap().get(&(container, exec)) {
                    // SAFETY: kill takes any numbers; the group is one that this test made.
                    Some(&pid) => unsafe { libc::kill(-pid, signal) },
                    None => return Err(error(ErrorKind::NotFound, "no such process")),
                };
                Ok(Outcome::Done)
            }
            Call::Pids { .. } => Ok(Outcome::Pids(vec![2, 3])),
            Call::Stats { .. } => {
                Ok(Outcome::Stats(Box::new(Stats { pids: 2, ..Default::default() })))
            }
            Call::Delete { container, exec } => {
                self.prepared.remove(&(container, exec));
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        }
    }

    fn prepare(&mut self, key: Key, process: ProcessPlan, ports: StdioPorts) {
        let mut ends = HashMap::new();
        for port in [ports.stdin, ports.stdout, ports.stderr].into_iter().flatten() {
            let (theirs, ours) = UnixStream::pair().unwrap();
            self.streams.lock().unwrap().insert(port, theirs);
            ends.insert(port, ours);
        }
        self.prepared.insert(key, (process, ports, ends));
    }

    fn start(&mut self, id: u64, key: Key) -> Result<(), AgentError> {
        let missing = || error(ErrorKind::NotFound, "no such process");
        let (process, ports, mut ends) = self.prepared.remove(&key).ok_or_else(missing)?;
        let mut end = |port: Option<u32>| port.and_then(|port| ends.remove(&port));
        let (stdin, stdout, stderr) = (end(ports.stdin), end(ports.stdout), end(ports.stderr));
        let piped = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut command = Command::new(&process.args[0]);
        // What runs in a VM ends with it, however it ends.
        // SAFETY: prctl is a system call that takes numbers.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command
            .args(&process.args[1..])
            .env_clear()
            .envs(process.env.iter().filter_map(|entry| entry.split_once('=')))
            .stdin(piped(stdin.is_some()))
            .stdout(piped(stdout.is_some()))
            .stderr(piped(stderr.is_some()))
            .process_group(0)
            .spawn()
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => {
                    let name = &process.args[0];
                    let message = format!("exec: {name:?}: executable file not found in $PATH");
                    error(ErrorKind::CommandNotFound, &message)
                }
                _ => error(ErrorKind::CommandNotExecutable, &source.to_string()),
            })?;
        let pid = i32::try_from(child.id()).unwrap();
        self.running.lock().unwrap().insert(key.clone(), pid);
        self.send(&FromAgent::Reply { id, result: Ok(Outcome::Started { pid: 5 }) });
        copy(stdin, child.stdin.take());
        copy(child.stdout.take(), stdout);
        copy(child.stderr.take(), stderr);
        self.report_exit(key, child);
        Ok(())
    }

    fn report_exit(&self, key: Key, mut child: Child) {
        let (control, running) = (self.control.clone(), self.running.clone());
        let behaviour = self.behaviour;
        thread::spawn(move || {
            use std::os::unix::process::ExitStatusExt;
            let status = child.wait().unwrap();
            let status = match status.code() {
                Some(code) => ExitStatus::Exited(u8::try_from(code).unwrap()),
                None => ExitStatus::Signaled(u8::try_from(status.signal().unwrap()).unwrap()),
            };
            running.lock().unwrap().remove(&key);
            let (container, exec) = key;
            let oom_killed = behaviour == Behaviour::OutOfMemory;
            let exited =
                Event::ProcessExited { container: container.clone(), exec, status, oom_killed };
            let mut events = vec![exited.clone()];
            match behaviour {
                Behaviour::OutOfMemory => events.insert(0, Event::OutOfMemory { container }),
                Behaviour::TellsExitsTwice => {
                    let other = Event::ProcessExited {
                        container: "other".into(),
                        exec: None,
                        status,
                        oom_killed,
                    };
                    events = vec![other, exited.clone(), exited];
                }
                _ => {}
            }
            for event in events {
                let _ = write_frame(&mut *control.lock().unwrap(), &FromAgent::Event(event));
            }
        });
    }

    fn send(&self, message: &FromAgent) {
        let _ = write_frame(&mut *self.control.lock().unwrap(), message);
    }
}

/// Copies until the end; then both ends close.
///
/// Not by `io::copy`: that splices, and a splice that waits for a socket holds the pipe's
/// lock, which even the end of the process at its other side then waits for.
fn copy(from: Option<impl Read + Send + 'static>, to: Option<impl Write + Send + 'static>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
    }
}

fn error(kind: ErrorKind, message: &str) -> AgentError {
    AgentError { kind, message: message.into() }
}
