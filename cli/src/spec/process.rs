//! `process`: arguments, environment, user, capabilities, limits.

use oci_spec::runtime::Process;
use serde_json::{Value, json};

use super::SpecError;
use crate::{
    config::{ContainerConfig, Ulimit},
    options::{capabilities, environment},
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What systemd gives a Docker daemon and thus its containers. The kernel's own defaults
/// are those of a small machine.
const DEFAULT_ULIMITS: [(&str, i64, i64); 3] =
    [("nofile", 1024, 524_288), ("nproc", -1, -1), ("core", -1, -1)];

/// What `exec` may set otherwise than the container's first process has it.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub tty: bool,
    pub privileged: bool,
    pub console: Option<(u16, u16)>,
}

/// The container's first process.
pub(super) fn build(config: &ContainerConfig, hostname: &str) -> Value {
    let mut defaults = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        defaults.push("TERM=xterm".to_owned());
    }
    let mut process = json!({
        "terminal": config.tty,
        "user": user(&config.user),
        "args": config.args(),
        "env": environment::with_defaults(defaults, &config.env),
        "cwd": config.working_dir,
        "capabilities": capability_sets(&config.security.capabilities),
        "rlimits": rlimits(&config.limits.ulimits),
        "noNewPrivileges": config.security.no_new_privileges,
    });
    if let Some(adjustment) = config.limits.oom_score_adj {
        process["oomScoreAdj"] = adjustment.into();
    }
    process
}

/// A further process in the container.
pub fn exec_process(
    config: &ContainerConfig,
    id: &str,
    options: &ExecOptions,
) -> Result<Process, SpecError> {
    let mut base = config.clone();
    base.entrypoint = options.args.clone();
    base.command.clear();
    base.tty = options.tty;
    base.env = environment::with_defaults(config.env.clone(), &options.env);
    if let Some(user) = &options.user {
        base.user.clone_from(user);
    }
    if let Some(directory) = &options.working_dir {
        base.working_dir.clone_from(directory);
    }
    if options.privileged {
        base.security.capabilities = capabilities::ALL.map(str::to_owned).to_vec();
    }
    let mut process = build(&base, config.hostname_or(id));
    if let (true, Some((columns, rows))) = (options.tty, options.console) {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    serde_json::from_value(process).map_err(SpecError::Invalid)
}

/// Names and numbers alike are looked up by the agent, which sees the image's files: a
/// number's group and supplementary groups come from there too.
fn user(user: &str) -> Value {
    let mut value = json!({ "uid": 0, "gid": 0 });
    if !user.is_empty() {
        value["username"] = user.into();
    }
    value
}

/// Without ambient and inheritable sets, so that another user than root has none in
/// effect; the agent takes them from a process that is not root's.
fn capability_sets(names: &[String]) -> Value {
    json!({
        "bounding": names,
        "effective": names,
        "permitted": names,
        "inheritable": [],
        "ambient": [],
    })
}

fn rlimits(own: &[Ulimit]) -> Vec<Value> {
    let defaults = DEFAULT_ULIMITS
        .iter()
        .filter(|(name, ..)| !own.iter().any(|limit| limit.name == *name))
        .map(|&(name, soft, hard)| rlimit(name, soft, hard));
    defaults.chain(own.iter().map(|limit| rlimit(&limit.name, limit.soft, limit.hard))).collect()
}

fn rlimit(name: &str, soft: i64, hard: i64) -> Value {
    // -1 is RLIM_INFINITY.
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    json!({
        "type": format!("RLIMIT_{}", name.to_ascii_uppercase()),
        "soft": value(soft),
        "hard": value(hard),
    })
}
