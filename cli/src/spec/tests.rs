//! A whole spec, field by field, as Docker's daemon would write it.

use super::*;
use crate::config::{Limits, Mount, MountSource, Security, Tmpfs, Ulimit};
use crate::options::capabilities;

const ID: &str = "a1b2c3d4e5f60718a1b2c3d4e5f60718a1b2c3d4e5f60718a1b2c3d4e5f60718";

fn config() -> ContainerConfig {
    ContainerConfig {
        entrypoint: vec!["sh".into()],
        command: vec!["-c".into(), "true".into()],
        env: vec!["A=1".into()],
        working_dir: "/".into(),
        security: Security {
            capabilities: capabilities::resolve(&[], &[], false).expect("the defaults"),
            ..Security::default()
        },
        ..ContainerConfig::default()
    }
}

fn spec(config: &ContainerConfig) -> Value {
    let context = Context {
        id: ID,
        bundle: Path::new("/run/b"),
        volumes: Path::new("/v"),
        first_start: true,
        console: Some((100, 30)),
    };
    let spec = build(config, &context).expect("a valid spec");
    serde_json::to_value(spec).expect("specs are JSON")
}

#[test]
fn a_plain_container_has_dockers_defaults() {
    let spec = spec(&config());
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["sh", "-c", "true"]));
    assert_eq!(
        process["env"],
        json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=a1b2c3d4e5f6",
            "A=1"
        ])
    );
    assert!(process.get("consoleSize").is_none());
    assert_eq!(process["capabilities"]["bounding"].as_array().map(Vec::len), Some(14));
    assert_eq!(process["noNewPrivileges"], false);
    assert_eq!(spec["hostname"], "a1b2c3d4e5f6");
    assert_eq!(spec["root"]["readonly"], false);
    assert_eq!(spec["linux"]["maskedPaths"].as_array().map(Vec::len), Some(12));
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["linux"]["namespaces"].as_array().map(Vec::len), Some(6));
    assert!(spec["linux"]["resources"].get("memory").is_none());
}

#[test]
fn every_mount_of_docker_is_there() {
    let spec = spec(&config());
    let mounts = spec["mounts"].as_array().expect("mounts");
    let destinations: Vec<&str> =
        mounts.iter().filter_map(|mount| mount["destination"].as_str()).collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/sys",
            "/sys/fs/cgroup",
            "/dev/mqueue",
            "/dev/shm",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/etc/hosts"
        ]
    );
    assert_eq!(mounts[9]["source"], "/run/b/hosts");
    assert!(mounts[3]["options"].as_array().expect("options").contains(&"ro".into()));
}

