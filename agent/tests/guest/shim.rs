//! The other side of the control channel, in plain verbs.

use std::{
    collections::{HashMap, VecDeque},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use caisson_agent::transport::UnixDirectory;
use caisson_agent_protocol::{
    AgentError, Call, ContainerPlan, Event, ExitStatus, FIRST_STREAM_PORT, FromAgent, Outcome,
    Request,
    frame::encode,
    plan::{ProcessPlan, StdioPorts},
    read_frame,
};

/// Under emulation everything takes its time.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Shim {
    control: UnixStream,
    streams: UnixDirectory,
    next_id: u64,
    next_port: u32,
    replies: HashMap<u64, Result<Outcome, AgentError>>,
    events: VecDeque<Event>,
}

/// What a process has said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub status: ExitStatus,
    pub oom_killed: bool,
}

impl Shim {
    pub fn new(control: UnixStream, streams: PathBuf) -> Self {
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut shim = Self {
            control,
            streams: UnixDirectory(streams),
            next_id: 0,
            next_port: FIRST_STREAM_PORT,
            replies: HashMap::new(),
            events: VecDeque::new(),
        };
        assert!(matches!(shim.event(), Event::Ready(_)), "the first message is Ready");
        shim
    }

    pub fn ports(&mut self, stdin: bool, stdout: bool, stderr: bool) -> StdioPorts {
        let mut port = |wanted: bool| {
            self.next_port += 1;
            wanted.then_some(self.next_port)
        };
        StdioPorts { stdin: port(stdin), stdout: port(stdout), stderr: port(stderr) }
    }

    pub fn stream(&self, port: Option<u32>) -> UnixStream {
        let stream = self.streams.connect(port.expect("a port was asked for")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends without waiting for the reply.
    pub fn send(&mut self, call: Call) -> u64 {
        self.next_id += 1;
        let request = Request { id: self.next_id, call };
        self.control.write_all(&encode(&request).unwrap()).unwrap();
        self.next_id
    }

    pub fn call(&mut self, call: Call) -> Result<Outcome, AgentError> {
        let id = self.send(call);
        self.reply(id)
    }

    pub fn reply(&mut self, id: u64) -> Result<Outcome, AgentError> {
        loop {
            if let Some(result) = self.replies.remove(&id) {
                return result;
            }
            self.receive();
        }
    }

    pub fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            self.receive();
        }
    }

    fn receive(&mut self) {
        match read_frame(&mut self.control).unwrap().expect("the agent closed the channel") {
            FromAgent::Reply { id, result } => drop(self.replies.insert(id, result)),
            FromAgent::Event(event) => self.events.push_back(event),
        }
    }

    /// The next exit of the process, past other events.
    pub fn wait(&mut self, id: &str, exec: Option<&str>) -> (ExitStatus, bool) {
        let begin = Instant::now();
        let mut others = VecDeque::new();
        let found = loop {
            assert!(begin.elapsed() < PATIENCE, "no exit of {id} {exec:?} in {PATIENCE:?}");
            match self.event() {
                Event::ProcessExited { container, exec: e, status, oom_killed }
                    if container == id && e.as_deref() == exec =>
                {
                    break (status, oom_killed);
                }
                other => others.push_back(other),
            }
        };
        others.extend(self.events.drain(..));
        self.events = others;
        found
    }

    /// Whether an event like that has come or comes before the next reply.
    pub fn has_event(&mut self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.iter().any(wanted)
    }

    pub fn create(&mut self, plan: &ContainerPlan) -> Result<Outcome, AgentError> {
        self.call(Call::CreateContainer(Box::new(plan.clone())))
    }

    pub fn start(&mut self, id: &str) -> Result<Outcome, AgentError> {
        self.call(Call::Start { container: id.into(), exec: None })
    }

    pub fn delete(&mut self, id: &str) -> Result<Outcome, AgentError> {
        self.call(Call::Delete { container: id.into(), exec: None })
    }

    pub fn signal(&mut self, id: &str, signal: i32) -> Result<Outcome, AgentError> {
        self.call(Call::Signal { container: id.into(), exec: None, signal, all: false })
    }

    /// Creates and starts a container with stdout and stderr.
    pub fn launch(&mut self, plan: &mut ContainerPlan) -> (UnixStream, UnixStream) {
        plan.stdio = self.ports(false, true, true);
        self.create(plan).unwrap();
        let streams = (self.stream(plan.stdio.stdout), self.stream(plan.stdio.stderr));
        self.start(&plan.id).unwrap();
        streams
    }

    /// Runs a container from create to delete.
    pub fn run(&mut self, mut plan: ContainerPlan) -> Ended {
        let (mut stdout, mut stderr) = self.launch(&mut plan);
        let (stdout, stderr) = (read_all(&mut stdout), read_all(&mut stderr));
        let (status, oom_killed) = self.wait(&plan.id, None);
        self.delete(&plan.id).unwrap();
        Ended { stdout, stderr, status, oom_killed }
    }

    /// Runs an exec from create to delete.
    pub fn exec(&mut self, id: &str, process: ProcessPlan) -> Result<Ended, AgentError> {
        let stdio = self.ports(false, true, true);
        let exec = format!("e{}", self.next_port);
        let named = || (id.to_owned(), Some(exec.clone()));
        let (container, _) = named();
        self.call(Call::CreateExec {
            container,
            exec: exec.clone(),
            process: Box::new(process),
            stdio,
        })?;
        let (mut stdout, mut stderr) = (self.stream(stdio.stdout), self.stream(stdio.stderr));
        let (container, name) = named();
        let started = self.call(Call::Start { container, exec: name });
        if let Err(error) = started {
            let (container, name) = named();
            self.call(Call::Delete { container, exec: name }).unwrap();
            return Err(error);
        }
        let (stdout, stderr) = (read_all(&mut stdout), read_all(&mut stderr));
        let (status, oom_killed) = self.wait(id, Some(&exec));
        let (container, name) = named();
        self.call(Call::Delete { container, exec: name }).unwrap();
        Ok(Ended { stdout, stderr, status, oom_killed })
    }

    /// Closes the control channel.
    pub fn hang_up(self) {}

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.control.write_all(bytes).unwrap();
    }
}

pub fn read_all(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
