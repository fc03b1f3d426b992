//! Every step of the shim fails once, as an operation that fails and as a process that
//! dies: the error names it, nothing is left, and the next attempt succeeds.

#[allow(unreachable_pub, dead_code, reason = "shared by test binaries")]
mod support;

use std::{collections::BTreeMap, fs, thread};

use caisson_failpoints::{
    Outcome,
    cases::{self, Case},
    steps::{self, Step},
};
use caisson_shim::{
    client::{ClientError, ShimClient, Stdio},
    kind::ErrorKind,
    vm,
};
use support::host::{Host, eventually, is_alive, kill};

/// A step that is passed again and again fails the first times only.
const MAX_TIMES: usize = 3;

/// A container's whole life, up to the first call that fails.
fn live(host: &Host, client: &ShimClient, id: &str) -> Result<(), ClientError> {
    client.create(&host.create_spec(id))?;
    client.start(None)?;
    exec(client)?;
    client.kill(None, 9, true)?;
    assert_eq!(client.wait(None)?.code, 137);
    client.delete(None)?;
    client.shutdown(false)
}

fn exec(client: &ShimClient) -> Result<(), ClientError> {
    let process = serde_json::from_slice(&support::process_json("exit 9")).unwrap();
    client.exec("e", &process, &Stdio::default())?;
    client.start(Some("e"))?;
    assert_eq!(client.wait(Some("e"))?.code, 9);
    client.delete(Some("e")).map(drop)
}

/// Those that a life on this host can pass.
fn steps_of_the_shim(host: &Host) -> impl Iterator<Item = &'static Step> {
    let networks = [
        steps::SHIM_BRIDGE_ADDRESS,
        steps::SHIM_BRIDGE_MASQUERADE,
        steps::SHIM_BRIDGE_JOIN,
        steps::SHIM_BRIDGE_PUBLISH,
        steps::SHIM_NETWORK_READ,
        steps::SHIM_VM_TAP,
        steps::SHIM_VM_REDIRECT,
        steps::SHIM_VM_UNDIRECT,
    ];
    let has_network = host.engine.is_some();
    let of_the_shim = steps::ALL.iter().filter(|step| step.name.starts_with("shim."));
    of_the_shim.filter(move |step| has_network || !networks.contains(step))
}

/// How often a life without a fault passes each step, of the two kinds of life that there
/// are: in an engine's network, and on the bridge.
fn passes(host: &mut Host) -> BTreeMap<String, usize> {
    let mut passes = passes_of_a_life(host);
    if host.engine.is_some() {
        host.use_bridge();
        for (step, times) in passes_of_a_life(host) {
            passes.entry(step).or_insert(times);
        }
    }
    passes
}

fn passes_of_a_life(host: &Host) -> BTreeMap<String, usize> {
    host.inject(None);
    let client = host.spawn("traced", "sleep 100");
    live(host, &client, "traced").unwrap();
    eventually("the shim ends", || host.processes().is_empty());
    let mut passes = BTreeMap::new();
    for step in host.passed() {
        *passes.entry(step).or_default() += 1;
    }
    passes
}

#[test]
fn every_step_of_the_table_is_passed() {
    let Some(mut host) = Host::new() else { return };
    let passes = passes(&mut host);
    let missed: Vec<_> = steps_of_the_shim(&host)
        .map(|step| step.name)
        .filter(|name| !passes.contains_key(*name))
        .collect();
    assert!(missed.is_empty(), "no code passes {missed:?}");
}

#[test]
fn every_step_fails_once_and_the_next_attempt_succeeds() {
    let Some(mut host) = Host::new() else { return };
    let passes = passes(&mut host);
    let times = |step: &Step| passes.get(step.name).map_or(0, |&times| times.min(MAX_TIMES));
    let cases = cases::of(steps_of_the_shim(&host), times);
    assert!(cases.len() > 40, "{}", cases.len());
    cases::try_all(&cases, 6, try_case);
}

