//! An agent that lies, floods, drips and falls silent, and a shim that makes calls
//! meanwhile. Every call ends; what it ends with was said in answer to it; an exit is only
//! that of the process it was told of.

#![no_main]

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    time::Duration,
};

use caisson_agent_protocol::{
    AgentError, Call, ErrorKind, Event, ExitStatus, FromAgent, Outcome, PROTOCOL_VERSION, Ready,
    frame,
};
use caisson_shim::agent_client::{AgentClient, CallError, Deadlines};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::{LocalSet, yield_now},
    time::timeout,
};

/// Calls fail by the end of the channel long before.
const DEADLINES: Deadlines =
    Deadlines { prepare: Duration::from_secs(5), call: Duration::from_secs(5) };
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Arbitrary, Debug)]
struct Input {
    /// What the agent says first; a good greeting without it.
    greeting: Option<Vec<u8>>,
    protocol: Option<u32>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    ShimCalls(CallKind),
    ShimExpects(u8),
    ShimWatches(u8),
    ShimAbandons,
    /// To one of the calls made so far, or to none.
    Answer(u8, Answer),
    AnswerAny(u64, Answer),
    Exit(u8, u8),
    OutOfMemory(u8),
    ReadyAgain,
    Bytes(Vec<u8>),
    Length(u32),
    /// A good message, less its end.
    Cut(u8),
    /// A good message, a byte at a time.
    Drip(u8, Answer),
    Flood(u16),
    AgentReads,
}

#[derive(Arbitrary, Debug)]
enum CallKind {
    Start(u8),
    Pids(u8),
    Pause(u8),
    Delete(u8),
    Shutdown,
}

#[derive(Arbitrary, Clone, Debug)]
enum Answer {
    Done,
    Created(u32),
    Pids(Vec<u32>),
    Error(String),
}

impl CallKind {
    fn call(&self) -> Call {
        match *self {
            Self::Start(name) => Call::Start { container: container(name), exec: exec(name) },
            Self::Pids(name) => Call::Pids { container: container(name) },
            Self::Pause(name) => Call::Pause { container: container(name) },
            Self::Delete(name) => Call::Delete { container: container(name), exec: exec(name) },
            Self::Shutdown => Call::Shutdown,
        }
    }
}

impl Answer {
    fn result(&self) -> Result<Outcome, AgentError> {
        match self {
            Self::Done => Ok(Outcome::Done),
            Self::Created(pid) => Ok(Outcome::Created { pid: *pid }),
            Self::Pids(pids) => Ok(Outcome::Pids(pids.clone())),
            Self::Error(message) => {
                Err(AgentError { kind: ErrorKind::Internal, message: message.clone() })
            }
        }
    }
}

/// A few names, so that they meet.
fn container(name: u8) -> String {
    format!("c{}", name % 2)
}

fn exec(name: u8) -> Option<String> {
    (name & 2 != 0).then(|| "e".to_owned())
}

/// What was said, to compare with what was heard. Calls have the numbers 1, 2, … in the
/// order in which they were made.
#[derive(Default)]
struct Said {
    answers: HashMap<u64, Vec<Outcome>>,
    errors: HashSet<u64>,
    exits: HashSet<(String, Option<String>, u8)>,
    /// Bytes of no message were sent, which may be one by chance.
    garbage: bool,
}

