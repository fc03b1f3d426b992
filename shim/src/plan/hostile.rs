//! Specs that nobody should write: none of them panics, and what is taken can be sent.

use std::fs;

use caisson_agent_protocol::MAX_FRAME_BYTES;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// With something in each place that is read.
fn spec() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "box",
        "domainname": "example",
        "annotations": { "a": "b", "io.caisson.vcpus": "2" },
        "process": {
            "terminal": true,
            "consoleSize": { "height": 24, "width": 80 },
            "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [4], "username": "" },
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin", "A=b"],
            "cwd": "/srv",
            "capabilities": { "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"], "inheritable": [], "ambient": [] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024 }],
            "noNewPrivileges": true,
            "oomScoreAdj": 500,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
        ],
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "uts" },
                { "type": "ipc" }, { "type": "network" }],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": { "net.ipv4.ip_forward": "0" },
            "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3,
                "fileMode": 438, "uid": 0, "gid": 0 }],
            "resources": {
                "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }],
                "memory": { "limit": 1073741824, "swap": 1073741824, "reservation": 1 },
                "cpu": { "shares": 1024, "quota": 1000, "period": 100000, "cpus": "0-1" },
                "pids": { "limit": 100 },
            },
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                    "args": [{ "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ" }] }] },
        },
    })
}

fn planned(spec: &Value) -> Option<Result<ContainerPlan, PlanError>> {
    let spec = serde_json::from_value(spec.clone()).ok()?;
    let surroundings = Surroundings {
        ports: StdioPorts::default(),
        terminal: false,
        vcpus: 2,
        interfaces: vec![],
    };
    Some(container("c", &spec, surroundings).map(|planned| planned.container))
}

/// Every place in `value`, as a JSON pointer.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

const TEXTS: &[&str] = &[
    "",
    "/",
    "..",
    "/..",
    "/../../etc",
    "a\0b",
    "/a\0b",
    "/proc",
    "/proc/self/mem",
    "/sys",
    "/dev",
    "bind",
    "rbind",
    "remount",
    "user",
    "time",
    "CAP_",
    "CAP_SYS_ADMIN",
    "-1",
    "0",
    "\u{1b}[2J",
    "\u{202e}",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_KILL",
    "a",
    "b",
    "p",
    "u",
    "none",
    "RLIMIT_CPU",
    "kernel.core_pattern",
    "size=99999999999999999999",
    "lowerdir=/etc",
];

/// What a field is not expected to hold.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => prop::sample::select(TEXTS).prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => prop::sample::select(&[i64::MIN, -1, 0, 1, 4095, 4096, i64::MAX][..]).prop_map(Value::from),
        1 => (1_usize..6000).prop_map(|length| Value::from("/x".repeat(length))),
        1 => any::<String>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => any::<bool>().prop_map(Value::from),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Replace(Value),
    /// As many of the same as this.
    Repeat(usize),
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => odd().prop_map(Change::Replace),
        1 => (2_usize..300).prop_map(Change::Repeat),
        1 => Just(Change::Remove),
    ]
}

fn apply(spec: &mut Value, place: &prop::sample::Index, change: Change) {
    let mut all = Vec::new();
    places(spec, "", &mut all);
    let chosen = place.get(&all).clone();
    match change {
        Change::Replace(value) => *spec.pointer_mut(&chosen).expect("a place of it") = value,
        Change::Repeat(count) => {
            if let Some(Value::Array(items)) = spec.pointer_mut(&chosen)
                && let Some(first) = items.first().cloned()
            {
                items.extend(std::iter::repeat_n(first, count));
            }
        }
        Change::Remove => {
            if let Some((parent, name)) = chosen.rsplit_once('/')
                && let Some(Value::Object(fields)) = spec.pointer_mut(parent)
            {
                fields.remove(name);
            }
        }
    }
}

