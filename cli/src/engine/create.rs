//! Creating a container: its record, its hold on the image, its directory and disk.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path};

use caisson_failpoints::{hit, pass, steps};
use caisson_rootfs::{DEFAULT_DISK_BYTES, Image};

use super::{Engine, EngineError, io_error, lease_owner, remove::Volumes, volumes};
use crate::{
    config::ContainerConfig,
    names,
    records::{Container, State, lock::ContainerLock},
};

/// The writable disk in a container's directory.
pub(super) const DISK: &str = "disk.ext4";

/// A container to be.
pub struct NewContainer<'a> {
    pub name: Option<&'a str>,
    pub image: &'a Image,
    pub config: ContainerConfig,
}

/// A container in state `creating` or `created`, and its lock.
pub struct Created {
    pub container: Container,
    pub(super) lock: ContainerLock,
}

impl Engine {
    /// Creates the container; after an error nothing of it is left. Until it is started or
    /// settled its state is `creating`: if this process dies, it goes.
    pub fn create(&mut self, new: NewContainer<'_>) -> Result<Created, EngineError> {
        self.check_mounts(&new.config)?;
        let id = names::new_id().map_err(EngineError::Random)?;
        let mut config = new.config;
        volumes::name_volumes(&mut config)?;
        config.image_id = new.image.id.to_string();
        // Damage shows now, not at the first start.
        config.layers =
            self.store.layers(new.image)?.iter().filter_map(|layer| file_name(layer)).collect();
        hit(&steps::CLI_CREATE_RECORD).map_err(io_error("record", &self.globals.root))?;
        let (container, lock) = self.records.insert(&id, new.name, &config)?;
        pass(&steps::CLI_CREATE_RECORDED);
        self.tell(&container, "create");
        if let Err(error) = self.furnish(&container, new.image, &config) {
            // The first error is the one to tell; what cannot be undone now is reaped later.
            if let Err(clean_up) = self.discard(&container, Volumes::Remove) {
                tracing::warn!(%clean_up, "undo the creation of {id}");
            }
            return Err(error);
        }
        pass(&steps::CLI_CREATE_DONE);
        Ok(Created { container, lock })
    }

    /// Leaves the container in state `created`.
    pub fn settle(&self, created: Created) -> Result<Container, EngineError> {
        let id = &created.container.id;
        self.records.set_state(id, State::Created)?;
        Ok(self.records.by_id(id)?)
    }

    /// Removes what was created and is not to be.
    pub fn abandon(&self, created: Created) -> Result<(), EngineError> {
        self.discard(&created.container, Volumes::Remove)
    }

    fn furnish(
        &self,
        container: &Container,
        image: &Image,
        config: &ContainerConfig,
    ) -> Result<(), EngineError> {
        // Fails if the image has gone since it was looked up.
        self.store.lease(&lease_owner(&container.id), image)?;
        let directory = self.globals.container_dir(&container.id);
        hit(&steps::CLI_CREATE_DIRECTORY)
            .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory))
            .map_err(io_error("create", &directory))?;
        self.make_volumes(config)?;
        let size = config.limits.storage_bytes.unwrap_or(DEFAULT_DISK_BYTES);
        Ok(self.store.create_writable_disk(&directory.join(DISK), size)?)
    }
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
