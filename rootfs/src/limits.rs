//! What an image may cost. Every number here stops an attack, none an honest image.

use caisson_archive::tar::TarLimits;
use serde::{Deserialize, Serialize};

/// Caps on foreign input. The defaults are generous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Uncompressed bytes of one layer.
    pub layer_bytes: u64,
    /// Uncompressed bytes per compressed byte, enforced beyond `ratio_free_bytes`.
    pub ratio: u64,
    pub ratio_free_bytes: u64,
    /// Tar entries of one layer.
    pub entries: u64,
    /// Directories above an entry.
    pub depth: usize,
    /// Bytes of a whole path or of a link's target.
    pub path_bytes: usize,
    /// Bytes of one file name.
    pub name_bytes: usize,
    /// Bytes of all extended attributes of one file, names included.
    pub xattr_bytes: usize,
    /// Apparent size of one file, holes included.
    pub file_bytes: u64,
    /// Memory that one layer's tree may take while it is converted.
    pub tree_bytes: u64,
    /// An image made of a layer or a directory, holes included.
    pub image_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// An image index or manifest.
    pub manifest_bytes: u64,
    /// An image configuration.
    pub config_bytes: u64,
    /// Variables, arguments, labels, ports and volumes of a configuration, each.
    pub config_entries: usize,
    /// Bytes of one of them; no program can be given a longer one.
    pub config_entry_bytes: usize,
    /// Indexes and manifests that are looked at while one archive is loaded.
    pub documents: usize,
    /// Indexes inside indexes.
    pub index_depth: usize,
    /// Images in one archive.
    pub images: usize,
    /// A whole archive that has to be spooled (standard input, or compressed).
    pub archive_bytes: u64,
    /// log2 of the largest zstd window.
    pub zstd_window_log: u32,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Limits {
    /// Those of an archive as such.
    pub(crate) fn tar(&self) -> TarLimits {
        TarLimits { entry_bytes: self.layer_bytes, entries: self.entries }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layer_bytes: 64 * GIB,
            ratio: 2000,
            ratio_free_bytes: GIB,
            entries: 2_000_000,
            depth: 1024,
            path_bytes: 4096,
            name_bytes: 255,
            xattr_bytes: (128 * KIB) as usize,
            file_bytes: 16 << 40,
            tree_bytes: 512 * MIB,
            image_bytes: 256 * GIB,
            layers: 128,
            manifest_bytes: 4 * MIB,
            config_bytes: 8 * MIB,
            config_entries: 4096,
            config_entry_bytes: (128 * KIB) as usize,
            documents: 1024,
            index_depth: 3,
            images: 256,
            archive_bytes: 256 * GIB,
            zstd_window_log: 27,
        }
    }
}
