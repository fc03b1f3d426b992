//! `inspect`: everything known about containers and images, as JSON.

use std::process::ExitCode;

use caisson_rootfs::{Image, Reference};
use caisson_vmm::config::Rate;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{print_line, ps};
use crate::{
    config::{LogRotation, Mount, MountSource, Network},
    engine::Engine,
    failure::{CommandResult, Failure},
    format::{
        template::{Format, Template},
        units,
    },
    globals::Globals,
    options::signal,
    records::{Container, RecordError, State},
    volumes,
};

#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// Format output: "json" or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,

    /// Only inspect objects of the given type (container|image|volume)
    #[arg(long = "type", value_name = "string", hide_possible_values = true)]
    pub kind: Option<Kind>,

    #[arg(value_name = "NAME|ID", required = true, hide = true)]
    pub names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Container,
    Image,
    Volume,
}

#[derive(Debug, thiserror::Error)]
#[error("no such object: {0}")]
struct NoSuchObject(String);

pub(super) fn inspect(globals: &Globals, args: &InspectArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let engine = Engine::open(globals)?;
    let mut found = Vec::new();
    let mut failed = false;
    for name in &args.names {
        match look_up(&engine, name, args.kind) {
            Ok(object) => found.push(object),
            Err(failure) => {
                failure.report();
                failed = true;
            }
        }
    }
    print(&found, &format)?;
    if failed { Err(Failure::quiet(1)) } else { Ok(ExitCode::SUCCESS) }
}

pub(super) fn print(found: &[Value], format: &Format) -> Result<(), Failure> {
    let filled = |template: &Template| {
        found.iter().try_for_each(|object| print_line(&template.fill(object)?))
    };
    match format {
        Format::Lines(template) | Format::Table(template) => filled(template),
        Format::Json => print_line(&serde_json::to_string(found)?),
        Format::Default => print_line(&serde_json::to_string_pretty(found)?),
    }
}

