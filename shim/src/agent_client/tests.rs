//! Agents that lie, drip, flood and fall silent.

use caisson_agent_protocol::{ErrorKind, write_frame};
use proptest::{collection::vec, prelude::*};
use tokio::io::AsyncWriteExt;

use super::*;

const DEADLINES: Deadlines =
    Deadlines { prepare: Duration::from_millis(900), call: Duration::from_millis(300) };

fn frame(message: &FromAgent) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, message).unwrap();
    bytes
}

fn ready(protocol: u32) -> FromAgent {
    FromAgent::Event(Event::Ready(Ready { protocol, agent: "a".into(), kernel: "k".into() }))
}

fn reply(id: u64, result: Result<Outcome, AgentError>) -> FromAgent {
    FromAgent::Reply { id, result }
}

fn exited(container: &str) -> FromAgent {
    FromAgent::Event(Event::ProcessExited {
        container: container.into(),
        exec: None,
        status: ExitStatus::Exited(3),
        oom_killed: false,
    })
}

/// A client of an agent that this test plays.
async fn connected() -> (AgentClient, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&frame(&ready(PROTOCOL_VERSION))).await.unwrap();
    let (client, ready) = AgentClient::accept(ours, DEADLINES).await.unwrap();
    assert_eq!(ready.kernel, "k");
    (client, theirs)
}

/// The next request that the client has sent.
async fn request(agent: &mut UnixStream) -> Request {
    let mut header = [0; 4];
    agent.read_exact(&mut header).await.unwrap();
    let mut payload = vec![0; u32::from_le_bytes(header) as usize];
    agent.read_exact(&mut payload).await.unwrap();
    serde_json::from_slice(&payload).unwrap()
}

async fn first_message(bytes: &[u8]) -> Result<Ready, ReadyError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes).await.unwrap();
    drop(theirs);
    AgentClient::accept(ours, DEADLINES).await.map(|(_, ready)| ready)
}

#[tokio::test]
async fn only_a_ready_agent_of_this_version_is_accepted() {
    assert!(matches!(first_message(b"").await, Err(ReadyError::Closed)));
    let other = frame(&ready(PROTOCOL_VERSION + 1));
    assert!(matches!(first_message(&other).await, Err(ReadyError::Version { .. })));
    let early = frame(&exited("c"));
    assert!(matches!(first_message(&early).await, Err(ReadyError::NotReady)));
    for garbage in [&b"\xff\xff\xff\xffxxxx"[..], b"\x05\0\0\0abc", b"\x02\0\0\0{]", b"\x01\0"] {
        assert!(matches!(first_message(garbage).await, Err(ReadyError::Frame(_))));
    }
}

