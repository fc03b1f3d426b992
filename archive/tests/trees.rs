//! Trees that go through an archive, and archives that try to leave the tree.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt, symlink},
            net::UnixListener,
        },
    },
    path::Path,
};

use caisson_archive::{
    pack::{PackSource, pack},
    placing::Rebase,
    tar::{EntryKind, testing::TarBuilder, testing::TarEntry},
    unpack::{Keep, Links, UnpackError, UnpackTarget, Unpacked, unpack},
};

const NOTHING: Keep = Keep { owner: false, devices: false, capabilities: false };
const EVERYTHING: Keep = Keep { owner: true, devices: true, capabilities: true };

fn packed(tree: &Path) -> Vec<u8> {
    let parent = File::open(tree).unwrap();
    let mut bytes = Vec::new();
    let source = PackSource { parent: parent.as_fd(), name: b".", archived_as: b"" };
    pack(source, &|_| true, &mut bytes).unwrap();
    bytes
}

fn unpacked(
    archive: impl Read,
    root: &Path,
    directory: &str,
    links: Links,
    keep: Keep,
) -> Result<Unpacked, UnpackError> {
    let root = File::open(root).unwrap();
    let target = UnpackTarget { root: root.as_fd(), directory: directory.as_bytes(), links, keep };
    let rebase = Rebase { base: b"", becomes: b"" };
    unpack(archive, target, &mut |entry| rebase.apply(entry))
}

/// A directory with `inside`, the root, and `outside`, with a file.
fn trap() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inside")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/file"), "untouched").unwrap();
    dir
}

