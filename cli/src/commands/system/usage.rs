//! What there is, and what it takes of the disk.

use std::collections::{HashMap, HashSet};

use caisson_rootfs::{ImageSummary, LayerUse};

use crate::{
    commands::prune::allocated_bytes,
    engine::Engine,
    failure::Failure,
    records::{Container, State},
    volumes::Volume,
};

/// Everything that takes space.
pub(super) struct Usage {
    pub(super) images: Vec<ImageUse>,
    /// Each layer once.
    pub(super) layers_bytes: u64,
    /// Of layers that only images have which no container uses.
    pub(super) reclaimable_layers_bytes: u64,
    pub(super) containers: Vec<ContainerUse>,
    pub(super) volumes: Vec<VolumeUse>,
}

pub(super) struct ImageUse {
    pub(super) image: ImageSummary,
    /// Of layers that other images have too.
    pub(super) shared_bytes: u64,
    pub(super) unique_bytes: u64,
}

pub(super) struct ContainerUse {
    pub(super) container: Container,
    /// Of its writable disk and its logs, as far as they are filled.
    pub(super) bytes: u64,
}

pub(super) struct VolumeUse {
    pub(super) volume: Volume,
    /// Containers that have it.
    pub(super) links: usize,
    pub(super) bytes: u64,
}

pub(super) fn measure(engine: &Engine) -> Result<Usage, Failure> {
    let images = engine.store.images()?;
    let layers = engine.store.layer_uses()?;
    let used: HashSet<String> =
        images.iter().filter(|image| image.leases > 0).map(|image| image.id.to_string()).collect();
    let (layers_bytes, reclaimable_layers_bytes) = layer_bytes(&layers, &used);
    let mut images = images.into_iter().map(|image| image_use(image, &layers)).collect::<Vec<_>>();
    images.sort_by(|a, b| b.image.created.cmp(&a.image.created));
    let mut containers = Vec::new();
    for container in engine.records.all()? {
        let bytes = allocated_bytes(&engine.globals.container_dir(&container.id));
        containers.push(ContainerUse { container, bytes });
    }
    let mut volumes = Vec::new();
    let all = engine.volumes()?;
    for volume in all.all()? {
        let links = engine.users_of(&volume.name, None)?.len();
        let bytes = allocated_bytes(&all.data(&volume.name));
        volumes.push(VolumeUse { volume, links, bytes });
    }
    Ok(Usage { images, layers_bytes, reclaimable_layers_bytes, containers, volumes })
}

/// The bytes of all layers, and of those that are in no image of `used`.
fn layer_bytes(layers: &[LayerUse], used: &HashSet<String>) -> (u64, u64) {
    let mut sizes: HashMap<&str, (u64, bool)> = HashMap::new();
    for layer in layers {
        let (_, is_used) = sizes.entry(&layer.diff_id).or_insert((layer.size_bytes, false));
        *is_used |= used.contains(&layer.image);
    }
    let all = sizes.values().map(|(bytes, _)| bytes).sum();
    let unused = sizes.values().filter(|(_, is_used)| !is_used).map(|(bytes, _)| bytes).sum();
    (all, unused)
}

fn image_use(image: ImageSummary, layers: &[LayerUse]) -> ImageUse {
    let id = image.id.to_string();
    let (mut shared_bytes, mut unique_bytes) = (0, 0);
    for layer in layers.iter().filter(|layer| layer.image == id) {
        let others = layers.iter().any(|other| other.diff_id == layer.diff_id && other.image != id);
        *if others { &mut shared_bytes } else { &mut unique_bytes } += layer.size_bytes;
    }
    ImageUse { image, shared_bytes, unique_bytes }
}

impl Usage {
    pub(super) fn containers_bytes(&self) -> u64 {
        self.containers.iter().map(|each| each.bytes).sum()
    }

    /// Of containers that do not run.
    pub(super) fn reclaimable_containers_bytes(&self) -> u64 {
        let stopped = |each: &&ContainerUse| each.container.state != State::Running;
        self.containers.iter().filter(stopped).map(|each| each.bytes).sum()
    }

    pub(super) fn volumes_bytes(&self) -> u64 {
        self.volumes.iter().map(|each| each.bytes).sum()
    }

    /// Of volumes that no container has.
    pub(super) fn reclaimable_volumes_bytes(&self) -> u64 {
        self.volumes.iter().filter(|each| each.links == 0).map(|each| each.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(image: &str, diff_id: &str, size_bytes: u64) -> LayerUse {
        LayerUse { image: image.to_owned(), diff_id: diff_id.to_owned(), size_bytes }
    }

    #[test]
    fn layers_count_once_and_are_reclaimable_if_nobody_needs_them() {
        let layers = [
            layer("a", "base", 100),
            layer("b", "base", 100),
            layer("b", "top", 7),
            layer("c", "c", 1),
        ];
        let used = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<HashSet<_>>();
        assert_eq!(layer_bytes(&layers, &used(&[])), (108, 108));
        assert_eq!(layer_bytes(&layers, &used(&["a"])), (108, 8));
        assert_eq!(layer_bytes(&layers, &used(&["b"])), (108, 1));
        assert_eq!(layer_bytes(&layers, &used(&["a", "b", "c"])), (108, 0));
    }
}