fn assert_sound(plan: &ContainerPlan) {
    let bytes = serde_json::to_vec(plan).unwrap();
    assert!(bytes.len() <= MAX_PLAN_BYTES && MAX_PLAN_BYTES < MAX_FRAME_BYTES);
    assert_eq!(&serde_json::from_slice::<ContainerPlan>(&bytes).unwrap(), plan);
    let has_nul = |text: &String| text.contains('\0');
    assert!(!plan.process.args.is_empty());
    assert!(!plan.process.args.iter().chain(&plan.process.env).any(has_nul));
    assert!(plan.process.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
    for mount in &plan.mounts {
        assert!(mount.destination.starts_with('/') && mount.destination != "/");
        assert!(!mount.destination.split('/').any(|name| name == ".."));
        assert!(![&mount.source, &mount.data, &mount.destination].into_iter().any(has_nul));
        let in_proc = mount.destination == "/proc" || mount.destination.starts_with("/proc/");
        assert!(!in_proc || mount.destination == "/proc" && mount.fstype == "proc");
    }
    for path in plan.masked_paths.iter().chain(&plan.readonly_paths) {
        assert!(path.starts_with('/') && !has_nul(path));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_spec_panics_and_what_is_taken_can_be_sent(
        changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 1..5),
    ) {
        let mut spec = spec();
        for (place, change) in changes {
            apply(&mut spec, &place, change);
        }
        if let Some(Ok(plan)) = planned(&spec) {
            assert_sound(&plan);
        }
    }

    #[test]
    fn no_bytes_panic_as_a_process(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = exec(&bytes, false, Vec::new());
    }
}

#[test]
fn the_spec_that_is_changed_is_a_good_one() {
    assert_sound(&planned(&spec()).unwrap().unwrap());
}

#[test]
fn what_does_not_fit_a_frame_is_refused_before_there_is_a_vm() {
    // Small in the spec, large in the plan: one file, bound again and again.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "x".repeat(1 << 20)).unwrap();
    let bind = json!({ "destination": "/etc/hosts", "source": file, "type": "bind",
        "options": ["bind", "ro"] });
    let mut large = spec();
    large["mounts"] = json!(vec![bind; 100]);
    assert!(matches!(planned(&large), Some(Err(PlanError::PlanTooLarge { .. }))));
    // Escapes make text longer than it is.
    let mut large = spec();
    large["process"]["env"] = json!([format!("A={}", "\u{1}".repeat(1 << 20))]);
    assert!(matches!(planned(&large), Some(Err(PlanError::PlanTooLarge { .. }))));
    let process = serde_json::to_vec(&large["process"]).unwrap();
    assert!(matches!(exec(&process, false, Vec::new()), Err(PlanError::PlanTooLarge { .. })));
}

#[test]
fn strings_that_mount_would_cut_are_refused() {
    for (field, value) in [
        ("source", json!("a\0b")),
        ("source", json!("x".repeat(5000))),
        ("options", json!([format!("x={}", "y".repeat(5000))])),
        ("options", json!(["a\0b"])),
        ("destination", json!("/a\0b")),
        ("destination", json!("relative")),
    ] {
        let mut spec = spec();
        spec["mounts"][1][field] = value.clone();
        let error = planned(&spec).unwrap().unwrap_err();
        assert!(matches!(error, PlanError::Invalid { .. }), "{field} = {value}: {error}");
    }
}

#[test]
fn a_config_that_is_no_file_or_has_no_end_is_refused() {
    let bundle = tempfile::tempdir().unwrap();
    let path = bundle.path().join("config.json");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the string ends in NUL and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(load(bundle.path()), Err(PlanError::NotAFile { .. })));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(matches!(load(bundle.path()), Err(PlanError::NotAFile { .. })));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "[".repeat(1 << 20)).unwrap();
    assert!(matches!(load(bundle.path()), Err(PlanError::Parse { .. })));
    fs::write(&path, vec![b' '; MAX_CONFIG_BYTES as usize + 1]).unwrap();
    assert!(matches!(load(bundle.path()), Err(PlanError::TooLarge { .. })));
}