fn try_case(injected: Case) {
    let (Case { step, action, .. }, case) = (injected, injected.to_string());
    let mut host = Host::new().unwrap();
    if step.name.starts_with("shim.bridge.") {
        host.use_bridge();
    }
    host.inject(Some(&case));
    let client = host.spawn("c", "sleep 100");
    let lived = live(&host, &client, "c");
    match (action, step.outcome, &lived) {
        ("kill", _, Ok(())) => assert!(dies_after_the_last_reply(step), "{case}: it lived on"),
        ("kill", _, Err(error)) => {
            assert!(matches!(error, ClientError::Gone { .. }), "{case}: {error}");
        }
        (_, Outcome::Tolerated, lived) => assert!(lived.is_ok(), "{case}: {lived:?}"),
        (_, _, Ok(())) => panic!("{case}: nothing has failed"),
        (_, _, Err(error)) => {
            assert!(error.to_string().contains("No space left on device"), "{case}: {error}");
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{case}: {error}");
        }
    }
    // As its client does after an error.
    let _ = client.delete(None);
    let _ = client.shutdown(true);
    eventually(&format!("{case}: the processes are gone"), || host.processes().is_empty());
    assert!(host.passed().contains(&format!("{}!", step.name)), "{case}: not reached");
    if action == "kill" || step.outcome == Outcome::Tolerated {
        vm::reap(&host.path("c")).unwrap();
        let _ = fs::remove_file(host.socket("c"));
        let _ = fs::remove_file(host.path("c/.exit.json.new"));
    }
    assert_eq!(host.leftovers("c"), Vec::<String>::new(), "{case}");

    host.inject(None);
    let client = host.spawn("c", "sleep 100");
    live(&host, &client, "c").unwrap_or_else(|error| panic!("after {case}: {error}"));
    eventually(&format!("after {case}: the processes are gone"), || host.processes().is_empty());
    assert_eq!(host.leftovers("c"), Vec::<String>::new(), "after {case}");
}

/// After the reply to Shutdown nobody waits for the shim any more.
fn dies_after_the_last_reply(step: &Step) -> bool {
    *step == steps::SHIM_END_SOCKET
}

#[test]
fn a_failed_exec_gives_its_descriptors_back() {
    let Some(host) = Host::new() else { return };
    for step in [steps::SHIM_EXEC_RESERVE, steps::SHIM_EXEC_PREPARED] {
        host.inject(Some(&format!("{}=emfile", step.name)));
        let client = host.spawn("c", "sleep 100");
        client.create(&host.create_spec("c")).unwrap();
        client.start(None).unwrap();
        let (shim, _) = client.host_pids().unwrap();
        let open = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
        let before = open();
        let error = exec(&client).unwrap_err();
        assert!(error.to_string().contains("Too many open files"), "{error}");
        eventually("its descriptors are closed", || open() == before);
        exec(&client).unwrap();
        eventually("its descriptors are closed", || open() == before);
        client.shutdown(true).unwrap();
        eventually("the shim ends", || host.processes().is_empty());
    }
}

/// A client that asks and is killed before the answer leaves a shim that hangs at a step:
/// whoever removes the container kills it.
#[test]
fn a_shim_that_hangs_at_any_step_can_be_killed() {
    let Some(host) = Host::new() else { return };
    for step in [steps::SHIM_VM_SPAWNED, steps::SHIM_VM_AGENT_READY, steps::SHIM_CREATE_DONE] {
        host.inject(Some(&format!("{}=pause", step.name)));
        let client = host.spawn("c", "sleep 100");
        let spec = host.create_spec("c");
        let asking = thread::spawn(move || client.create(&spec));
        let reached = format!("{}!", step.name);
        eventually("it hangs", || host.passed().contains(&reached));
        for pid in host.processes() {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if exe.ends_with("shim") && is_alive(pid) {
                kill(pid);
            }
        }
        let error = asking.join().unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Gone { .. }), "{error}");
        eventually("the vmm ends", || host.processes().is_empty());
        vm::reap(&host.path("c")).unwrap();
        assert_eq!(host.leftovers("c"), ["c.sock"]);
    }
}