struct Session {
    client: AgentClient,
    agent: UnixStream,
    said: Rc<RefCell<Said>>,
    calls: u64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Session {
    async fn step(&mut self, step: &Step) {
        match step {
            Step::ShimCalls(kind) => self.call(kind.call()),
            Step::ShimExpects(name) => self.expect_exit(*name),
            Step::ShimWatches(name) => drop(self.client.watch_oom(&container(*name))),
            Step::ShimAbandons => self.client.abandon("the fuzzer has had enough"),
            Step::Answer(which, answer) => {
                let id = if self.calls == 0 { 0 } else { u64::from(*which) % self.calls + 1 };
                self.answer(id, answer, false).await;
            }
            Step::AnswerAny(id, answer) => self.answer(*id, answer, false).await,
            Step::Drip(which, answer) => {
                let id = if self.calls == 0 { 0 } else { u64::from(*which) % self.calls + 1 };
                self.answer(id, answer, true).await;
            }
            Step::Exit(name, code) => {
                let (container, exec) = (container(*name), exec(*name));
                self.said.borrow_mut().exits.insert((container.clone(), exec.clone(), *code));
                let status = ExitStatus::Exited(*code);
                let exited = Event::ProcessExited { container, exec, status, oom_killed: false };
                self.say(&FromAgent::Event(exited)).await;
            }
            Step::OutOfMemory(name) => {
                let container = container(*name);
                self.say(&FromAgent::Event(Event::OutOfMemory { container })).await;
            }
            Step::ReadyAgain => self.say(&greeting(PROTOCOL_VERSION)).await,
            Step::Bytes(bytes) => self.write(bytes).await,
            Step::Length(length) => self.write(&length.to_le_bytes()).await,
            Step::Cut(kept) => {
                let message = frame::encode(&greeting(PROTOCOL_VERSION)).expect("it is small");
                let kept = usize::from(*kept) % message.len();
                self.write(&message[..kept]).await;
            }
            Step::Flood(count) => {
                let none = FromAgent::Reply { id: u64::MAX, result: Ok(Outcome::Done) };
                let message = frame::encode(&none).expect("it is small");
                let flood = message.repeat(usize::from(count % 1500));
                self.write_good(&flood).await;
            }
            Step::AgentReads => {
                let mut buffer = [0; 4096];
                let _ = timeout(Duration::ZERO, self.agent.read(&mut buffer)).await;
            }
        }
        for _ in 0..4 {
            yield_now().await;
        }
    }

    fn call(&mut self, call: Call) {
        self.calls += 1;
        let (id, client, said) = (self.calls, self.client.clone(), Rc::clone(&self.said));
        self.tasks.push(tokio::task::spawn_local(async move {
            match client.call(call).await {
                Ok(outcome) => {
                    let said = said.borrow();
                    let known = said.answers.get(&id).is_some_and(|all| all.contains(&outcome));
                    assert!(known || said.garbage, "call {id} got {outcome:?}");
                }
                Err(CallError::Agent(error)) => {
                    let said = said.borrow();
                    assert!(said.errors.contains(&id) || said.garbage, "call {id}: {error}");
                    let inert = error
                        .message
                        .chars()
                        .all(|char| !char.is_control() || matches!(char, '\n' | '\t'));
                    assert!(inert && error.message.chars().count() <= 4096, "{error:?}");
                }
                Err(CallError::Lost { reason }) => assert!(!reason.is_empty()),
                Err(error) => panic!("call {id}: {error}"),
            }
        }));
    }

    fn expect_exit(&mut self, name: u8) {
        let (container, exec) = (container(name), exec(name));
        let exit = self.client.expect_exit(&container, exec.as_deref());
        let said = Rc::clone(&self.said);
        self.tasks.push(tokio::task::spawn_local(async move {
            if let Ok(exit) = exit.await {
                let key = (container, exec, exit.status.code());
                let said = said.borrow();
                assert!(said.exits.contains(&key) || said.garbage, "{key:?}");
            }
        }));
    }

    async fn answer(&mut self, id: u64, answer: &Answer, drip: bool) {
        let result = answer.result();
        match &result {
            Ok(outcome) => {
                self.said.borrow_mut().answers.entry(id).or_default().push(outcome.clone());
            }
            Err(_) => drop(self.said.borrow_mut().errors.insert(id)),
        }
        let message = FromAgent::Reply { id, result };
        if !drip {
            return self.say(&message).await;
        }
        let bytes = frame::encode(&message).expect("an answer of this size fits");
        for byte in bytes.iter().take(256) {
            self.write_good(&[*byte]).await;
            yield_now().await;
        }
        self.write_good(&bytes[bytes.len().min(256)..]).await;
    }

    async fn say(&mut self, message: &FromAgent) {
        let bytes = frame::encode(message).expect("a message of this size fits");
        self.write_good(&bytes).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.said.borrow_mut().garbage |= !bytes.is_empty();
        self.write_good(bytes).await;
    }

    /// The shim may have closed its end.
    async fn write_good(&mut self, bytes: &[u8]) {
        let written = timeout(PATIENCE, self.agent.write_all(bytes)).await;
        assert!(written.is_ok(), "the shim neither reads nor closes");
    }

    /// The agent goes away: now everything ends.
    async fn end(self) {
        drop(self.agent);
        let reason = timeout(PATIENCE, self.client.lost()).await.expect("the channel ended");
        assert!(!reason.is_empty());
        for task in self.tasks {
            let ended = timeout(PATIENCE, task).await.expect("a call does not end");
            ended.expect("a call panicked");
        }
        let later = timeout(PATIENCE, self.client.call(Call::Shutdown)).await;
        assert!(matches!(later, Ok(Err(CallError::Lost { .. }))), "{later:?}");
        let later = self.client.expect_exit("c0", None);
        assert!(timeout(PATIENCE, later).await.expect("nobody to wait for").is_err());
    }
}

fn greeting(protocol: u32) -> FromAgent {
    FromAgent::Event(Event::Ready(Ready { protocol, agent: "a".into(), kernel: "k".into() }))
}

async fn play(input: &Input) {
    let (ours, mut agent) = UnixStream::pair().expect("a socket pair");
    let protocol = input.protocol.unwrap_or(PROTOCOL_VERSION);
    let first = match &input.greeting {
        Some(bytes) => bytes.clone(),
        None => frame::encode(&greeting(protocol)).expect("it is small"),
    };
    agent.write_all(&first).await.expect("nothing is in the way");
    if input.greeting.is_some() {
        agent.shutdown().await.expect("it is connected");
    }
    let accepted = timeout(PATIENCE, AgentClient::accept(ours, DEADLINES)).await;
    let Ok((client, ready)) = accepted.expect("the channel ends or has a message") else { return };
    assert_eq!(ready.protocol, PROTOCOL_VERSION);
    let said = Rc::new(RefCell::new(Said { garbage: input.greeting.is_some(), ..Said::default() }));
    let mut session = Session { client, agent, said, calls: 0, tasks: Vec::new() };
    for step in input.steps.iter().take(32) {
        session.step(step).await;
    }
    session.end().await;
}

fuzz_target!(|input: Input| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread");
    LocalSet::new().block_on(&runtime, play(&input));
});
