//! The table: every step that tests make fail, in the order in which a container's life
//! passes them.
//!
//! The tests go through it ([`ALL`]), so a new row is tested as soon as code passes it:
//! rows that begin with `shim.` by `shim/tests/faults.rs`, the others by
//! `cli/tests/lifecycle/fault_steps.rs`. Both fail for a row that no code passes.

/// What becomes of an operation in which a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It fails, with the cause in its message, and leaves nothing.
    Fails,
    /// It succeeds all the same, with a warning.
    Tolerated,
    /// The step cannot fail; the process may die there.
    OnlyDies,
}

/// One step.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// `<process>.<operation>.<what>`.
    pub name: &'static str,
    pub outcome: Outcome,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $outcome:ident;)+) => {
        $($(#[$doc])* pub const $constant: Step =
            Step { name: $name, outcome: Outcome::$outcome };)+
        /// Every row.
        pub const ALL: &[Step] = &[$($constant),+];
    };
}

steps! {
    // The store: images.
    /// A layer's image is begun, under a temporary name.
    STORE_LAYER_CREATE = "store.layer.create", Fails;
    /// It is written; the sync comes.
    STORE_LAYER_SYNC = "store.layer.sync", Fails;
    STORE_LAYER_RENAME = "store.layer.rename", Fails;
    /// The file has its name, and no row yet.
    STORE_LAYER_ROW = "store.layer.row", Fails;
    STORE_BLOB_CREATE = "store.blob.create", Fails;
    STORE_BLOB_SYNC = "store.blob.sync", Fails;
    STORE_BLOB_RENAME = "store.blob.rename", Fails;
    /// All files are there; the image's rows come.
    STORE_IMAGE_RECORD = "store.image.record", Fails;
    /// In the transaction, before its commit.
    STORE_COMMIT = "store.commit", OnlyDies;
    STORE_COMMITTED = "store.committed", OnlyDies;

    // The command line creates a container.
    CLI_CREATE_RECORD = "cli.create.record", Fails;
    /// The row `creating` is there and locked.
    CLI_CREATE_RECORDED = "cli.create.recorded", OnlyDies;
    STORE_LEASE = "store.lease", Fails;
    CLI_CREATE_DIRECTORY = "cli.create.directory", Fails;
    STORE_DISK_CREATE = "store.disk.create", Fails;
    STORE_DISK_WRITE = "store.disk.write", Fails;
    CLI_VOLUME_CREATE = "cli.volume.create", Fails;
    CLI_CREATE_DONE = "cli.create.done", OnlyDies;

    // It starts one.
    CLI_START_STATE = "cli.start.state", Fails;
    /// The row `starting` is there.
    CLI_START_ANNOUNCED = "cli.start.announced", OnlyDies;
    CLI_START_BUNDLE = "cli.start.bundle", Fails;
    CLI_START_SPEC = "cli.start.spec", Fails;
    CLI_START_SHIM = "cli.start.shim", Fails;
    CLI_START_SPAWNED = "cli.start.spawned", OnlyDies;
    CLI_START_CREATED = "cli.start.created", OnlyDies;
    CLI_START_STARTED = "cli.start.started", OnlyDies;
    /// The process runs; the row `running` comes.
    CLI_START_RUNNING = "cli.start.running", Fails;
    CLI_MONITOR_SPAWN = "cli.monitor.spawn", Fails;

    // The shim creates one.
    SHIM_CREATE_RESERVE = "shim.create.reserve", Fails;
    SHIM_CREATE_PLAN = "shim.create.plan", Fails;
    SHIM_BRIDGE_ADDRESS = "shim.bridge.address", Fails;
    SHIM_BRIDGE_MASQUERADE = "shim.bridge.masquerade", Fails;
    /// The namespace is there, and empty.
    SHIM_BRIDGE_JOIN = "shim.bridge.join", Fails;
    SHIM_BRIDGE_PUBLISH = "shim.bridge.publish", Fails;
    SHIM_NETWORK_READ = "shim.network.read", Fails;
    SHIM_CREATE_IMAGES = "shim.create.images", Fails;
    SHIM_VM_LEASE = "shim.vm.lease", Fails;
    SHIM_VM_JOURNAL_WRITE = "shim.vm.journal_write", Fails;
    SHIM_VM_JOURNAL_RENAME = "shim.vm.journal_rename", Fails;
    SHIM_VM_LISTEN = "shim.vm.listen", Fails;
    /// The cgroup is made; its limits and the vmm come.
    SHIM_VM_CGROUP = "shim.vm.cgroup", Fails;
    SHIM_VM_FILE_SERVER = "shim.vm.file_server", Fails;
    SHIM_VM_TAP = "shim.vm.tap", Fails;
    /// One way of two: the tap is there.
    SHIM_VM_REDIRECT = "shim.vm.redirect", Fails;
    SHIM_VM_CONFIG = "shim.vm.config", Fails;
    SHIM_VM_SPAWN = "shim.vm.spawn", Fails;
    /// The vmm runs; the journal does not name it yet.
    SHIM_VM_SPAWNED = "shim.vm.spawned", Fails;
    SHIM_VM_WATCH = "shim.vm.watch", Fails;
    SHIM_VM_AGENT_READY = "shim.vm.agent_ready", OnlyDies;
    SHIM_CREATE_CALL = "shim.create.call", Fails;
    SHIM_CREATE_STREAMS = "shim.create.streams", Fails;
    SHIM_CREATE_DONE = "shim.create.done", OnlyDies;

    // It starts it, and further processes.
    SHIM_START_CALL = "shim.start.call", Fails;
    SHIM_START_DONE = "shim.start.done", OnlyDies;
    SHIM_EXEC_RESERVE = "shim.exec.reserve", Fails;
    /// The agent has prepared it; the streams come.
    SHIM_EXEC_PREPARED = "shim.exec.prepared", Fails;
    SHIM_EXEC_DONE = "shim.exec.done", OnlyDies;

    // It ends.
    SHIM_EXIT_TOLD = "shim.exit.told", OnlyDies;
    SHIM_EXIT_WRITE = "shim.exit.write", Tolerated;
    SHIM_EXIT_RENAME = "shim.exit.rename", Tolerated;
    SHIM_EXIT_RECORDED = "shim.exit.recorded", OnlyDies;
    SHIM_VM_ENDED = "shim.vm.ended", OnlyDies;
    SHIM_VM_UNDIRECT = "shim.vm.undirect", Tolerated;
    SHIM_VM_REMOVE = "shim.vm.remove", Tolerated;
    SHIM_DELETE_DONE = "shim.delete.done", OnlyDies;
    SHIM_END_SOCKET = "shim.end.socket", Tolerated;

    // The command line records the end, and removes it.
    CLI_FINISH_BUNDLE = "cli.finish.bundle", Fails;
    CLI_FINISH_RECORD = "cli.finish.record", Fails;
    CLI_REMOVE_STATE = "cli.remove.state", Fails;
    /// The row `removing` is there.
    CLI_REMOVE_ANNOUNCED = "cli.remove.announced", OnlyDies;
    CLI_REMOVE_DIRECTORY = "cli.remove.directory", Fails;
    STORE_RELEASE = "store.release", Fails;
    CLI_REMOVE_ROW = "cli.remove.row", Fails;

    // A volume is removed.
    CLI_VOLUME_REMOVE = "cli.volume.remove", Fails;

    // An image is removed.
    STORE_GC_REMOVE = "store.gc.remove", Fails;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let names: HashSet<_> = ALL.iter().map(|step| step.name).collect();
        assert_eq!(names.len(), ALL.len());
        for name in names {
            let process = name.split('.').next().unwrap();
            assert!(["shim", "store", "cli"].contains(&process), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b"._".contains(&b)), "{name}");
        }
    }
}
