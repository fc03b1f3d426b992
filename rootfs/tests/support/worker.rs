//! A store that unpacks by the real `caisson-unpack`.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use caisson_rootfs::{
    Digest, ImportConfig, ImportError, ImportSource, Limits, Store, StoreOptions, Unpacker,
    progress::Silent,
};

pub(crate) fn unpacker() -> Unpacker {
    Unpacker::at(env!("CARGO_BIN_EXE_caisson-unpack"))
}

pub(crate) fn store(root: &Path, limits: Limits) -> Store {
    let options = StoreOptions { limits, unpacker: unpacker(), ..StoreOptions::default() };
    Store::open_with(root, options).unwrap()
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0)
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn import(store: &Store, data: impl Read) -> Result<Digest, ImportError> {
    let config = ImportConfig { created: Some(std::time::UNIX_EPOCH), ..ImportConfig::default() };
    store.import(ImportSource::Reader(Box::new(data)), None, &config, &Silent)
}

/// Files of layers and blobs, complete or not.
pub(crate) fn left(root: &Path) -> Vec<PathBuf> {
    ["layers", "blobs/sha256", "blobs/sha512"]
        .iter()
        .flat_map(|directory| fs::read_dir(root.join(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}
