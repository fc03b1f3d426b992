//! The front-end for containerd: its `start` and `delete` commands, and the server that
//! `start` leaves behind.

use std::{path::PathBuf, process, sync::Arc};

use async_trait::async_trait;
use containerd_shim::{
    Config, DeleteResponse, Error, Flags, StartOpts,
    asynchronous::{ExitSignal, Shim, publisher::RemotePublisher, spawn},
    protos::{
        protobuf::{Message, MessageField, well_known_types::any::Any},
        ttrpc::context::Context,
        types::introspection::{RuntimeInfo, RuntimeVersion},
    },
};
use tokio::sync::mpsc;

use crate::{
    assets::Assets,
    events::{self, BoxedEvent, EventSink},
    exit::Exit,
    logger,
    process::LOST_CODE,
    rootfs::Source,
    serve::Directories,
    service::Service,
    stages,
    task::TaskService,
    vm::{self, VmLauncher},
};

/// The runtime's name, as `ctr run --runtime` takes it.
pub const RUNTIME_ID: &str = "io.containerd.caisson.v2";

/// Where the server's address stands in the bundle, by containerd's convention.
const ADDRESS_FILE: &str = "address";

/// One invocation by containerd; the working directory is the bundle.
pub struct CaissonShim {
    namespace: String,
    bundle: PathBuf,
    exit: Arc<ExitSignal>,
}

/// What this shim does differently from the crate's defaults.
pub fn config() -> Config {
    Config {
        // One log for both front-ends.
        no_setup_logger: true,
        // The vmm is the only child; its exit status belongs to who watches it.
        no_reaper: true,
        no_sub_reaper: true,
        ..Default::default()
    }
}

#[async_trait]
impl Shim for CaissonShim {
    type T = TaskService;

    async fn new(_: &str, flags: &Flags, _: &mut Config) -> Self {
        let bundle = match flags.bundle.as_str() {
            "" => std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            bundle => PathBuf::from(bundle),
        };
        logger::install(flags.debug);
        if flags.action.is_empty() {
            stages::stamp("shim", "started");
            if let Err(error) = logger::write_into_bundle(&bundle) {
                eprintln!("{RUNTIME_ID}: open the log in {}: {error}", bundle.display());
            }
        }
        Self { namespace: flags.namespace.clone(), bundle, exit: Arc::default() }
    }

    async fn start_shim(&mut self, opts: StartOpts) -> Result<String, Error> {
        let grouping = opts.id.clone();
        let address = spawn(opts, &grouping, Vec::new()).await?;
        // So that a later `delete` finds the socket of a shim that was killed.
        let file = self.bundle.join(ADDRESS_FILE);
        std::fs::write(&file, &address)
            .map_err(|err| Error::IoError { context: format!("write {}", file.display()), err })?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> Result<DeleteResponse, Error> {
        vm::reap(&self.bundle).map_err(|error| {
            Error::Other(format!(
                "clean up after the shim: {error}: {:?}",
                std::error::Error::source(&error)
            ))
        })?;
        if let Ok(address) = std::fs::read_to_string(self.bundle.join(ADDRESS_FILE)) {
            let path = address.trim().trim_start_matches("unix://");
            // A shim that ended properly has removed it.
            let _ = std::fs::remove_file(path);
        }
        let exit = match Exit::load(&self.bundle) {
            Ok(Some(exit)) => exit,
            _ => Exit::now(LOST_CODE),
        };
        Ok(DeleteResponse {
            exit_status: exit.code.into(),
            exited_at: events::exited_at(&exit),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> TaskService {
        let assets = match Assets::locate() {
            Ok(assets) => assets,
            Err(error) => {
                log::error!("{error}");
                process::exit(1);
            }
        };
        let (sink, events) = EventSink::channel();
        tokio::spawn(forward(publisher, self.namespace.clone(), events));
        let directories = Directories::default();
        let launcher = VmLauncher { assets, state: directories.state };
        let service = Service::new(launcher, Source { root: directories.root }, sink);
        TaskService::new(service, self.exit.clone())
    }
}

/// Hands events to containerd, one after the other.
async fn forward(
    publisher: RemotePublisher,
    namespace: String,
    mut events: mpsc::UnboundedReceiver<BoxedEvent>,
) {
    while let Some(event) = events.recv().await {
        let topic = event.topic();
        if let Err(error) = publisher.publish(Context::default(), &topic, &namespace, event).await {
            log::warn!("publish {topic}: {error}");
        }
    }
}

/// The answer to `-v`.
pub fn version() -> String {
    format!("containerd-shim-caisson-v2:\n  Version:  {}", env!("CARGO_PKG_VERSION"))
}

/// What a bundle may ask for (runtime-spec, features.md).
pub fn features() -> serde_json::Value {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false },
            "seccomp": { "enabled": true, "archs": ["SCMP_ARCH_X86_64"] },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
        },
    })
}

/// The answer to `-info`: a protobuf message with the runtime-spec's features.
pub fn info() -> Vec<u8> {
    let info = RuntimeInfo {
        name: RUNTIME_ID.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
                .to_owned(),
            value: features().to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    info.write_to_bytes().expect("a message without required fields serialises")
}