#[test]
fn what_the_user_mounts_comes_last_inner_places_after_outer_ones() {
    let bind = |path: &str, target: &str, readonly: bool| Mount {
        source: MountSource::Bind { path: path.into(), recursive: !readonly, create: true },
        target: target.into(),
        readonly,
        mode: None,
    };
    let mounts = vec![
        bind("/a", "/data/in/it", true),
        bind("/b", "/data", false),
        bind("/c", "/etc/hosts", true),
    ];
    let tmpfs = vec![Tmpfs { path: "/data/in/".into(), options: Vec::new() }];
    let spec = spec(&ContainerConfig { mounts, tmpfs, ..config() });
    let places: Vec<_> = spec["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .map(|mount| mount["destination"].as_str().expect("a destination"))
        .collect();
    assert_eq!(places[places.len() - 4..], ["/data", "/data/in/", "/etc/hosts", "/data/in/it"]);
    assert_eq!(places.iter().filter(|&&place| place == "/etc/hosts").count(), 1);
    let options = |from_last: usize| &spec["mounts"][places.len() - from_last]["options"];
    assert_eq!(*options(1), json!(["bind", "rprivate", "ro"]));
    assert_eq!(*options(4), json!(["rbind", "rprivate", "rw"]));
}

#[test]
fn limits_reach_their_fields() {
    let mut config = config();
    config.limits = Limits {
        memory_bytes: Some(64 << 20),
        nano_cpus: Some(500_000_000),
        cpu_shares: Some(512),
        pids: Some(9),
        shm_bytes: Some(1 << 20),
        oom_score_adj: Some(7),
        ulimits: vec![Ulimit { name: "nofile".into(), soft: 5, hard: -1 }],
        ..Limits::default()
    };
    let spec = spec(&config);
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(
        (&resources["cpu"]["quota"], &resources["cpu"]["period"]),
        (&50_000.into(), &100_000.into())
    );
    assert_eq!(resources["cpu"]["shares"], 512);
    assert_eq!(resources["pids"]["limit"], 9);
    let rlimits = spec["process"]["rlimits"].as_array().expect("rlimits");
    let nofile: Vec<&Value> = rlimits.iter().filter(|l| l["type"] == "RLIMIT_NOFILE").collect();
    assert_eq!(nofile.len(), 1);
    assert_eq!((&nofile[0]["soft"], &nofile[0]["hard"]), (&5.into(), &u64::MAX.into()));
    assert_eq!(spec["process"]["oomScoreAdj"], 7);
    let shm = spec["mounts"][6]["options"].as_array().expect("options").clone();
    assert!(shm.contains(&"size=1048576".into()), "{shm:?}");
}

#[test]
fn terminals_users_and_read_only_roots() {
    let mut config = config();
    config.tty = true;
    config.user = "www:extra".into();
    config.read_only = true;
    config.hostname = "box".into();
    config.tmpfs =
        vec![Tmpfs { path: "/t".into(), options: vec!["exec".into(), "size=1m".into()] }];
    let spec = spec(&config);
    let process = &spec["process"];
    assert_eq!(process["consoleSize"], json!({"width": 100, "height": 30}));
    assert_eq!(process["user"]["username"], "www:extra");
    assert!(process["env"].as_array().expect("env").contains(&"TERM=xterm".into()));
    assert!(process["env"].as_array().expect("env").contains(&"HOSTNAME=box".into()));
    assert_eq!(spec["root"]["readonly"], true);
    let mounts = spec["mounts"].as_array().expect("mounts");
    let last = mounts.last().expect("mounts");
    assert_eq!(last["options"], json!(["nosuid", "nodev", "exec", "size=1m"]));
    assert_eq!(mounts[7]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn privileged_opens_what_docker_opens() {
    let mut config = config();
    config.security.privileged = true;
    let spec = spec(&config);
    assert!(spec["linux"].get("seccomp").is_none());
    assert!(spec["linux"]["maskedPaths"].as_array().is_none_or(Vec::is_empty));
    assert!(spec["mounts"][3]["options"].as_array().expect("options").contains(&"rw".into()));
    assert_eq!(spec["linux"]["resources"]["devices"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_broken_profile_is_an_error() {
    let mut config = config();
    config.security.seccomp = Seccomp::Profile("{".into());
    let context = Context {
        id: ID,
        bundle: Path::new("/b"),
        volumes: Path::new("/v"),
        first_start: true,
        console: None,
    };
    assert!(matches!(build(&config, &context), Err(SpecError::SeccompProfile(_))));
    config.security.seccomp =
        Seccomp::Profile(r#"{"defaultAction": "SCMP_ACT_FLY", "syscalls": []}"#.into());
    assert!(matches!(build(&config, &context), Err(SpecError::Invalid(_))));
}

#[test]
fn an_exec_inherits_and_overrides() {
    let mut config = config();
    config.user = "app".into();
    config.working_dir = "/srv".into();
    let options = ExecOptions {
        args: vec!["ls".into()],
        env: vec!["A=2".into(), "B=3".into()],
        user: Some("0".into()),
        privileged: true,
        ..ExecOptions::default()
    };
    let process = serde_json::to_value(exec_process(&config, ID, &options).expect("valid"))
        .expect("processes are JSON");
    assert_eq!(process["args"], json!(["ls"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(process["user"]["username"], "0");
    assert_eq!(process["capabilities"]["effective"].as_array().map(Vec::len), Some(41));
    let env = process["env"].as_array().expect("env");
    assert!(
        env.contains(&"A=2".into()) && env.contains(&"B=3".into()) && !env.contains(&"A=1".into())
    );
    assert_eq!(process["terminal"], false);
}

#[test]
fn limits_of_the_disks_are_annotations() {
    use caisson_vmm::config::{Rate, RateLimit};

    assert_eq!(spec(&config())["annotations"], json!({}));
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let disk_limit = RateLimit { bandwidth: rate(1 << 20, 4096), operations: rate(10, 10) };
    let limits = Limits { disk_limit, ..Limits::default() };
    let annotations = spec(&ContainerConfig { limits, ..config() })["annotations"].clone();
    let expected =
        json!({ "io.caisson.disk-bandwidth": "1048576:4096", "io.caisson.disk-iops": "10:10" });
    assert_eq!(annotations, expected);
}
