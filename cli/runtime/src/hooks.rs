//! The runtime-spec's hooks that run on the host (config.md, POSIX-platform hooks).

use std::{
    io::{self, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use oci_spec::runtime::{Hook, Hooks};

/// How much of a hook's words an error quotes, in bytes.
const WORDS_BYTES: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("start the {kind} hook {}", path.display())]
    Start { kind: &'static str, path: PathBuf, source: io::Error },
    #[error("the {kind} hook {} failed: {ended}{words}", path.display())]
    Failed { kind: &'static str, path: PathBuf, ended: String, words: String },
    #[error("the {kind} hook {} did not end within {seconds} s", path.display())]
    TimedOut { kind: &'static str, path: PathBuf, seconds: i64 },
    #[error(
        "{kind} hooks run inside the container's namespaces, which are a VM's; use createRuntime hooks"
    )]
    InGuest { kind: &'static str },
}

/// What a bundle's hooks are for, by when they run.
#[derive(Debug, Default)]
pub(crate) struct HostHooks {
    /// `prestart`, then `createRuntime`.
    pub create: Vec<(&'static str, Hook)>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

impl HostHooks {
    /// Those that run within the container cannot be had.
    pub(crate) fn of(hooks: Option<&Hooks>) -> Result<Self, HookError> {
        let Some(hooks) = hooks else { return Ok(Self::default()) };
        let inside = [
            ("createContainer", hooks.create_container()),
            ("startContainer", hooks.start_container()),
        ];
        for (kind, hooks) in inside {
            if hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()) {
                return Err(HookError::InGuest { kind });
            }
        }
        let all = |hooks: &Option<Vec<Hook>>| hooks.clone().unwrap_or_default();
        // Deprecated, and what Docker sets networks up by.
        #[allow(deprecated)]
        let prestart = all(hooks.prestart());
        let create = prestart.into_iter().map(|hook| ("prestart", hook));
        let runtime = all(hooks.create_runtime()).into_iter().map(|hook| ("createRuntime", hook));
        Ok(Self {
            create: create.chain(runtime).collect(),
            poststart: all(hooks.poststart()),
            poststop: all(hooks.poststop()),
        })
    }
}

/// Runs one hook to its end, with the container's state on its standard input.
pub(crate) fn run(kind: &'static str, hook: &Hook, state: &str) -> Result<(), HookError> {
    let path = hook.path().clone();
    let mut command = Command::new(&path);
    if let Some([name, arguments @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    let variables = hook.env().iter().flatten().filter_map(|variable| variable.split_once('='));
    command.envs(variables);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = command.spawn();
    let mut child =
        started.map_err(|source| HookError::Start { kind, path: path.clone(), source })?;
    // One that does not read its state is none the worse for it.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(state.as_bytes());
    }
    let limit = hook.timeout().filter(|&seconds| seconds > 0);
    let pid = child.id();
    let Some(output) = wait(child, limit) else {
        kill(pid);
        return Err(HookError::TimedOut { kind, path, seconds: limit.unwrap_or(0) });
    };
    let output = output.map_err(|source| HookError::Start { kind, path: path.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = [output.stdout, output.stderr].concat();
    said.truncate(WORDS_BYTES);
    let said = caisson_shim::text::inert(&said);
    let words = match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    };
    Err(HookError::Failed { kind, path, ended: output.status.to_string(), words })
}

/// `None` if it has not ended within so many seconds.
fn wait(child: Child, limit: Option<i64>) -> Option<io::Result<std::process::Output>> {
    let Some(limit) = limit else { return Some(child.wait_with_output()) };
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(child.wait_with_output());
    });
    ended.recv_timeout(Duration::from_secs(limit.unsigned_abs())).ok()
}

/// A child that the waiting thread has not yet reaped: the number is still its own.
fn kill(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(json: serde_json::Value) -> Hook {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_hook_gets_its_arguments_environment_and_the_state() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let script = format!("(echo $0 $1 $A $HOME; cat) > {}", out.display());
        let hook = hook(serde_json::json!({
            "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=b"],
        }));
        run("prestart", &hook, "{\"id\":\"x\"}").unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "zero one b\n{\"id\":\"x\"}");
    }

    #[test]
    fn one_that_fails_is_quoted_and_one_that_stays_is_ended() {
        let failing = hook(serde_json::json!({
            "path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"],
        }));
        let error = run("createRuntime", &failing, "{}").unwrap_err().to_string();
        assert!(
            error.contains("createRuntime hook /bin/sh failed: exit status: 3: why"),
            "{error}"
        );
        let staying = hook(serde_json::json!({
            "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1,
        }));
        let error = run("prestart", &staying, "{}").unwrap_err();
        assert!(matches!(error, HookError::TimedOut { seconds: 1, .. }), "{error}");
        let missing = hook(serde_json::json!({ "path": "/no/such" }));
        let error = run("poststop", &missing, "{}").unwrap_err().to_string();
        assert_eq!(error, "start the poststop hook /no/such");
    }

    #[test]
    fn hooks_inside_the_container_are_refused_by_name() {
        let hooks: Hooks = serde_json::from_value(serde_json::json!({
            "prestart": [{ "path": "/a" }], "createRuntime": [{ "path": "/b" }],
            "poststop": [{ "path": "/c" }], "startContainer": [],
        }))
        .unwrap();
        let sorted = HostHooks::of(Some(&hooks)).unwrap();
        let kinds: Vec<_> = sorted.create.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["prestart", "createRuntime"]);
        assert_eq!((sorted.poststart.len(), sorted.poststop.len()), (0, 1));
        let inside: Hooks =
            serde_json::from_value(serde_json::json!({ "startContainer": [{ "path": "/d" }] }))
                .unwrap();
        let error = HostHooks::of(Some(&inside)).unwrap_err();
        assert!(error.to_string().starts_with("startContainer hooks run inside"), "{error}");
    }
}
