//! The volumes of containers: made for them, and removed with them where nobody has named
//! them.

use std::collections::HashSet;

use super::{Engine, EngineError};
use crate::{
    config::{ContainerConfig, Mount, MountSource},
    records::Container,
    volumes::{self, VolumeError, Volumes},
};

impl Engine {
    /// The volumes. Opened where they are needed: most containers have none.
    pub fn volumes(&self) -> Result<Volumes, EngineError> {
        Ok(Volumes::open(self.store.open_database()?, self.globals.volumes_dir())?)
    }

    /// Removes a volume that no container uses.
    pub fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        self.volumes()?.remove(name, || self.users_of(name, None))
    }

    /// The ids of the containers that use a volume, but for one.
    pub fn users_of(&self, name: &str, but: Option<&str>) -> Result<Vec<String>, EngineError> {
        let uses = |container: &Container| {
            let config = container.config.as_ref();
            config.is_some_and(|config| volumes_of(config).any(|(volume, _)| volume == name))
        };
        let containers = self.records.all()?.into_iter();
        let others = containers.filter(|container| but != Some(container.id.as_str()));
        Ok(others.filter(uses).map(|container| container.id).collect())
    }

    /// The names of all volumes that containers use.
    pub fn used_volumes(&self) -> Result<HashSet<String>, EngineError> {
        let configs = self.records.all()?.into_iter().filter_map(|container| container.config);
        let names = |config: ContainerConfig| {
            volumes_of(&config).map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        Ok(configs.flat_map(names).collect())
    }

    /// What another container mounts, for one that is to mount the same.
    pub fn mounts_of(&self, container: &str, readonly: bool) -> Result<Vec<Mount>, EngineError> {
        let container = self.records.find(container)?;
        let damaged = || EngineError::Damaged { name: container.name.clone() };
        let mut mounts = container.config.as_ref().ok_or_else(damaged)?.mounts.clone();
        for mount in &mut mounts {
            mount.readonly |= readonly;
            mount.mode = None;
            if let MountSource::Volume { copy, .. } = &mut mount.source {
                *copy = false;
            }
        }
        Ok(mounts)
    }

    /// Makes the volumes of a container whose record names them: so none is removed meanwhile.
    pub(super) fn make_volumes(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        if volumes_of(config).next().is_none() {
            return Ok(());
        }
        let mut volumes = self.volumes()?;
        for (name, anonymous) in volumes_of(config) {
            volumes.create(name, &Default::default(), anonymous)?;
        }
        Ok(())
    }

    /// Removes those of the container's volumes that nobody has named and nobody else uses.
    pub(super) fn remove_anonymous_volumes(
        &self,
        container: &Container,
    ) -> Result<(), EngineError> {
        let Some(config) = &container.config else { return Ok(()) };
        for (name, _) in volumes_of(config).filter(|(_, anonymous)| *anonymous) {
            let users = || self.users_of(name, Some(&container.id));
            match self.volumes()?.remove(name, users) {
                Err(EngineError::Volume(VolumeError::NotFound(_) | VolumeError::InUse { .. })) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Gives those volumes names that the user has not named.
pub(super) fn name_volumes(config: &mut ContainerConfig) -> Result<(), EngineError> {
    for mount in &mut config.mounts {
        if let MountSource::Volume { name, anonymous: true, .. } = &mut mount.source
            && name.is_empty()
        {
            *name = volumes::anonymous_name()?;
        }
    }
    Ok(())
}

/// The names of a container's volumes, and whether each is anonymous.
fn volumes_of(config: &ContainerConfig) -> impl Iterator<Item = (&str, bool)> {
    config.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Volume { name, anonymous, .. } => Some((name.as_str(), *anonymous)),
        MountSource::Bind { .. } => None,
    })
}