#[tokio::test]
async fn replies_find_their_calls_in_any_order() {
    let (client, mut agent) = connected().await;
    let pids = Call::Pids { container: "c".into() };
    let pause = Call::Pause { container: "c".into() };
    let answer = async {
        let (first, second) = (request(&mut agent).await, request(&mut agent).await);
        for request in [second, first] {
            let outcome = match request.call {
                Call::Pids { .. } => Outcome::Pids(vec![7]),
                _ => Outcome::Done,
            };
            agent.write_all(&frame(&reply(request.id, Ok(outcome)))).await.unwrap();
        }
    };
    let (pids, pause, ()) = tokio::join!(client.call(pids), client.call_done(pause), answer);
    assert_eq!(pids.unwrap(), Outcome::Pids(vec![7]));
    pause.unwrap();
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_its_words_are_inert() {
    let (client, mut agent) = connected().await;
    let answer = async {
        let request = request(&mut agent).await;
        let error = AgentError {
            kind: ErrorKind::NoSpace,
            message: format!("\x1b[2J{}", "x".repeat(9999)),
        };
        agent.write_all(&frame(&reply(request.id, Err(error)))).await.unwrap();
    };
    let (result, ()) = tokio::join!(client.call(Call::Shutdown), answer);
    let Err(CallError::Agent(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.kind, ErrorKind::NoSpace);
    assert!(!error.message.contains('\x1b') && error.message.len() < 5000);
}

#[tokio::test]
async fn silence_and_dripping_run_into_the_deadline() {
    let (client, mut agent) = connected().await;
    let drip = async {
        let request = request(&mut agent).await;
        for byte in frame(&reply(request.id, Ok(Outcome::Done))).into_iter().take(5) {
            agent.write_all(&[byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (result, ()) = tokio::join!(client.call(Call::Shutdown), drip);
    assert!(matches!(result, Err(CallError::Deadline { call: "Shutdown", .. })), "{result:?}");
    assert!(client.shared.tables().pending.is_empty(), "the call is forgotten");
}

#[tokio::test]
async fn an_agent_that_reads_nothing_runs_into_the_deadline_too() {
    let (client, _agent) = connected().await;
    let big = || Call::Update { container: "c".repeat(300_000), resources: Default::default() };
    for _ in 0..3 {
        let result = client.call(big()).await;
        assert!(matches!(result, Err(CallError::Deadline { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn what_nobody_asked_for_is_dropped() {
    let (client, mut agent) = connected().await;
    for message in [reply(99, Ok(Outcome::Done)), exited("other"), ready(PROTOCOL_VERSION)] {
        agent.write_all(&frame(&message)).await.unwrap();
    }
    let wanted = client.expect_exit("c", None);
    agent.write_all(&[frame(&exited("c")), frame(&exited("c"))].concat()).await.unwrap();
    assert_eq!(wanted.await.unwrap().status, ExitStatus::Exited(3));
    let answer = async {
        let request = request(&mut agent).await;
        agent.write_all(&frame(&reply(request.id, Ok(Outcome::Done)))).await.unwrap();
    };
    let (result, ()) = tokio::join!(client.call(Call::Shutdown), answer);
    assert_eq!(result.unwrap(), Outcome::Done);
}

#[tokio::test]
async fn a_flood_loses_the_agent() {
    for message in [
        exited("other"),
        reply(99, Ok(Outcome::Done)),
        FromAgent::Event(Event::OutOfMemory { container: "c".into() }),
    ] {
        let (client, mut agent) = connected().await;
        let _ooms = client.watch_oom("c");
        let flood = frame(&message).repeat(MAX_UNEXPECTED as usize + 1);
        // The client may close its end before the flood is over.
        let _ = agent.write_all(&flood).await;
        let reason = client.lost().await;
        assert!(reason.contains("nobody waits for"), "{reason}");
    }
}

#[tokio::test]
async fn ooms_are_coalesced() {
    let (client, mut agent) = connected().await;
    let mut ooms = client.watch_oom("c");
    let oom = frame(&FromAgent::Event(Event::OutOfMemory { container: "c".into() }));
    agent.write_all(&oom.repeat(100)).await.unwrap();
    ooms.wait_for(|&count| count == 100).await.unwrap();
}

#[tokio::test]
async fn a_broken_channel_fails_everything_that_waits() {
    for last_words in [&b"\xff\xff\xff\xff"[..], b"\x02\0\0\0{]", b"\x09\0\0\0x", b""] {
        let (client, mut agent) = connected().await;
        let wanted = client.expect_exit("c", None);
        let mut ooms = client.watch_oom("c");
        let break_it = async {
            request(&mut agent).await;
            agent.write_all(last_words).await.unwrap();
            drop(agent);
        };
        let (result, ()) = tokio::join!(client.call(Call::Shutdown), break_it);
        assert!(matches!(result, Err(CallError::Lost { .. })), "{result:?}");
        assert!(wanted.await.is_err());
        assert!(ooms.changed().await.is_err());
        // And whatever comes later.
        let later = client.call(Call::Shutdown).await;
        assert!(matches!(later, Err(CallError::Lost { .. })), "{later:?}");
        assert!(client.expect_exit("c", None).await.is_err());
        client.lost().await;
    }
}

#[tokio::test]
async fn a_long_frame_within_the_protocols_limit_is_still_refused() {
    let (client, mut agent) = connected().await;
    let length = u32::try_from(MAX_FRAME_BYTES + 1).unwrap();
    agent.write_all(&length.to_le_bytes()).await.unwrap();
    assert!(client.lost().await.contains("exceeds the limit"));
}

#[tokio::test]
async fn a_message_that_is_begun_and_never_finished_loses_the_agent() {
    let whole = frame(&exited("c"));
    for begun in [1, 3, 4, whole.len() - 1] {
        let (client, mut agent) = connected().await;
        // Nobody has called anything: only the exit is waited for.
        let wanted = client.expect_exit("c", None);
        agent.write_all(&whole[..begun]).await.unwrap();
        assert!(wanted.await.is_err());
        assert!(client.lost().await.contains("begun and not finished"));
    }
}

#[tokio::test]
async fn an_agent_that_says_nothing_for_long_is_no_fault() {
    let (client, mut agent) = connected().await;
    let wanted = client.expect_exit("c", None);
    tokio::time::sleep(DEADLINES.prepare * 2).await;
    agent.write_all(&frame(&exited("c"))).await.unwrap();
    assert_eq!(wanted.await.unwrap().status, ExitStatus::Exited(3));
}

/// Before its start, twice, and of another process: an exit is given to whoever waits for
/// it, once, and calls go on.
#[tokio::test]
async fn exits_out_of_order_are_dropped() {
    let (client, mut agent) = connected().await;
    let exec = FromAgent::Event(Event::ProcessExited {
        container: "c".into(),
        exec: Some("e".into()),
        status: ExitStatus::Signaled(9),
        oom_killed: true,
    });
    // Nobody waits yet, and later nobody gets what was said too early.
    agent.write_all(&[frame(&exited("c")), frame(&exec)].concat()).await.unwrap();
    let answer = async {
        let request = request(&mut agent).await;
        agent.write_all(&frame(&reply(request.id, Ok(Outcome::Done)))).await.unwrap();
        agent
    };
    let (result, mut agent) = tokio::join!(client.call(Call::Shutdown), answer);
    assert_eq!(result.unwrap(), Outcome::Done);
    let mut first = client.expect_exit("c", None);
    let second = client.expect_exit("c", Some("e"));
    assert!(first.try_recv().is_err(), "an exit from before it was expected");
    agent.write_all(&[frame(&exec), frame(&exec)].concat()).await.unwrap();
    let exit = second.await.unwrap();
    assert_eq!((exit.status, exit.oom_killed), (ExitStatus::Signaled(9), true));
    assert!(first.try_recv().is_err(), "the exit of another process");
}

/// What an agent may write: good messages, messages for nobody, and bytes.
fn said() -> impl Strategy<Value = Vec<u8>> {
    let outcome = prop_oneof![
        Just(Ok(Outcome::Done)),
        any::<u32>().prop_map(|pid| Ok(Outcome::Created { pid })),
        vec(any::<u32>(), 0..20).prop_map(|pids| Ok(Outcome::Pids(pids))),
        ".{0,40}".prop_map(|message| Err(AgentError { kind: ErrorKind::Internal, message })),
    ];
    prop_oneof![
        4 => (0_u64..6, outcome).prop_map(|(id, result)| frame(&reply(id, result))),
        2 => "[cd]".prop_map(|container| frame(&exited(&container))),
        1 => Just(frame(&ready(PROTOCOL_VERSION))),
        1 => vec(any::<u8>(), 0..40),
        1 => (0_usize..30).prop_map(|kept| frame(&exited("c"))[..kept].to_vec()),
        1 => any::<u32>().prop_map(|length| length.to_le_bytes().to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_an_agent_writes_every_call_ends(said in vec(said(), 0..20), calls in 1_usize..5) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, mut agent) = connected().await;
            let exit = client.expect_exit("c", None);
            let calls: Vec<_> = (0..calls)
                .map(|_| {
                    let client = client.clone();
                    tokio::spawn(async move { client.call(Call::Shutdown).await })
                })
                .collect();
            for bytes in said {
                // The client may have closed its end.
                let _ = agent.write_all(&bytes).await;
                tokio::task::yield_now().await;
            }
            drop(agent);
            assert!(!client.lost().await.is_empty());
            for call in calls {
                match call.await.expect("a call does not panic") {
                    Ok(_) | Err(CallError::Agent(_) | CallError::Lost { .. }) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            if let Ok(exit) = exit.await {
                assert_eq!(exit.status, ExitStatus::Exited(3));
            }
            assert!(client.shared.tables().pending.is_empty());
        });
    }
}
