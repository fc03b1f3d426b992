//! A container's state, as the runtime-spec has it (runtime.md, State).

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::container::{Container, ContainerStatus};

/// The state as JSON, with the fields that runc adds.
pub(crate) fn value(container: &Container, status: ContainerStatus, pid: u32) -> Value {
    let record = &container.record;
    let state = State {
        oci_version: &record.oci_version,
        id: &record.id,
        pid,
        status: status.name(),
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        created: &record.created,
        annotations: &record.annotations,
        owner: "",
    };
    json!(state)
}

pub(crate) fn json(container: &Container, status: ContainerStatus, pid: u32) -> String {
    value(container, status, pid).to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: u32,
    status: &'static str,
    bundle: &'a PathBuf,
    rootfs: &'a PathBuf,
    created: &'a str,
    annotations: &'a std::collections::HashMap<String, String>,
    owner: &'static str,
}