fn look_up(engine: &Engine, name: &str, kind: Option<Kind>) -> Result<Value, Failure> {
    if kind == Some(Kind::Volume) {
        return volume(engine, name);
    }
    if kind != Some(Kind::Image) {
        match engine.records.find(name) {
            Ok(found) => return Ok(container(engine, &found)),
            Err(RecordError::NotFound(_)) if kind.is_none() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match engine.store.resolve(name) {
        Ok(found) => Ok(image(&found)),
        Err(caisson_rootfs::StoreError::NotFound { .. }) if kind.is_none() => {
            volume(engine, name).map_err(|_| NoSuchObject(name.to_owned()).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn volume(engine: &Engine, name: &str) -> Result<Value, Failure> {
    let volumes = engine.volumes()?;
    Ok(super::volume::described(&volumes, &volumes.find(name)?))
}

/// In the shape of Docker's, as far as it applies.
fn container(engine: &Engine, container: &Container) -> Value {
    let config = container.config.clone().unwrap_or_default();
    let args = config.args();
    let limits = &config.limits;
    json!({
        "Id": container.id,
        "Created": units::rfc3339(Some(container.created)),
        "Path": args.first().cloned().unwrap_or_default(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": {
            "Status": ps::state(container),
            "Running": container.state == State::Running,
            "Paused": container.paused,
            "Restarting": false,
            "OOMKilled": container.oom_killed,
            "Dead": container.state == State::Unknown,
            "Pid": container.pid,
            "ExitCode": container.exit_code,
            "Error": container.error,
            "StartedAt": units::rfc3339(container.started),
            "FinishedAt": units::rfc3339(container.finished),
        },
        "Image": config.image_id,
        "Name": format!("/{}", container.name),
        "LogPath": if config.keeps_logs() { engine.log_path(&container.id).display().to_string() } else { String::new() },
        "HostConfig": {
            "AutoRemove": config.auto_remove,
            "Binds": config.mounts.iter().filter_map(bind).collect::<Vec<_>>(),
            "CapAdd": config.security.capabilities,
            "CpuShares": limits.cpu_shares.unwrap_or(0),
            "CpusetCpus": limits.cpuset_cpus.clone().unwrap_or_default(),
            "DiskBandwidth": rate(limits.disk_limit.bandwidth),
            "DiskIops": rate(limits.disk_limit.operations),
            "LogConfig": { "Type": config.log_driver, "Config": log_options(config.log_rotation) },
            "Memory": limits.memory_bytes.unwrap_or(0),
            "MemoryReservation": limits.memory_reservation_bytes.unwrap_or(0),
            "MemorySwap": limits.memory_swap_bytes.unwrap_or(0),
            "NanoCpus": limits.nano_cpus.unwrap_or(0),
            "NetworkMode": config.network.name(),
            "PidsLimit": limits.pids,
            "PortBindings": port_bindings(&config.network),
            "Privileged": config.security.privileged,
            "ReadonlyRootfs": config.read_only,
            "ShmSize": limits.shm_bytes,
            "StorageSize": limits.storage_bytes,
            "Sysctls": config.sysctls,
            "Tmpfs": config.tmpfs.iter().map(|t| (t.path.clone(), t.options.join(",").into()))
                .collect::<serde_json::Map<_, _>>(),
            "Ulimits": limits.ulimits.iter()
                .map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }))
                .collect::<Vec<_>>(),
        },
        "Config": {
            "Hostname": config.hostname_or(&container.id),
            "User": config.user,
            "Tty": config.tty,
            "OpenStdin": config.open_stdin,
            "Env": config.env,
            "Cmd": config.command,
            "Entrypoint": config.entrypoint,
            "Image": config.image,
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
            "StopSignal": signal::name(config.stop_signal),
            "StopTimeout": config.stop_timeout_secs,
        },
        "Mounts": config.mounts.iter().map(|mounted| mount(engine, mounted)).collect::<Vec<_>>(),
        "NetworkSettings": { "Networks": {} },
    })
}

/// By the container's port, as Docker has it.
fn port_bindings(network: &Network) -> serde_json::Map<String, Value> {
    let mut bindings = serde_json::Map::new();
    for port in network.ports() {
        let binding = json!({
            "HostIp": port.host.ip().to_string(),
            "HostPort": port.host.port().to_string(),
        });
        let list = bindings.entry(format!("{}/tcp", port.guest)).or_insert_with(|| json!([]));
        list.as_array_mut().expect("it was made as one").push(binding);
    }
    bindings
}

fn mount(engine: &Engine, mount: &Mount) -> Value {
    let mut told = json!({
        "Destination": mount.target,
        "Mode": mount.mode.clone().unwrap_or_default(),
        "RW": !mount.readonly,
    });
    let (kind, source, propagation) = match &mount.source {
        MountSource::Bind { path, .. } => ("bind", path.clone(), "rprivate"),
        MountSource::Volume { name, .. } => {
            told["Name"] = json!(name);
            told["Driver"] = json!("local");
            let data = volumes::data(&engine.globals.volumes_dir(), name);
            ("volume", data.display().to_string(), "")
        }
    };
    told["Type"] = json!(kind);
    told["Source"] = json!(source);
    told["Propagation"] = json!(propagation);
    told
}

/// As `--volume` takes it, if it did.
fn bind(mount: &Mount) -> Option<String> {
    let source = match &mount.source {
        MountSource::Bind { path, .. } => path,
        MountSource::Volume { anonymous: true, .. } => return None,
        MountSource::Volume { name, .. } => name,
    };
    let mode = mount.mode.as_ref()?;
    let mode = if mode.is_empty() { String::new() } else { format!(":{mode}") };
    Some(format!("{source}:{}{mode}", mount.target))
}

/// What comes in a second, and at once after a pause; null if there is no limit.
fn rate(rate: Option<Rate>) -> Option<Value> {
    rate.map(|Rate { per_second, burst }| json!({ "PerSecond": per_second, "Burst": burst }))
}

/// As they would be given.
fn log_options(rotation: LogRotation) -> Value {
    let mut options = serde_json::Map::new();
    if let Some(bytes) = rotation.max_bytes {
        options.insert("max-size".into(), bytes.to_string().into());
    }
    if let Some(files) = rotation.max_files {
        options.insert("max-file".into(), files.to_string().into());
    }
    options.into()
}

fn image(image: &Image) -> Value {
    let config = &image.config;
    let tags: Vec<String> = image.references.iter().map(Reference::familiar).collect();
    let digests: Vec<String> = image.repo_digests.iter().map(Reference::familiar).collect();
    json!({
        "Id": image.id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config.created(),
        "Author": config.author(),
        "Architecture": config.architecture(),
        "Os": config.os(),
        "Size": image.size_bytes,
        "Config": config.config(),
        "RootFS": {
            "Type": "layers",
            "Layers": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_vmm::config::RateLimit;

    use crate::config::{ContainerConfig, Limits};

    #[test]
    fn a_container_is_told_in_dockers_shape() {
        let root = tempfile::tempdir().unwrap();
        let engine = Engine::open(&Globals::sample(root.path())).unwrap();
        let config = ContainerConfig {
            image: "busybox".into(),
            command: vec!["sleep".into(), "1".into()],
            stop_signal: 15,
            log_rotation: LogRotation { max_bytes: Some(1 << 20), max_files: Some(3) },
            limits: Limits {
                disk_limit: RateLimit {
                    bandwidth: Some(Rate { per_second: 4096, burst: 8192 }),
                    operations: None,
                },
                ..Limits::default()
            },
            mounts: vec![
                Mount {
                    source: MountSource::Bind { path: "/a".into(), recursive: true, create: true },
                    target: "/data".into(),
                    readonly: true,
                    mode: Some("ro".into()),
                },
                Mount {
                    source: MountSource::Bind { path: "/b".into(), recursive: true, create: false },
                    target: "/b".into(),
                    readonly: false,
                    mode: None,
                },
                Mount {
                    source: MountSource::Volume {
                        name: "data".into(),
                        anonymous: false,
                        copy: true,
                    },
                    target: "/v".into(),
                    readonly: false,
                    mode: Some(String::new()),
                },
            ],
            ..ContainerConfig::default()
        };
        let record = Container::sample("ab".repeat(32), "web", State::Exited, Some(config));
        let told = container(&engine, &record);
        assert_eq!(told["Name"], "/web");
        assert_eq!((&told["Path"], &told["Args"]), (&json!("sleep"), &json!(["1"])));
        assert_eq!(told["State"]["Status"], "exited");
        let host = &told["HostConfig"];
        assert_eq!(host["DiskBandwidth"], json!({ "PerSecond": 4096, "Burst": 8192 }));
        assert_eq!(host["DiskIops"], Value::Null);
        assert_eq!(host["LogConfig"]["Config"], json!({ "max-size": "1048576", "max-file": "3" }));
        assert_eq!(host["Binds"], json!(["/a:/data:ro", "data:/v"]));
        let mounted = json!({ "Type": "bind", "Source": "/a", "Destination": "/data", "Mode": "ro",
            "RW": false, "Propagation": "rprivate" });
        assert_eq!(told["Mounts"][0], mounted);
        assert_eq!(
            (&told["Mounts"][1]["RW"], &told["Mounts"][1]["Mode"]),
            (&json!(true), &json!(""))
        );
        assert_eq!(told["Config"]["StopSignal"], "SIGTERM");
        assert_eq!(told["Config"]["Hostname"], "abababababab");
        assert!(
            matches!(look_up(&engine, "web", None), Err(failure) if failure.is(|_: &NoSuchObject| true))
        );
    }
}
