//! The real `caisson-unpack`: what it makes of layers and directories, good and bad.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use caisson_rootfs::progress::Silent;
use caisson_rootfs::{
    ConvertTreeError, Digest, ImportConfig, ImportSource, Limits, LoadError, LoadSource, Store,
    StoreOptions, TreeOptions, UnpackError, Unpacker, convert_tree,
};

fn unpacker() -> Unpacker {
    Unpacker::at(env!("CARGO_BIN_EXE_caisson-unpack"))
}

fn store(root: &Path, limits: Limits) -> Store {
    let options = StoreOptions { limits, unpacker: unpacker(), ..StoreOptions::default() };
    Store::open_with(root, options).unwrap()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0)
}

fn tar(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |start: usize, bytes: &[u8]| {
        header[start..start + bytes.len()].copy_from_slice(bytes);
    };
    put(0, name.as_bytes());
    put(100, b"0000644\x000000000\x000000000\x00");
    put(124, format!("{:011o}\x0000000000000", data.len()).as_bytes());
    put(148, b"        0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn import(store: &Store, data: impl Read) -> Result<Digest, caisson_rootfs::ImportError> {
    let config = ImportConfig { created: Some(std::time::UNIX_EPOCH), ..ImportConfig::default() };
    store.import(ImportSource::Reader(Box::new(data)), None, &config, &Silent)
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..bytes).map(next).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Files of layers and blobs, complete or not.
fn left(root: &Path) -> Vec<PathBuf> {
    ["layers", "blobs/sha256", "blobs/sha512"]
        .iter()
        .flat_map(|directory| fs::read_dir(root.join(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn what_is_wrong_with_a_layer_is_told_across_the_border() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), Limits::default());
    for (data, expected) in [
        (tar("../escape", b"x"), "leaves the root"),
        (tar(".wh.", b""), "whiteout"),
        (gzip(&tar("/etc/passwd", b"x")), "absolute path"),
        (b"garbage".repeat(100), "checksum"),
        (gzip(&tar("file", b"x"))[..30].to_vec(), "cannot be decompressed"),
        ([&[0x28, 0xb5, 0x2f, 0xfd][..], &[0xff; 100]].concat(), "cannot be decompressed"),
        (b"BZh9xxxxxxxxxxx".to_vec(), "bzip2"),
    ] {
        let error = chain(&import(&store, &data[..]).unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(left(directory.path()), Vec::<PathBuf>::new(), "{expected}");
    }
}

#[test]
fn a_layer_beyond_the_caps_ends_in_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let zeros = tar("zeros", &vec![0; 8 << 20]);
    for (name, limits, expected) in [
        ("bytes", Limits { layer_bytes: 1 << 20, ..Limits::default() }, "the limit"),
        ("ratio", Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() }, "bombs"),
        ("image", Limits { image_bytes: 1 << 20, ..Limits::default() }, "larger image than it may"),
        ("entries", Limits { entries: 1, ..Limits::default() }, "entries"),
    ] {
        let root = directory.path().join(name);
        let store = store(&root, limits);
        let data = match name {
            "image" => tar("noise", &noise(4 << 20)),
            _ => gzip(&zeros),
        };
        let error = chain(&import(&store, &data[..]).unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(left(&root), Vec::<PathBuf>::new(), "{name}");
    }
}

#[test]
fn without_the_program_nothing_is_unpacked_and_the_way_out_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { unpacker: Unpacker::at("/nowhere"), ..StoreOptions::default() };
    let store = Store::open_with(directory.path(), options).unwrap();
    let error = chain(&import(&store, &tar("x", b"x")[..]).unwrap_err());
    assert!(error.contains("/nowhere is missing") && error.contains("xtask build"), "{error}");
    let archive = store.load(LoadSource::Reader(Box::new(&gzip(b"x")[..])), &Silent);
    assert!(matches!(archive, Err(LoadError::Decompress(UnpackError::Missing { .. }))));
}

#[test]
fn a_directory_is_read_by_a_confined_process() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/file"), b"content").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    std::os::unix::fs::symlink("/", tree.join("out")).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    if is_root() {
        // Root reads it all the same, and so must who has only root's right to read.
        fs::set_permissions(tree.join("closed/file"), closed).unwrap();
    }
    let image = directory.path().join("image");
    let options = TreeOptions { unpacker: unpacker(), ..TreeOptions::default() };
    let stats = convert_tree(&tree, &image, &options).unwrap();
    assert_eq!((stats.inodes, stats.file_bytes), (5, 7));
    assert_eq!(stats.image_bytes, fs::metadata(&image).unwrap().len());
    // The same as the same code makes without confinement is proved by the unit tests.
    let limits = Limits { entries: 2, ..Limits::default() };
    let options = TreeOptions { limits, unpacker: unpacker(), ..TreeOptions::default() };
    let error = convert_tree(&tree, &image, &options).unwrap_err();
    assert!(matches!(error, ConvertTreeError::Unpack(UnpackError::Refused { .. })), "{error:?}");
}

#[test]
fn overlay_markers_survive_confinement() {
    if !is_root() {
        eprintln!("skipped: only root makes whiteouts and trusted attributes");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("opaque")).unwrap();
    let set = rustix::fs::lsetxattr(
        tree.join("opaque"),
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    );
    if let Err(error) = set {
        eprintln!("skipped: no trusted attributes here: {error}");
        return;
    }
    let image = directory.path().join("image");
    let options = TreeOptions { unpacker: unpacker(), ..TreeOptions::default() };
    convert_tree(&tree, &image, &options).unwrap();
    let bytes = fs::read(&image).unwrap();
    let marker = b"overlay.opaquey";
    assert!(bytes.windows(marker.len()).any(|window| window == marker));
}

#[test]
fn by_hand_it_says_what_it_is() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_caisson-unpack")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Started by caisson"));
}
