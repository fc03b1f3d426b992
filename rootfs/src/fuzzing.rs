//! The parsers, for the fuzz targets: within small limits, in this process.

use std::io::Read;

use crate::compress::{Bounds, Compression, HEAD_BYTES};
use crate::digest::Digest;
use crate::layer::{read_layer, uuid_of};
use crate::limits::Limits;
use crate::manifest::{created, parse_config, parse_document};
use crate::tar::{EntryKind, Reader};
use crate::unpack::UnpackError;

/// Limits that inputs of some KiB can reach.
fn limits() -> Limits {
    Limits {
        layer_bytes: 4 << 20,
        entries: 200,
        depth: 20,
        tree_bytes: 256 << 10,
        ratio: 100,
        ratio_free_bytes: 64 << 10,
        xattr_bytes: 8 << 10,
        zstd_window_log: 20,
        ..Limits::default()
    }
}

/// Reads a whole archive; how many entries it has, if it is one.
pub fn read_tar(bytes: &[u8]) -> Option<usize> {
    let limits = limits();
    let mut reader = Reader::new(bytes, limits.tar());
    let (mut count, mut buffer) = (0, [0; 4096]);
    while let Some(entry) = reader.next_entry().ok()? {
        count += 1;
        assert!(count <= limits.entries as usize);
        assert!(!entry.path.contains(&0) && entry.mode <= 0o7777);
        assert!(entry.uid != u32::MAX && entry.gid != u32::MAX);
        assert!(entry.mtime.nanoseconds < 1_000_000_000);
        assert!(entry.data_offset <= bytes.len() as u64);
        if let EntryKind::File { size, segments } = &entry.kind {
            let mut end = 0;
            for segment in segments.iter().flatten() {
                assert!(segment.offset >= end, "pieces overlap");
                end = segment.offset + segment.length;
                assert!(end <= *size, "a piece behind the file's end");
            }
        }
        let mut data = 0;
        loop {
            match reader.read_data(&mut buffer).ok()? {
                0 => break,
                length => data += length as u64,
            }
        }
        assert_eq!(data, entry.data_bytes);
    }
    Some(count)
}

/// The image of a layer, or why there is none.
pub fn convert_layer(tar: &[u8]) -> Result<Vec<u8>, String> {
    let file = |_| tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let (image, tails) = (file(0), file(1));
    let contents = read_layer(tar, &image, tails, &limits()).map_err(|error| error.to_string())?;
    let info = contents.write(uuid_of(&Digest::of(tar))).map_err(|error| error.to_string())?;
    // Sparse files are as large as they like to seem.
    if info.bytes > 64 << 20 {
        return Err("too large to read back".to_owned());
    }
    assert_eq!(image.metadata().expect("the file is open").len(), info.bytes);
    let mut bytes = vec![0; info.bytes as usize];
    let read = std::os::unix::fs::FileExt::read_exact_at(&image, &mut bytes, 0);
    read.expect("the image can be read back");
    Ok(bytes)
}

/// Decompresses as a confined process and its parent do together.
pub fn decompress(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let limits = limits();
    let bounds = Bounds::new(&limits, limits.layer_bytes);
    let compression = Compression::detect(&packed[..packed.len().min(HEAD_BYTES)])?;
    let mut decoder =
        compression.decoder(packed, limits.zstd_window_log).map_err(UnpackError::Read)?;
    let (mut data, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        match decoder.read(&mut buffer).map_err(UnpackError::Read)? {
            0 => return Ok(data),
            count => data.extend_from_slice(&buffer[..count]),
        }
        assert!(data.len() as u64 <= limits.layer_bytes + buffer.len() as u64);
        bounds.check(packed.len() as u64, data.len() as u64)?;
    }
}

/// Reads bytes as each of the documents that describe an image.
pub fn read_documents(json: &[u8]) {
    let _ = parse_document(json);
    let _ = created(json);
    if let Ok(config) = parse_config(json) {
        let _ = crate::load::check_config(&config, &limits());
        // What is kept is what was read.
        let again = serde_json::to_vec(&config).expect("a configuration is plain data");
        parse_config(&again).expect("a configuration survives a round trip");
    }
}
