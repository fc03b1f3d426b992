//! Merges a container's flags with its image's configuration by Docker's rules.

use oci_spec::image::{Config, ImageConfiguration};

use super::{
    capabilities, environment,
    flags::ContainerFlags,
    logging,
    mounts::{self, Mounted},
    network::{NetworkOptionError, network},
    rates, refused,
    signal::{self, InvalidSignal},
    values,
};
use crate::{
    config::{ContainerConfig, Limits, LogDriver, Mount, Security, Tmpfs},
    format::units::{self, UnitError},
};

/// Docker's smallest memory limit.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// What a VM can have.
const MAX_CPUS: u64 = 32;
const MAX_HOSTNAME_LEN: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error(transparent)]
    Refused(#[from] refused::Refused),
    #[error("no command specified")]
    NoCommand,
    #[error(transparent)]
    Environment(#[from] environment::EnvironmentError),
    #[error(transparent)]
    Capability(#[from] capabilities::UnknownCapability),
    #[error(transparent)]
    Value(#[from] values::ValueError),
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error(transparent)]
    Rate(#[from] rates::RateError),
    #[error(transparent)]
    Logging(#[from] logging::LogOptionError),
    #[error("--{flag}")]
    Size { flag: &'static str, source: UnitError },
    #[error("--memory: {bytes} bytes are too few; minimum memory limit allowed is 6MB")]
    MemoryTooSmall { bytes: u64 },
    #[error("--memory-swap must be at least --memory, which must be set too")]
    MemorySwap,
    #[error("--cpus {given}: range of CPUs is from 0.01 to {MAX_CPUS}")]
    Cpus { given: String },
    #[error("the working directory {0:?} is invalid. It needs to be an absolute path")]
    WorkingDir(String),
    #[error("invalid host name {0:?}: letters, digits, dashes and dots, at most 64 characters")]
    Hostname(String),
    #[error("--oom-score-adj must be from -1000 to 1000, not {0}")]
    OomScoreAdj(i32),
    #[error("--pids-limit {0}: it must be positive, or -1 for unlimited")]
    Pids(i64),
    #[error(transparent)]
    Network(#[from] NetworkOptionError),
    #[error("--restart {0}: restart policies are not part of this version; there is `no`")]
    Restart(String),
    #[error(transparent)]
    Signal(#[from] InvalidSignal),
    #[error("{what} holds a NUL byte")]
    Nul { what: &'static str },
}

/// What can be said before the image is known: flags that this version refuses.
pub fn check(flags: &ContainerFlags) -> Result<(), OptionError> {
    flags.refused.check()?;
    network(flags.network.as_deref(), &flags.publish)?;
    if let Some(policy) = flags.restart.as_deref().filter(|&name| name != "no") {
        return Err(OptionError::Restart(policy.to_owned()));
    }
    Ok(())
}

/// The container's configuration. `command` is what stands after the image; `caller`
/// looks up the caller's environment; `inherited` is what other containers mount.
pub fn resolve(
    flags: &ContainerFlags,
    image_name: &str,
    command: &[String],
    image: &ImageConfiguration,
    caller: &dyn Fn(&str) -> Option<String>,
    inherited: Vec<Mount>,
) -> Result<ContainerConfig, OptionError> {
    check(flags)?;
    let empty = Config::default();
    let image = image.config().as_ref().unwrap_or(&empty);
    let (entrypoint, command) = process(flags, command, image)?;
    let user_env = environment::from_flags(&flags.env_file, &flags.env, caller)?;
    let mut labels = image.labels().clone().unwrap_or_default().into_iter().collect::<Labels>();
    labels.extend(environment::labels(&flags.label_file, &flags.label)?);
    let (mounts, tmpfs) = mounts_of(flags, image, inherited)?;
    let log_driver = flags.log_driver.unwrap_or(LogDriver::JsonFile);
    let config = ContainerConfig {
        image: image_name.to_owned(),
        image_id: String::new(),
        layers: Vec::new(),
        entrypoint,
        command,
        env: environment::merge(user_env, image.env().as_deref().unwrap_or_default()),
        working_dir: working_dir(flags, image)?,
        user: flags.user.clone().or_else(|| image.user().clone()).unwrap_or_default(),
        hostname: hostname(flags)?,
        tty: flags.tty,
        open_stdin: flags.interactive,
        auto_remove: flags.rm,
        labels,
        stop_signal: stop_signal(flags, image)?,
        stop_timeout_secs: flags.stop_timeout,
        read_only: flags.read_only,
        tmpfs,
        mounts,
        security: security(flags)?,
        limits: limits(flags)?,
        sysctls: flags.sysctl.iter().map(|text| values::sysctl(text)).collect::<Result<_, _>>()?,
        log_driver,
        log_rotation: logging::rotation(log_driver, &flags.log_opt)?,
        network: network(flags.network.as_deref(), &flags.publish)?,
    };
    refuse_nul(&config)?;
    Ok(config)
}

type Labels = std::collections::BTreeMap<String, String>;

/// Entry point and command: a flag's entry point drops the image's command too.
fn process(
    flags: &ContainerFlags,
    command: &[String],
    image: &Config,
) -> Result<(Vec<String>, Vec<String>), OptionError> {
    let image_command = image.cmd().clone().unwrap_or_default();
    let (entrypoint, default_command) = match flags.entrypoint.as_deref() {
        Some("") => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.to_owned()], Vec::new()),
        None => (image.entrypoint().clone().unwrap_or_default(), image_command),
    };
    let command = if command.is_empty() { default_command } else { command.to_vec() };
    if entrypoint.is_empty() && command.is_empty() {
        return Err(OptionError::NoCommand);
    }
    Ok((entrypoint, command))
}

fn working_dir(flags: &ContainerFlags, image: &Config) -> Result<String, OptionError> {
    let from_image = image.working_dir().clone().filter(|directory| !directory.is_empty());
    match &flags.workdir {
        Some(directory) if directory.starts_with('/') => Ok(directory.clone()),
        Some(directory) => Err(OptionError::WorkingDir(directory.clone())),
        None => {
            let directory = from_image.unwrap_or_else(|| "/".to_owned());
            // An image's relative directory is meant from the root.
            Ok(if directory.starts_with('/') { directory } else { format!("/{directory}") })
        }
    }
}

fn hostname(flags: &ContainerFlags) -> Result<String, OptionError> {
    let Some(name) = &flags.hostname else { return Ok(String::new()) };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_valid = (1..=MAX_HOSTNAME_LEN).contains(&name.len())
        && name.chars().all(is_allowed)
        && !name.starts_with(['-', '.']);
    if is_valid { Ok(name.clone()) } else { Err(OptionError::Hostname(name.clone())) }
}

fn stop_signal(flags: &ContainerFlags, image: &Config) -> Result<i32, OptionError> {
    match flags.stop_signal.as_ref().or(image.stop_signal().as_ref()) {
        Some(text) if !text.is_empty() => Ok(signal::parse(text)?),
        _ => Ok(nix::libc::SIGTERM),
    }
}

/// What `--volume` and `--mount` mount but for tmpfs.
pub fn mounts(flags: &ContainerFlags) -> Result<Vec<Mount>, OptionError> {
    Ok(mounts_of_flags(flags)?.0)
}

fn mounts_of_flags(flags: &ContainerFlags) -> Result<(Vec<Mount>, Vec<Tmpfs>), OptionError> {
    let mut tmpfs: Vec<Tmpfs> =
        flags.tmpfs.iter().map(|text| values::tmpfs(text)).collect::<Result<_, _>>()?;
    let mut mounts: Vec<Mount> =
        flags.volume.iter().map(|text| mounts::volume(text)).collect::<Result<_, _>>()?;
    for text in &flags.mount {
        match mounts::mount(text)? {
            Mounted::Mount(mount) => mounts.push(mount),
            Mounted::Tmpfs(mount) => tmpfs.push(mount),
        }
    }
    Ok((mounts, tmpfs))
}

/// What `--volume`, `--mount` and `--tmpfs` mount, each in a place of its own; in those that are
/// left what is inherited, and then the image's volumes.
fn mounts_of(
    flags: &ContainerFlags,
    image: &Config,
    inherited: Vec<Mount>,
) -> Result<(Vec<Mount>, Vec<Tmpfs>), OptionError> {
    let (mut mounts, tmpfs) = mounts_of_flags(flags)?;
    mounts::refuse_duplicates(&mounts, &tmpfs)?;
    let volumes = image.volumes().iter().flatten();
    let volumes = volumes.map(|place| mounts::anonymous(place, None));
    for mount in inherited.into_iter().map(Ok).chain(volumes) {
        mounts.push(mount?);
        if mounts::refuse_duplicates(&mounts, &tmpfs).is_err() {
            mounts.pop();
        }
    }
    Ok((mounts, tmpfs))
}

fn security(flags: &ContainerFlags) -> Result<Security, OptionError> {
    let (no_new_privileges, seccomp) = values::security(&flags.security_opt)?;
    let capabilities = capabilities::resolve(&flags.cap_add, &flags.cap_drop, flags.privileged)?;
    Ok(Security { privileged: flags.privileged, capabilities, no_new_privileges, seccomp })
}

pub(crate) fn limits(flags: &ContainerFlags) -> Result<Limits, OptionError> {
    let memory_bytes = size("memory", &flags.memory)?.filter(|&bytes| bytes > 0);
    if let Some(bytes) = memory_bytes.filter(|&bytes| bytes < MIN_MEMORY_BYTES) {
        return Err(OptionError::MemoryTooSmall { bytes });
    }
    if let Some(adjustment) = flags.oom_score_adj.filter(|n| !(-1000..=1000).contains(n)) {
        return Err(OptionError::OomScoreAdj(adjustment));
    }
    Ok(Limits {
        memory_bytes,
        memory_reservation_bytes: size("memory-reservation", &flags.memory_reservation)?,
        memory_swap_bytes: memory_swap(flags, memory_bytes)?,
        nano_cpus: nano_cpus(flags)?,
        cpu_shares: flags.cpu_shares.filter(|&shares| shares > 0),
        cpuset_cpus: flags.cpuset_cpus.clone().filter(|set| !set.is_empty()),
        pids: match flags.pids_limit {
            None | Some(-1 | 0) => None,
            Some(limit) => Some(u64::try_from(limit).map_err(|_| OptionError::Pids(limit))?),
        },
        shm_bytes: size("shm-size", &flags.shm_size)?,
        storage_bytes: values::storage(&flags.storage_opt)?,
        oom_score_adj: flags.oom_score_adj,
        ulimits: ulimits(flags)?,
        disk_limit: rates::disk_limit(&flags.disk_bandwidth, &flags.disk_iops)?,
    })
}

fn memory_swap(flags: &ContainerFlags, memory: Option<u64>) -> Result<Option<i64>, OptionError> {
    if flags.memory_swap.as_deref() == Some("-1") {
        return Ok(Some(-1));
    }
    let Some(swap) = size("memory-swap", &flags.memory_swap)?.filter(|&bytes| bytes > 0) else {
        return Ok(None);
    };
    if memory.is_none_or(|memory| swap < memory) {
        return Err(OptionError::MemorySwap);
    }
    i64::try_from(swap).map(Some).map_err(|_| OptionError::MemorySwap)
}

fn nano_cpus(flags: &ContainerFlags) -> Result<Option<u64>, OptionError> {
    let Some(text) = &flags.cpus else { return Ok(None) };
    let nano = units::parse_nano_cpus(text)
        .map_err(|source| OptionError::Size { flag: "cpus", source })?;
    match nano {
        0 => Ok(None),
        10_000_000.. if nano <= MAX_CPUS * 1_000_000_000 => Ok(Some(nano)),
        _ => Err(OptionError::Cpus { given: text.clone() }),
    }
}

/// Of several for one name the last holds.
fn ulimits(flags: &ContainerFlags) -> Result<Vec<crate::config::Ulimit>, OptionError> {
    let mut limits: Vec<crate::config::Ulimit> = Vec::new();
    for text in &flags.ulimit {
        let limit = values::ulimit(text)?;
        limits.retain(|other| other.name != limit.name);
        limits.push(limit);
    }
    Ok(limits)
}

fn size(flag: &'static str, text: &Option<String>) -> Result<Option<u64>, OptionError> {
    text.as_deref()
        .map(units::parse_bytes)
        .transpose()
        .map_err(|source| OptionError::Size { flag, source })
}

/// What reaches `execve` must be C strings; an image's configuration may hold anything.
fn refuse_nul(config: &ContainerConfig) -> Result<(), OptionError> {
    let has_nul = |text: &String| text.contains('\0');
    let checks = [
        ("the command", config.args().iter().any(has_nul)),
        ("an environment variable", config.env.iter().any(has_nul)),
        ("the working directory", has_nul(&config.working_dir)),
        ("the user", has_nul(&config.user)),
    ];
    match checks.into_iter().find(|(_, found)| *found) {
        Some((what, _)) => Err(OptionError::Nul { what }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true, args_override_self = true)]
    struct Run {
        #[command(flatten)]
        flags: ContainerFlags,
        #[arg(trailing_var_arg = true)]
        words: Vec<String>,
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn image() -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(strings(&["/entry"]))
            .cmd(strings(&["serve", "--all"]))
            .env(strings(&["PATH=/image/bin", "MODE=image", "HOST"]))
            .working_dir("/srv")
            .user("app:staff")
            .stop_signal("SIGQUIT")
            .build()
            .expect("a config");
        let rootfs = RootFsBuilder::default().diff_ids(Vec::<String>::new()).build();
        ImageConfigurationBuilder::default()
            .config(config)
            .architecture("amd64")
            .os("linux")
            .rootfs(rootfs.expect("a rootfs"))
            .build()
            .expect("an image")
    }

    fn merged(args: &[&str]) -> Result<ContainerConfig, OptionError> {
        let run =
            Run::try_parse_from([&["run", "--hostname=h"], args].concat()).expect("known flags");
        let caller = |name: &str| (name == "HOST").then(|| "caller".to_owned());
        resolve(&run.flags, "image", &run.words, &image(), &caller, Vec::new())
    }

    #[test]
    fn entrypoint_and_command_merge_as_dockers() {
        let cases: [(&[&str], &[&str]); 5] = [
            (&[], &["/entry", "serve", "--all"]),
            (&["x"], &["/entry", "x"]),
            (&["--entrypoint", "sh"], &["sh"]),
            (&["--entrypoint", "sh", "--", "-c", "x"], &["sh", "-c", "x"]),
            (&["--entrypoint", "", "a", "-e"], &["a", "-e"]),
        ];
        for (args, expected) in cases {
            match merged(args) {
                Ok(config) => assert_eq!(config.args(), expected, "{args:?}"),
                Err(error) => panic!("{args:?}: {error}"),
            }
        }
        assert!(matches!(merged(&["--entrypoint", ""]), Err(OptionError::NoCommand)));
    }

    #[test]
    fn flags_win_over_the_image() {
        let plain = merged(&[]).unwrap();
        assert_eq!(plain.env, ["PATH=/image/bin", "MODE=image"]);
        assert_eq!((plain.working_dir.as_str(), plain.user.as_str()), ("/srv", "app:staff"));
        assert_eq!(plain.stop_signal, 3);
        let set = merged(&[
            "-e",
            "MODE=flag",
            "-e",
            "HOST",
            "-w",
            "/tmp",
            "-u",
            "0",
            "--stop-signal",
            "USR1",
        ])
        .unwrap();
        assert_eq!(set.env, ["MODE=flag", "HOST=caller", "PATH=/image/bin"]);
        assert_eq!((set.working_dir.as_str(), set.user.as_str()), ("/tmp", "0"));
        assert_eq!(set.stop_signal, 10);
    }

    #[test]
    fn limits_are_read_and_bounded() {
        let limits = merged(&[
            "-m",
            "64m",
            "--memory-swap",
            "-1",
            "--cpus",
            "1.5",
            "--pids-limit",
            "7",
            "--ulimit",
            "nofile=1",
            "--ulimit",
            "nofile=2:3",
            "--storage-opt",
            "size=1g",
            "--shm-size",
            "1m",
            "--disk-iops",
            "100:200",
        ])
        .unwrap()
        .limits;
        assert_eq!(limits.memory_bytes, Some(64 << 20));
        assert_eq!(limits.memory_swap_bytes, Some(-1));
        assert_eq!(limits.nano_cpus, Some(1_500_000_000));
        assert_eq!(limits.pids, Some(7));
        assert_eq!(limits.ulimits.len(), 1);
        assert_eq!(limits.storage_bytes, Some(1 << 30));
        assert_eq!(limits.shm_bytes, Some(1 << 20));
        let operations = limits.disk_limit.operations.unwrap();
        assert_eq!((operations.per_second, operations.burst), (100, 200));
        for (bad, message) in [
            (
                ["-m", "5m"],
                "--memory: 5242880 bytes are too few; minimum memory limit allowed is 6MB",
            ),
            (["--cpus", "33"], "--cpus 33: range of CPUs is from 0.01 to 32"),
            (["--pids-limit", "-7"], "--pids-limit -7: it must be positive, or -1 for unlimited"),
        ] {
            assert_eq!(merged(&bad).unwrap_err().to_string(), message);
        }
        for bad in [
            &["-m", "5m"][..],
            &["-m", "lots"],
            &["--memory-swap", "64m"],
            &["-m", "64m", "--memory-swap", "32m"],
            &["--cpus", "0.001"],
            &["--cpus", "33"],
            &["--pids-limit", "-7"],
            &["--disk-bandwidth", "1k"],
            &["--disk-iops", "0"],
            &["--log-opt", "max-size=0"],
            &["--log-driver", "none", "--log-opt", "max-size=1m"],
            &["--oom-score-adj", "1001"],
            &["-w", "relative"],
            &["--hostname=-x"],
            &["--hostname", "a/b"],
            &["--network", "host"],
            &["--restart", "always"],
            &["-p", "80"],
            &["-v", "/a:b"],
            &["-v", "/a:/b", "--tmpfs", "/b"],
            &["--stop-signal", "NOPE"],
        ] {
            assert!(merged(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn neutral_values_are_accepted() {
        let config =
            merged(&["--network", "none", "--restart", "no", "--pids-limit", "-1"]).unwrap();
        assert_eq!(config.limits.pids, None);
    }

    #[test]
    fn configurations_survive_their_record() {
        let config = merged(&["--tmpfs", "/run", "-l", "a=b", "--privileged"]).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ContainerConfig>(&text).unwrap(), config);
    }
}
