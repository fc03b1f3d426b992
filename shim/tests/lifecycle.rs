//! A container's whole life on the fake sandbox.

#[allow(unreachable_pub, dead_code, reason = "shared by test binaries")]
mod support;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use caisson_shim::{
    container::Container, error::Error, exit::Exit, kind::ErrorKind, process::Phase,
    sandbox::Sandbox, stdio::StdioSpec,
};
use containerd_shim::protos::events::task::TaskCreate;
use support::{Behaviour, FakeLauncher, Fixture, make_fifo, process_json};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

async fn create(fixture: &Fixture, id: &str, script: &str) -> std::sync::Arc<Container> {
    let request = fixture.request(id, script);
    fixture.service.create(request, TaskCreate::default()).await.unwrap()
}

async fn wait(container: &Container) -> Exit {
    timeout(LONG, container.process(None).unwrap().wait()).await.expect("the container ends")
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().expect("it fails").kind()
}

#[tokio::test]
async fn a_container_runs_to_completion() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "echo out; echo err >&2; exit 7").await;
    assert_eq!(container.process(None).unwrap().phase(), Phase::Created);
    container.start(None).await.unwrap();
    assert_eq!(wait(&container).await.code, 7);
    assert_eq!(fixture.output("c", "stdout"), "out\n");
    assert_eq!(fixture.output("c", "stderr"), "err\n");
    let (_, exit) = fixture.service.delete("c").await.unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(fixture.topics(), ["create", "start", "exit", "delete"]);
    assert_eq!(fixture.launcher.sandbox().ended().await.reason, "the guest has shut down");
}

#[tokio::test]
async fn the_exit_is_recorded_in_the_bundle() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "exit 3").await;
    container.start(None).await.unwrap();
    let exit = wait(&container).await;
    assert_eq!(Exit::load(&container.bundle).unwrap(), Some(exit));
}

#[tokio::test]
async fn standard_input_ends_when_it_is_closed_and_read() {
    let fixture = Fixture::new();
    let mut request = fixture.request("c", "cat");
    let fifo = fixture.directory.path().join("stdin");
    make_fifo(&fifo);
    request.stdio.stdin = fifo.to_str().unwrap().into();
    let container = fixture.service.create(request, TaskCreate::default()).await.unwrap();
    container.start(None).await.unwrap();
    // One writer goes, and another comes: the container does not notice.
    for text in ["one ", "two"] {
        let path = fifo.clone();
        let write = move || {
            std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all(text.as_bytes())
        };
        tokio::task::spawn_blocking(write).await.unwrap().unwrap();
    }
    container.process(None).unwrap().close_stdin();
    assert_eq!(wait(&container).await.code, 0);
    assert_eq!(fixture.output("c", "stdout"), "one two");
}

