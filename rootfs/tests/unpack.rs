//! The real `caisson-unpack`: what it makes of layers and directories, good and bad.

mod support;
#[path = "support/worker.rs"]
mod worker;

use std::fs;
use std::path::PathBuf;

use caisson_rootfs::progress::Silent;
use caisson_rootfs::{
    ConvertTreeError, Limits, LoadError, LoadSource, Store, StoreOptions, TreeOptions, UnpackError,
    Unpacker, convert_tree,
};
use support::{chain, noise, tar};
use worker::{gzip, import, is_root, left, store, unpacker};

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
