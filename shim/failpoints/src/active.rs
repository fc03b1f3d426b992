//! The fail points of builds for tests.

use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::steps::{self, Step};

const FAIL: &str = "CAISSON_FAIL";
const LOG: &str = "CAISSON_FAIL_LOG";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Error(i32),
    Panic,
    Kill,
    Pause,
}

#[derive(Debug)]
struct Plan {
    step: &'static str,
    action: Action,
    nth: u32,
    hits: AtomicU32,
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
    let text = env::var(FAIL).ok()?;
    // A test that injects nothing by a slip of the pen would pass.
    Some(Plan::parse(&text).unwrap_or_else(|problem| panic!("${FAIL} {text:?}: {problem}")))
});

static LOG_FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os(LOG).map(PathBuf::from));

/// A step that may fail: the injected error, if this is the one.
pub fn hit(step: &Step) -> io::Result<()> {
    match due(step) {
        Some(Action::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
        Some(action) => {
            act(step, action);
            Ok(())
        }
        None => Ok(()),
    }
}

/// A step that cannot fail, but at which the process may die.
pub fn pass(step: &Step) {
    if let Some(action) = due(step) {
        act(step, action);
    }
}

fn due(step: &Step) -> Option<Action> {
    let plan = PLAN.as_ref().filter(|plan| plan.step == step.name);
    let due = plan.filter(|plan| plan.hits.fetch_add(1, Ordering::Relaxed) + 1 == plan.nth);
    note(step, due.is_some());
    due.map(|plan| plan.action)
}

fn act(step: &Step, action: Action) {
    match action {
        Action::Panic => panic!("injected at {}", step.name),
        Action::Kill => {
            // SAFETY: both calls take numbers only.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            pause();
        }
        Action::Pause => pause(),
        Action::Error(_) => panic!("{} cannot fail with an error", step.name),
    }
}

fn pause() -> ! {
    loop {
        std::thread::park();
    }
}

fn note(step: &Step, struck: bool) {
    let Some(path) = LOG_FILE.as_ref() else { return };
    let line = format!("{}{}\n", step.name, if struck { "!" } else { "" });
    // One write: several processes may append. Without its log a test fails by itself.
    let file = fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

impl Plan {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, action) = text.split_once('=').ok_or("no STEP=ACTION")?;
        let step = steps::ALL.iter().find(|step| step.name == name).ok_or("no such step")?;
        let (action, nth) = action.split_once(':').unwrap_or((action, "1"));
        let nth = nth.parse().map_err(|_| format!("{nth:?} is no number"))?;
        let action = match action {
            "eio" => Action::Error(libc::EIO),
            "enospc" => Action::Error(libc::ENOSPC),
            "emfile" => Action::Error(libc::EMFILE),
            "enomem" => Action::Error(libc::ENOMEM),
            "eacces" => Action::Error(libc::EACCES),
            "panic" => Action::Panic,
            "kill" => Action::Kill,
            "pause" => Action::Pause,
            other => return Err(format!("no action {other:?}")),
        };
        Ok(Self { step: step.name, action, nth, hits: AtomicU32::new(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse("shim.vm.spawn=enospc:3").unwrap();
        assert_eq!((plan.step, plan.nth), ("shim.vm.spawn", 3));
        assert_eq!(plan.action, Action::Error(libc::ENOSPC));
        assert_eq!(Plan::parse("shim.vm.spawn=kill").unwrap().nth, 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("shim.vm.spawn", "STEP=ACTION"),
            ("shim.vm.spawned_not=kill", "no such step"),
            ("shim.vm.spawn=explode", "explode"),
            ("shim.vm.spawn=kill:x", "no number"),
        ] {
            assert!(Plan::parse(text).unwrap_err().contains(word), "{text}");
        }
    }
}
