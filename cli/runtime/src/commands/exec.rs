//! `exec`: a further process.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use caisson_cli::{names, options::environment};
use oci_spec::runtime::{Capabilities, Capability, Process, Spec};

use super::{CommandResult, check_console, check_preserved, write_pid_file};
use crate::{
    args::ExecArgs,
    container::Container,
    error::{RuntimeError, io_error},
    keeper,
};

pub(super) fn exec(root: &Path, args: &ExecArgs) -> CommandResult {
    check_preserved(args.preserve_fds)?;
    let container = Container::load(root, &args.id)?;
    let process = process(&container, args)?;
    let terminal = process.terminal().unwrap_or(false);
    check_console(terminal, args.detach, args.console_socket.as_deref())?;
    container.connect_alive()?;
    let exec = prepare(&container, &process)?;
    if args.detach {
        let keeper = keeper::spawn(root, &container, Some(&exec), args.console_socket.as_deref());
        return match keeper.and_then(|keeper_pid| match &args.pid_file {
            Some(path) => write_pid_file(path, keeper_pid),
            None => Ok(()),
        }) {
            Ok(()) => Ok(0),
            Err(error) => Err(forget(&container, &exec, error)),
        };
    }
    let kept = keeper::prepare_exec(&container, &exec)
        .map_err(|error| forget(&container, &exec, error))?;
    if let Some(path) = &args.pid_file {
        write_pid_file(path, std::process::id())?;
    }
    Ok(kept.attend())
}

fn forget(container: &Container, exec: &str, error: RuntimeError) -> RuntimeError {
    let _ = std::fs::remove_dir_all(container.exec_directory(exec));
    error
}

/// Makes the process's directory; the id that names it.
fn prepare(container: &Container, process: &Process) -> Result<String, RuntimeError> {
    let failed = |source| RuntimeError::Io {
        action: "read random numbers for",
        path: container.bundle(),
        source,
    };
    let exec = names::new_id().map_err(failed)?;
    let directory = container.exec_directory(&exec);
    DirBuilder::new().mode(0o700).create(&directory).map_err(io_error("make", &directory))?;
    let path = directory.join(keeper::EXEC_PROCESS);
    let text = serde_json::to_vec(process)
        .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
    std::fs::write(&path, text).map_err(io_error("write", path))?;
    Ok(exec)
}

/// The process that a file describes, or the container's own with what the flags change.
fn process(container: &Container, args: &ExecArgs) -> Result<Process, RuntimeError> {
    if let Some(path) = &args.process {
        let text = std::fs::read(path).map_err(io_error("read", path))?;
        return serde_json::from_slice(&text)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source });
    }
    if args.command.is_empty() {
        return Err(RuntimeError::Usage("no command, and no --process".to_owned()));
    }
    let path = container.bundle().join("config.json");
    let text = std::fs::read(&path).map_err(io_error("read", &path))?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
    let own = spec.process().clone();
    changed(own.ok_or(RuntimeError::Incomplete { path, field: "process" })?, args)
}

fn changed(mut process: Process, args: &ExecArgs) -> Result<Process, RuntimeError> {
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if !args.env.is_empty() {
        let caller = |name: &str| std::env::var(name).ok();
        let added = environment::from_flags(&[], &args.env, &caller)?;
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(added);
        process.set_env(Some(env));
    }
    if let Some(user) = &args.user {
        let (uid, gid) = parse_user(user)?;
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !args.additional_gids.is_empty() {
        process.user_mut().set_additional_gids(Some(args.additional_gids.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    for name in &args.cap {
        add_capability(&mut process, name)?;
    }
    Ok(process)
}

fn parse_user(user: &str) -> Result<(u32, Option<u32>), RuntimeError> {
    let (uid, gid) = match user.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (user, None),
    };
    let number = |text: &str| {
        text.parse().map_err(|_| RuntimeError::Usage(format!("--user {user}: not UID[:GID]")))
    };
    Ok((number(uid)?, gid.map(number).transpose()?))
}

fn add_capability(process: &mut Process, name: &str) -> Result<(), RuntimeError> {
    let unknown = || RuntimeError::Usage(format!("--cap {name}: no capability of this name"));
    let value = serde_json::Value::from(name.to_ascii_uppercase());
    let capability: Capability = serde_json::from_value(value).map_err(|_| unknown())?;
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(capability);
        Some(set)
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn exec_args(line: &str) -> ExecArgs {
        let words = ["caisson-runtime", "exec"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Exec(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_change_the_containers_own_process() {
        let own: Process = serde_json::from_value(serde_json::json!({
            "args": ["sleep"], "cwd": "/", "env": ["A=1"], "user": { "uid": 0, "gid": 0 },
        }))
        .unwrap();
        let args = exec_args("-t -u 5:6 -e B=2 --cwd /tmp --cap CAP_NET_ADMIN id sh -c ls");
        let process = changed(own.clone(), &args).unwrap();
        assert_eq!(process.args().as_deref().unwrap(), ["sh", "-c", "ls"]);
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=2"]);
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.terminal(), Some(true));
        let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert!(bounding.contains(&Capability::NetAdmin));
        for bad in ["-u root id ls", "-u 1:x id ls", "--cap NOPE id ls", "-e =x id ls"] {
            assert!(changed(own.clone(), &exec_args(bad)).is_err(), "{bad}");
        }
    }
}