fn assert_untouched(trap: &tempfile::TempDir) {
    let outside = trap.path().join("outside");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "untouched");
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path();
    fs::create_dir_all(tree.join("d/e")).unwrap();
    fs::write(tree.join("d/file"), vec![7; 300_000]).unwrap();
    fs::set_permissions(tree.join("d/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(tree.join("d/file"), tree.join("d/second")).unwrap();
    symlink("../d/file", tree.join("d/e/link")).unwrap();
    fs::set_permissions(tree.join("d/e"), fs::Permissions::from_mode(0o500)).unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let report = unpacked(packed(tree).as_slice(), to.path(), "", Links::Refused, EVERYTHING);
    assert_eq!(report.unwrap(), Unpacked { entries: 5, ..Unpacked::default() });
    let there = |name: &str| to.path().join(name);
    assert_eq!(fs::read(there("d/file")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(there("d/e/link")).unwrap(), Path::new("../d/file"));
    let (one, two) = (there("d/file").metadata().unwrap(), there("d/second").metadata().unwrap());
    assert_eq!((one.ino(), one.mode() & 0o7777), (two.ino(), 0o640));
    assert_eq!(there("d/e").metadata().unwrap().mode() & 0o7777, 0o500);
    for name in ["d", "d/e", "d/file"] {
        let (was, is) = (tree.join(name).metadata().unwrap(), there(name).metadata().unwrap());
        assert_eq!(was.modified().unwrap(), is.modified().unwrap(), "{name}");
    }
    assert!(!there("socket").exists());
}

#[test]
fn links_are_packed_and_never_followed() {
    let trap = trap();
    symlink("../outside", trap.path().join("inside/link")).unwrap();
    let bytes = packed(&trap.path().join("inside"));
    let mut reader = caisson_archive::tar::Reader::new(
        bytes.as_slice(),
        caisson_archive::tar::TarLimits { entry_bytes: 1 << 20, entries: 10 },
    );
    let only = reader.next_entry().unwrap().unwrap();
    assert_eq!(only.kind, EntryKind::Symlink { target: b"../outside".to_vec() });
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn no_entry_leaves_the_tree() {
    let evil = |name: &str| TarBuilder::new().file(name, b"evil").finish();
    for name in ["../outside/file", "d/../../outside/file", "/../outside/file"] {
        for links in [Links::Refused, Links::InsideRoot] {
            let trap = trap();
            let inside = trap.path().join("inside");
            unpacked(evil(name).as_slice(), &inside, "", links, NOTHING).unwrap_err();
            assert_untouched(&trap);
        }
    }
}

#[test]
fn no_link_leads_out_of_the_tree() {
    let through =
        |target: &str| TarBuilder::new().symlink("way", target).file("way/file", b"evil").finish();
    let trap = trap();
    let inside = trap.path().join("inside");
    let outside = trap.path().join("outside");
    for target in ["../outside", outside.to_str().unwrap()] {
        let error =
            unpacked(through(target).as_slice(), &inside, "", Links::Refused, NOTHING).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert_untouched(&trap);
        fs::remove_file(inside.join("way")).unwrap();
    }
    // Inside a root of its own the link means what it would to a process there.
    fs::create_dir(inside.join("outside")).unwrap();
    let archive = through("../../outside");
    unpacked(archive.as_slice(), &inside, "", Links::InsideRoot, NOTHING).unwrap();
    assert_eq!(fs::read_to_string(inside.join("outside/file")).unwrap(), "evil");
    assert_untouched(&trap);
}

#[test]
fn a_link_at_an_entrys_own_name_is_replaced_not_followed() {
    let trap = trap();
    let inside = trap.path().join("inside");
    symlink("../outside/file", inside.join("name")).unwrap();
    let archive = TarBuilder::new().file("name", b"new").finish();
    unpacked(archive.as_slice(), &inside, "", Links::InsideRoot, NOTHING).unwrap();
    assert_eq!(fs::read_to_string(inside.join("name")).unwrap(), "new");
    assert!(!inside.join("name").is_symlink());
    assert_untouched(&trap);
}

#[test]
fn no_hard_link_reaches_out_of_the_tree() {
    for target in ["../outside/file", "way/file"] {
        let trap = trap();
        let inside = trap.path().join("inside");
        let archive = TarBuilder::new()
            .symlink("way", "../outside")
            .hard_link("name", target)
            .file("name", b"evil")
            .finish();
        unpacked(archive.as_slice(), &inside, "", Links::Refused, NOTHING).unwrap_err();
        assert_untouched(&trap);
        assert!(!inside.join("name").exists());
    }
}

#[test]
fn directories_and_files_do_not_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let over = |archive: Vec<u8>| {
        unpacked(archive.as_slice(), dir.path(), "", Links::Refused, NOTHING).unwrap_err()
    };
    let error = over(TarBuilder::new().file("d", b"").finish());
    assert_eq!(error.to_string(), "cannot overwrite directory \"d\" with non-directory");
    let error = over(TarBuilder::new().dir("f/").finish());
    assert_eq!(error.to_string(), "cannot overwrite non-directory \"f\" with directory");
}

#[test]
fn devices_and_set_id_bits_need_to_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let device = TarEntry { kind: b'4', name: b"disk", device: (8, 0), ..TarEntry::default() };
    let program = TarEntry { name: b"su", mode: 0o6755, ..TarEntry::default() };
    let archive = TarBuilder::new().entry(device).entry(program).finish();
    let report = unpacked(archive.as_slice(), dir.path(), "", Links::Refused, NOTHING).unwrap();
    assert_eq!((report.devices_left_out, report.first_device), (1, Some(b"disk".to_vec())));
    assert!(!dir.path().join("disk").exists());
    assert_eq!(dir.path().join("su").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn parents_are_made_below_the_directory_that_is_given() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    let archive = TarBuilder::new().file("a/b/c", b"x").finish();
    unpacked(archive.as_slice(), dir.path(), "base", Links::InsideRoot, NOTHING).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("base/a/b/c")).unwrap(), "x");
}

#[test]
fn what_is_not_part_of_the_copied_tree_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = File::open(dir.path()).unwrap();
    let target =
        UnpackTarget { root: root.as_fd(), directory: b"", links: Links::Refused, keep: NOTHING };
    let rebase = Rebase { base: b"asked", becomes: b"new" };
    let archive = TarBuilder::new().file("asked/f", b"").file("other", b"").finish();
    let error = unpack(archive.as_slice(), target, &mut |entry| rebase.apply(entry)).unwrap_err();
    assert!(matches!(error, UnpackError::Entry { .. }), "{error}");
    assert!(dir.path().join("new/f").exists());
    assert!(!dir.path().join("other").exists());
}