#[tokio::test]
async fn signals_end_it_with_their_code() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    container.start(None).await.unwrap();
    assert_eq!(kind(fixture.service.kill("c", None, 65, false).await), ErrorKind::InvalidArgument);
    fixture.service.kill("c", None, 15, false).await.unwrap();
    assert_eq!(wait(&container).await.code, 143);
    assert_eq!(kind(fixture.service.kill("c", None, 15, false).await), ErrorKind::NotFound);
    assert_eq!(kind(fixture.service.kill("d", None, 15, false).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn operations_that_do_not_fit_the_state_are_refused() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    let again = fixture.request("c", "true");
    let again = fixture.service.create(again, TaskCreate::default()).await;
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    let early = container.exec("e", &process_json("true"), StdioSpec::default()).await;
    assert_eq!(kind(early), ErrorKind::FailedPrecondition);
    assert_eq!(kind(container.resume().await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(container.stats().await), ErrorKind::FailedPrecondition);
    container.start(None).await.unwrap();
    assert_eq!(kind(container.start(None).await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(fixture.service.delete("c").await.map(drop)), ErrorKind::FailedPrecondition);
    assert_eq!(kind(container.process(Some("no")).map(drop)), ErrorKind::NotFound);
    container.kill(None, 9, true).await.unwrap();
    assert_eq!(wait(&container).await.code, 137);
    assert_eq!(kind(container.start(None).await), ErrorKind::FailedPrecondition);
    assert_eq!(kind(container.pids().await), ErrorKind::NotFound);
}

#[tokio::test]
async fn pause_and_resume_show_in_the_state() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    container.start(None).await.unwrap();
    container.pause().await.unwrap();
    let init = container.process(None).unwrap();
    assert_eq!(init.phase(), Phase::Running { paused: true });
    container.resume().await.unwrap();
    assert_eq!(init.phase(), Phase::Running { paused: false });
    assert_eq!(container.stats().await.unwrap().pids, 2);
    assert_eq!(container.pids().await.unwrap(), [2, 3]);
    container.update(br#"{"pids":{"limit":5}}"#).await.unwrap();
    assert_eq!(kind(container.update(b"{").await), ErrorKind::InvalidArgument);
    assert_eq!(fixture.topics(), ["create", "start", "paused", "resumed"]);
    fixture.service.shutdown(true).await;
}

#[tokio::test]
async fn an_exec_lives_beside_the_container() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    container.start(None).await.unwrap();
    let output = fixture.directory.path().join("exec");
    let stdio = StdioSpec { stdout: format!("file://{}", output.display()), ..Default::default() };
    container.exec("e", &process_json("echo hi; exit 5"), stdio.clone()).await.unwrap();
    let again = container.exec("e", &process_json("true"), stdio.clone()).await;
    assert_eq!(kind(again), ErrorKind::AlreadyExists);
    assert_eq!(kind(container.exec("../e", b"{}", stdio).await), ErrorKind::InvalidArgument);
    container.start(Some("e")).await.unwrap();
    let exec = container.process(Some("e")).unwrap();
    assert_eq!(timeout(LONG, exec.wait()).await.unwrap().code, 5);
    assert_eq!(std::fs::read_to_string(output).unwrap(), "hi\n");
    assert_eq!(container.delete_exec("e").await.unwrap().code, 5);
    assert_eq!(kind(container.delete_exec("e").await), ErrorKind::NotFound);
    let topics = fixture.topics();
    assert_eq!(topics, ["create", "start", "exec-added", "exec-started", "exit"]);
    fixture.service.shutdown(true).await;
}

#[tokio::test]
async fn the_containers_end_is_the_end_of_its_execs() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    container.start(None).await.unwrap();
    container.exec("e", &process_json("sleep 100"), StdioSpec::default()).await.unwrap();
    container.start(Some("e")).await.unwrap();
    let exec = container.process(Some("e")).unwrap();
    container.kill(None, 9, false).await.unwrap();
    assert_eq!(wait(&container).await.code, 137);
    assert_eq!(timeout(LONG, exec.wait()).await.unwrap().code, 137);
    fixture.service.delete("c").await.unwrap();
    let topics = fixture.topics();
    assert_eq!(topics.iter().filter(|topic| *topic == "exit").count(), 2, "{topics:?}");
    assert_eq!(topics.last().unwrap(), "delete");
}

#[tokio::test]
async fn a_missing_command_is_told_apart() {
    let mut fixture = Fixture::new();
    let request = fixture.request_with("c", &["no-such-command"]);
    let container = fixture.service.create(request, TaskCreate::default()).await.unwrap();
    let error = container.start(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    assert!(error.report().contains("executable file not found"), "{}", error.report());
    assert_eq!(wait(&container).await.code, 127);
    // Even if nobody deletes it, its VM is gone.
    timeout(LONG, fixture.launcher.sandbox().ended()).await.unwrap();
    fixture.service.delete("c").await.unwrap();
    assert!(fixture.service.get("c").is_err());
    assert_eq!(fixture.topics(), ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_created_container_can_be_killed_and_deleted() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "true").await;
    container.kill(None, 0, false).await.unwrap();
    assert_eq!(container.process(None).unwrap().phase(), Phase::Created);
    container.kill(None, 15, false).await.unwrap();
    assert_eq!(wait(&container).await.code, 143);
    fixture.service.delete("c").await.unwrap();
    create(&fixture, "c", "true").await;
    fixture.service.delete("c").await.unwrap();
    assert_eq!(fixture.topics(), ["create", "exit", "delete", "create", "delete"]);
}

#[tokio::test]
async fn of_a_hundred_deletes_one_wins() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "true").await;
    container.start(None).await.unwrap();
    wait(&container).await;
    let deletes: Vec<_> = (0..100)
        .map(|_| {
            let service = fixture.service.clone();
            tokio::spawn(async move { service.delete("c").await.map(drop) })
        })
        .collect();
    let mut won = 0;
    for delete in deletes {
        match delete.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn of_a_hundred_creates_one_wins() {
    let fixture = Fixture::new();
    let creates: Vec<_> = (0..100)
        .map(|_| {
            let (service, request) = (fixture.service.clone(), fixture.request("c", "true"));
            tokio::spawn(
                async move { service.create(request, TaskCreate::default()).await.map(drop) },
            )
        })
        .collect();
    let mut won = 0;
    for create in creates {
        match create.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(fixture.launcher.launched.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_vm_that_dies_ends_its_container_with_the_reason() {
    let mut fixture = Fixture::new();
    let container = create(&fixture, "c", "sleep 100").await;
    container.start(None).await.unwrap();
    fixture.launcher.sandbox().kill("the vmm was ended by signal 9");
    let exit = wait(&container).await;
    assert_eq!(exit.code, 137);
    assert_eq!(exit.reason.as_deref(), Some("the vmm was ended by signal 9"));
    fixture.service.delete("c").await.unwrap();
    assert_eq!(fixture.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn a_vm_that_dies_before_the_start_ends_its_container_too() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "true").await;
    fixture.launcher.sandbox().kill("the vmm was ended by signal 9");
    assert_eq!(wait(&container).await.code, 137);
    assert_eq!(kind(container.start(None).await), ErrorKind::FailedPrecondition);
    fixture.service.delete("c").await.unwrap();
}

fn misbehaving(behaviour: Behaviour) -> Fixture {
    Fixture::with(FakeLauncher { behaviour, ..Default::default() })
}

#[tokio::test]
async fn an_agent_that_dies_or_lies_at_creation_leaves_nothing() {
    for behaviour in [Behaviour::DiesOnCreate, Behaviour::LiesOnCreate] {
        let mut fixture = misbehaving(behaviour);
        let request = fixture.request("c", "true");
        let result = fixture.service.create(request, TaskCreate::default()).await;
        assert_eq!(kind(result), ErrorKind::SandboxLost, "{behaviour:?}");
        timeout(LONG, fixture.launcher.sandbox().ended()).await.expect("the VM is ended");
        assert!(fixture.service.get("c").is_err());
        assert!(fixture.topics().is_empty());
        assert!(fixture.service.shutdown(false).await, "the shim may exit");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_answer_a_start_loses_its_vm() {
    let fixture = misbehaving(Behaviour::SilentAfterCreate);
    let container = create(&fixture, "c", "true").await;
    let error = container.start(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SandboxLost);
    assert!(error.report().contains("did not answer Start"), "{}", error.report());
    assert_eq!(wait(&container).await.code, 137);
}

#[tokio::test]
async fn kill_works_on_an_agent_that_is_silent() {
    let fixture = misbehaving(Behaviour::SilentAfterCreate);
    let container = create(&fixture, "c", "true").await;
    let starting = tokio::spawn({
        let container = container.clone();
        async move { container.start(None).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    container.kill(None, 9, false).await.unwrap();
    starting.await.unwrap().unwrap_err();
    assert_eq!(wait(&container).await.code, 137);
    fixture.service.delete("c").await.unwrap();
}

#[tokio::test]
async fn exits_told_twice_or_of_nobody_count_once() {
    let mut fixture = misbehaving(Behaviour::TellsExitsTwice);
    let container = create(&fixture, "c", "exit 4").await;
    container.start(None).await.unwrap();
    assert_eq!(wait(&container).await.code, 4);
    fixture.service.delete("c").await.unwrap();
    assert_eq!(fixture.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn an_oom_kill_is_told_before_the_exit() {
    let mut fixture = misbehaving(Behaviour::OutOfMemory);
    let container = create(&fixture, "c", "exit 137").await;
    container.start(None).await.unwrap();
    assert!(wait(&container).await.oom_killed);
    fixture.service.delete("c").await.unwrap();
    assert_eq!(fixture.topics(), ["create", "start", "oom", "exit", "delete"]);
}

#[tokio::test]
async fn a_creation_can_be_cancelled() {
    let delay = Duration::from_secs(60);
    let fixture = Fixture::with(FakeLauncher { delay, ..Default::default() });
    let creating = tokio::spawn({
        let (service, request) = (fixture.service.clone(), fixture.request("c", "true"));
        async move { service.create(request, TaskCreate::default()).await.map(drop) }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!fixture.service.shutdown(false).await, "something is being created");
    fixture.service.kill("c", None, 9, false).await.unwrap();
    assert_eq!(kind(creating.await.unwrap()), ErrorKind::Cancelled);
    assert!(fixture.service.shutdown(false).await);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_does_not_hold_the_exit() {
    let fixture = Fixture::new();
    let mut request = fixture.request("c", "yes");
    let fifo = fixture.directory.path().join("stdout");
    make_fifo(&fifo);
    request.stdio.stdout = fifo.to_str().unwrap().into();
    let container = fixture.service.create(request, TaskCreate::default()).await.unwrap();
    container.start(None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = Instant::now();
    container.kill(None, 9, false).await.unwrap();
    assert_eq!(wait(&container).await.code, 137);
    assert!(before.elapsed() < Duration::from_secs(5), "took {:?}", before.elapsed());
}

#[tokio::test]
async fn output_held_by_a_background_process_does_not_hold_the_exit() {
    let fixture = Fixture::new();
    let container = create(&fixture, "c", "echo hi; sleep 100 & exit 0").await;
    let before = Instant::now();
    container.start(None).await.unwrap();
    assert_eq!(wait(&container).await.code, 0);
    assert!(before.elapsed() < Duration::from_secs(5), "took {:?}", before.elapsed());
    assert_eq!(fixture.output("c", "stdout"), "hi\n");
}
