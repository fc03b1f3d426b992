//! Bundles whose config.json has a few odd places: no panic, and a plan that can be sent.

#![no_main]

#[path = "support/json.rs"]
mod json;

use caisson_agent_protocol::{ContainerPlan, MAX_FRAME_BYTES, plan::StdioPorts};
use caisson_shim::plan::{Surroundings, container, exec};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn spec() -> Value {
    serde_json::from_str(include_str!("support/config.json")).expect("the file is JSON")
}

fuzz_target!(|changes: json::Changes| {
    let mut spec = spec();
    changes.apply(&mut spec);
    let process = spec.get("process").cloned().unwrap_or(json!({}));
    let _ = exec(&serde_json::to_vec(&process).expect("JSON is plain data"), false, Vec::new());
    let Ok(spec) = serde_json::from_value(spec) else { return };
    let surroundings = Surroundings {
        ports: StdioPorts::default(),
        terminal: false,
        vcpus: 1,
        interfaces: Vec::new(),
    };
    let Ok(planned) = container("c", &spec, surroundings) else { return };
    let plan = planned.container;
    let bytes = serde_json::to_vec(&plan).expect("a plan is plain data");
    assert!(bytes.len() < MAX_FRAME_BYTES);
    assert_eq!(serde_json::from_slice::<ContainerPlan>(&bytes).expect("it is a plan"), plan);
    let texts = plan.process.args.iter().chain(&plan.process.env).chain(&plan.masked_paths);
    assert!(!texts.chain(&plan.readonly_paths).any(|text| text.contains('\0')));
    for mount in &plan.mounts {
        assert!(mount.destination.starts_with('/'));
        assert!(!mount.destination.split('/').any(|name| name == ".."));
        assert!(mount.fstype == "proc" || !mount.destination.starts_with("/proc/"));
        let index = mount.source.parse::<usize>();
        assert!(mount.fstype != "virtiofs" || index.is_ok_and(|i| i < planned.shares.len()));
    }
});
