use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;
use crate::tar::testing::{TarBuilder, TarEntry};
use crate::testing::{
    Mounted, Picture, assert_same, check_with_fsck, convert_limited, convert_to, file_digest,
    gnu_tar, odd_tree, picture, picture_of_image,
};

/// The format that holds everything.
const POSIX: &[&str] = &["--format=posix", "--xattrs", "--xattrs-include=*"];

/// A converted layer's image, which fsck.erofs accepts.
fn image(tar: &[u8]) -> (tempfile::TempDir, PathBuf, Converted) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let converted = convert_to(tar, &image).unwrap_or_else(|error| panic!("{error:?}"));
    check_with_fsck(&image);
    (directory, image, converted)
}

/// What a layer shows, by path: to the second reader and, where it can mount, to the kernel.
fn shown(tar: &[u8]) -> BTreeMap<PathBuf, Picture> {
    let (_directory, image, _) = image(tar);
    let shown = picture_of_image(&image);
    if let Some(mounted) = Mounted::new(&image) {
        assert_same(&shown, &picture(mounted.path()));
    }
    shown
}

/// The content's digest of a file that is there.
fn content<'s>(shown: &'s BTreeMap<PathBuf, Picture>, path: &str) -> &'s str {
    &shown.get(&Path::new(".").join(path)).unwrap_or_else(|| panic!("{path} is missing")).content
}

fn digest(data: &[u8]) -> String {
    Digest::of(data).to_string()
}

fn refused(tar: &[u8]) -> LayerError {
    refused_by(tar, &Limits::default())
}

fn refused_by(tar: &[u8], limits: &Limits) -> LayerError {
    let directory = tempfile::tempdir().unwrap();
    convert_limited(tar, &directory.path().join("image"), limits).expect_err("it was accepted")
}

#[test]
fn a_tree_with_one_of_everything_survives_in_all_tar_formats() {
    let source = tempfile::tempdir().unwrap();
    odd_tree(source.path());
    let expected = picture(source.path());
    for options in [
        &[][..],
        &["--sparse"],
        &["--sparse", "--sparse-version=0.1"],
        &["--sparse", "--sparse-version=0.0"],
    ] {
        let options = [POSIX, options].concat();
        let Some(tar) = gnu_tar(source.path(), &options) else { return };
        assert_same(&expected, &shown(&tar));
    }
    // GNU's own format knows neither attributes nor nanoseconds.
    let Some(tar) = gnu_tar(source.path(), &["--format=gnu", "--sparse"]) else {
        return;
    };
    let mut coarse = expected;
    for picture in coarse.values_mut() {
        picture.mtime.1 = 0;
        picture.xattrs.clear();
    }
    assert_same(&coarse, &shown(&tar));
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let source = tempfile::tempdir().unwrap();
    odd_tree(source.path());
    let Some(tar) = gnu_tar(source.path(), POSIX) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("1"), directory.path().join("2"));
    let converted = convert_to(&tar[..], &one).unwrap();
    assert_eq!(converted, convert_to(&tar[..], &two).unwrap());
    assert_eq!(converted.diff_id, crate::digest::Digest::of(&tar));
    assert_eq!(file_digest(&one), file_digest(&two));
    // A file of zeros costs no blocks, in the image as on the host's disk.
    assert!(converted.image_bytes < 8 << 20, "{} bytes", converted.image_bytes);
}

#[test]
fn paths_that_leave_the_root_are_refused() {
    for name in ["../x", "/x", "a/../../x", "/", "..", "a/b/../../../x", "//etc/passwd"] {
        let error = refused(&TarBuilder::new().file(name, b"x").finish());
        assert!(matches!(error, LayerError::Entry { .. }), "{name}: {error}");
    }
    for target in ["../x", "/x", "a/../../x", ".", ""] {
        let error = refused(&TarBuilder::new().file("x", b"").hard_link("l", target).finish());
        assert!(matches!(error, LayerError::HardLink { .. }), "{target}: {error}");
    }
}

#[test]
fn a_file_through_a_symbolic_link_stays_inside_the_root() {
    for target in ["/etc", "../../../etc", "/x/../etc/", "etc", "./hop"] {
        let tar = TarBuilder::new()
            .symlink("hop", "/etc")
            .symlink("link", target)
            .file("link/inside", b"here")
            .finish();
        assert_eq!(content(&shown(&tar), "etc/inside"), digest(b"here"), "{target}");
    }
    let relative = TarBuilder::new().symlink("a/b/up", "..").file("a/b/up/c", b"c").finish();
    assert_eq!(content(&shown(&relative), "a/c"), digest(b"c"));
}

#[test]
fn a_symbolic_link_is_replaced_rather_than_followed_by_an_entry_of_its_name() {
    let tar = TarBuilder::new()
        .file("target", b"old")
        .symlink("l", "target")
        .file("l", b"new")
        .symlink("d", "/somewhere")
        .dir("d")
        .file("d/f", b"f")
        .finish();
    let shown = shown(&tar);
    for (path, data) in [("target", &b"old"[..]), ("l", b"new"), ("d/f", b"f")] {
        assert_eq!(content(&shown, path), digest(data), "{path}");
    }
    assert!(!shown.contains_key(Path::new("./somewhere")));
}

#[test]
fn symbolic_links_that_loop_or_multiply_are_refused() {
    let looping = TarBuilder::new().symlink("a", "b").symlink("b", "a").file("a/x", b"");
    assert!(matches!(refused(&looping.finish()), LayerError::Entry { .. }));
    // Each level doubles the way.
    let mut bomb = TarBuilder::new().dir("l0");
    for level in 1..40 {
        let below = level - 1;
        bomb = bomb.symlink(&format!("l{level}"), &format!("l{below}/../l{below}"));
    }
    assert!(matches!(refused(&bomb.file("l39/x", b"").finish()), LayerError::Entry { .. }));
}

#[test]
fn hard_links_share_an_inode_and_cannot_precede_their_target() {
    let tar = TarBuilder::new()
        .file("d/target", b"shared")
        .symlink("s", "d")
        .hard_link("one", "d/target")
        .hard_link("two", "./s/target")
        .symlink("sl", "anywhere")
        .hard_link("sl2", "sl")
        .finish();
    let shown = shown(&tar);
    assert_eq!(shown[Path::new("./one")].nlink, 3);
    assert_eq!(shown[Path::new("./two")].content, shown[Path::new("./d/target")].content);
    assert_eq!(shown[Path::new("./sl2")].same_as.as_deref(), Some(Path::new("./sl")));
    for tar in [
        TarBuilder::new().hard_link("l", "later").file("later", b""),
        TarBuilder::new().dir("d").hard_link("l", "d"),
        TarBuilder::new().hard_link("l", "l"),
        TarBuilder::new().symlink("s", "/etc").hard_link("l", "s/passwd"),
        TarBuilder::new().file("f", b"").hard_link("l", "f/x"),
    ] {
        let error = refused(&tar.finish());
        assert!(matches!(error, LayerError::HardLink { .. }), "{error}");
    }
}

#[test]
fn whiteouts_become_devices_and_opaque_markers_attributes() {
    let tar = TarBuilder::new()
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file("implied/.wh.x", b"")
        .file(".wh.top", b"")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .hard_link(".wh.linked", ".wh..wh.aufs")
        .finish();
    let shown = shown(&tar);
    for path in ["./d/gone", "./implied/x", "./top", "./linked"] {
        let picture = &shown[Path::new(path)];
        assert_eq!((picture.mode, picture.rdev), (0o020000, 0), "{path}");
    }
    let opaque = |path: &str| shown[Path::new(path)].xattrs.get(&b"trusted.overlay.opaque"[..]);
    assert_eq!(opaque("./d").map(Vec::as_slice), Some(&b"y"[..]));
    assert_eq!((opaque("./implied"), opaque(".")), (None, None));
    assert_eq!(shown.len(), 7, "{:?}", shown.keys());
}

#[test]
fn a_whiteout_hides_lower_layers_only_whatever_the_order() {
    let file_first = TarBuilder::new().file("f", b"new").file(".wh.f", b"");
    let file_last = TarBuilder::new().file(".wh.f", b"").file("f", b"new");
    for tar in [file_first, file_last] {
        assert_eq!(content(&shown(&tar.finish()), "f"), digest(b"new"));
    }
    for tar in [
        TarBuilder::new().file(".wh.d", b"").dir("d").file("d/f", b""),
        TarBuilder::new().file(".wh.d", b"").file("d/f", b""),
        TarBuilder::new().dir("d").file("d/f", b"").file(".wh.d", b""),
        TarBuilder::new().file("d/.wh..wh..opq", b"").dir("d").file("d/f", b""),
    ] {
        let shown = shown(&tar.finish());
        assert!(shown.contains_key(Path::new("./d/f")));
        assert!(shown[Path::new("./d")].xattrs.contains_key(&b"trusted.overlay.opaque"[..]));
    }
}

#[test]
fn an_opaque_root_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let tar = TarBuilder::new().file(".wh..wh..opq", b"").finish();
    assert!(convert_to(&tar[..], &directory.path().join("1")).unwrap().opaque);
    let tar = TarBuilder::new().file("d/.wh..wh..opq", b"").finish();
    assert!(!convert_to(&tar[..], &directory.path().join("2")).unwrap().opaque);
}

#[test]
fn malformed_whiteouts_are_refused() {
    for tar in [
        TarBuilder::new().file("a/.wh.", b""),
        TarBuilder::new().file("a/.wh..", b""),
        TarBuilder::new().file("a/.wh...", b""),
        TarBuilder::new().file("a/.wh..wh.x", b""),
        TarBuilder::new().file("a/.wh.x/y", b""),
        TarBuilder::new().file("a/.wh.x", b"content"),
        TarBuilder::new().dir("a/.wh.x"),
        TarBuilder::new().symlink("a/.wh.x", "x"),
        TarBuilder::new().dir("a/.wh..wh..opq"),
        // An opaque marker whose directory is none.
        TarBuilder::new().file("f", b"").file("f/.wh..wh..opq", b""),
        TarBuilder::new().file("f", b"").file("f/.wh.x", b""),
    ] {
        let error = refused(&tar.finish());
        assert!(matches!(error, LayerError::Entry { .. }), "{error}");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let tar = TarBuilder::new()
        .file("x", b"file")
        .dir("x")
        .file("x/inner", b"")
        .file("x", b"file again")
        .dir("d")
        .file("d/kept", b"kept")
        .entry(TarEntry { kind: b'5', name: b"d", mode: 0o700, uid: 7, ..TarEntry::default() })
        .finish();
    let shown = shown(&tar);
    assert_eq!(shown[Path::new("./x")].size, 10);
    assert!(!shown.contains_key(Path::new("./x/inner")));
    assert!(shown.contains_key(Path::new("./d/kept")));
    let d = &shown[Path::new("./d")];
    assert_eq!((d.mode & 0o7777, d.uid), (0o700, 7));
    let error = refused(&TarBuilder::new().file("f", b"").file("f/x", b"").finish());
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn missing_parents_belong_to_root() {
    let tar = TarBuilder::new().file("a/b/c", b"").finish();
    let shown = shown(&tar);
    let parent = &shown[Path::new("./a/b")];
    assert_eq!((parent.mode, parent.uid, parent.gid), (0o040755, 0, 0));
}

#[test]
fn setuid_capabilities_and_devices_are_kept_inside_the_image() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = TarBuilder::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .entry(TarEntry { name: b"ping", mode: 0o4755, ..TarEntry::default() })
        .entry(TarEntry { kind: b'4', name: b"sda", device: (8, 0), ..TarEntry::default() })
        .finish();
    let shown = shown(&tar);
    let ping = &shown[Path::new("./ping")];
    assert_eq!(ping.mode & 0o7777, 0o4755);
    assert_eq!(ping.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(shown[Path::new("./sda")].rdev, rustix::fs::makedev(8, 0));
}

#[test]
fn attributes_of_overlayfs_and_of_other_systems_are_left_out() {
    let tar = TarBuilder::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("SCHILY.xattr.user.kept", b"k"),
        ])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.on-a-link", b"x")])
        .symlink("s", "d")
        .finish();
    let shown = shown(&tar);
    let names: Vec<_> = shown[Path::new("./d")].xattrs.keys().collect();
    assert_eq!(names, [b"user.kept"]);
    assert!(shown[Path::new("./s")].xattrs.is_empty());
    let large = vec![b'x'; 60_000];
    let tar = TarBuilder::new()
        .pax(&[
            ("SCHILY.xattr.user.a", &large),
            ("SCHILY.xattr.user.b", &large),
            ("SCHILY.xattr.user.c", &large),
        ])
        .file("f", b"");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
}

#[test]
fn large_attributes_leave_the_data_intact() {
    for size in [1900, 3900, 4030, 4100, 9000, 60_000] {
        let value = vec![b'v'; size];
        let attribute = [("SCHILY.xattr.trusted.large", &value[..])];
        let tar = TarBuilder::new()
            .pax(&attribute)
            .file("f", &[7; 5000])
            .pax(&attribute)
            .symlink("s", "target")
            .pax(&attribute)
            .dir("d")
            .file("d/x", b"x")
            .pax(&attribute)
            .file("zeros", &[0; 140_000])
            .finish();
        let shown = shown(&tar);
        for path in ["./f", "./s", "./d", "./zeros"] {
            let xattrs = &shown[Path::new(path)].xattrs;
            assert_eq!(xattrs.get(&b"trusted.large"[..]), Some(&value), "{path} {size}");
        }
        assert_eq!(shown[Path::new("./f")].content, Digest::of(&[7; 5000]).to_string());
        assert_eq!(shown[Path::new("./zeros")].content, Digest::of(&[0; 140_000]).to_string());
        assert!(shown.contains_key(Path::new("./d/x")));
    }
}

#[test]
fn a_sparse_file_of_terabytes_is_a_few_blocks() {
    let size = 3_u64 << 40;
    let island = 2_u64 << 40;
    let map = format!("{island},6,{},3", size - 3);
    let tar = TarBuilder::new()
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("sparse", b"islandend")
        .finish();
    let (_directory, image, converted) = image(&tar);
    // The image has chunks of 64 MiB, of which two hold data; the host's file has holes.
    assert!(converted.image_bytes < 130 << 20, "{} bytes", converted.image_bytes);
    let Some(mounted) = Mounted::new(&image) else { return };
    let file = File::open(mounted.path().join("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let at = |offset: u64, length: usize| {
        let mut buffer = vec![0; length];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, offset).unwrap();
        buffer
    };
    assert_eq!(at(island - 2, 10), b"\0\0island\0\0");
    assert_eq!(at(size - 5, 5), b"\0\0end");
    assert_eq!(at(1 << 40, 4096), vec![0; 4096]);
    let too_large = (1_u64 << 50).to_string();
    let tar = TarBuilder::new()
        .pax(&[("GNU.sparse.size", too_large.as_bytes()), ("GNU.sparse.map", b"0,1")])
        .file("f", b"x");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
}

#[test]
fn directories_10000_deep_and_long_names_are_refused() {
    // Paths alone cannot go deeper than half the limit of a path ...
    let mut tar = TarBuilder::new();
    let deep = "d/".repeat(10_000);
    tar = tar.pax(&[("path", deep.as_bytes())]).dir("x");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
    // ... but links can shorten the way.
    let step = "d/".repeat(300);
    let mut tar = TarBuilder::new().dir("a0");
    for level in 0..5 {
        let path = format!("a{level}/{step}");
        tar = tar.pax(&[("path", path.as_bytes())]).dir("x");
        let target = format!("a{level}/{step}");
        let name = format!("a{}", level + 1);
        tar = tar.pax(&[("linkpath", target.as_bytes())]).symlink(&name, "x");
    }
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
    let name = "n".repeat(64 << 10);
    let tar = TarBuilder::new().pax(&[("path", name.as_bytes())]).file("x", b"");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
    let name = "n".repeat(256);
    let tar = TarBuilder::new().pax(&[("path", name.as_bytes())]).file("x", b"");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
    let tar = TarBuilder::new().pax(&[("linkpath", "t".repeat(4096).as_bytes())]).symlink("x", "");
    assert!(matches!(refused(&tar.finish()), LayerError::Entry { .. }));
    assert!(matches!(
        refused(&TarBuilder::new().symlink("x", "").finish()),
        LayerError::Entry { .. }
    ));
}

#[test]
fn too_many_entries_and_too_much_memory_are_refused() {
    let tar = (0..2000).fold(TarBuilder::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish();
    let limits = Limits { entries: 1000, ..Limits::default() };
    assert!(matches!(refused_by(&tar, &limits), LayerError::Tar(TarError::Limit { .. })));
    let limits = Limits { tree_bytes: 100_000, ..Limits::default() };
    assert!(matches!(refused_by(&tar, &limits), LayerError::Tree(TreeError::Memory { .. })));
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for tar in [&b""[..], &[0; 1024]] {
        let shown = shown(tar);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[Path::new(".")].mode, 0o040755);
    }
}

#[test]
fn messages_show_hostile_names_inert() {
    let error = refused(&TarBuilder::new().file("../\u{1b}[31mred\n", b"").finish());
    let message = error.to_string();
    assert!(!message.contains('\u{1b}') && !message.contains('\n'), "{message:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random small trees: what the archive says is what is shown, by a model of the rules.
    #[test]
    fn random_entries_give_the_tree_of_a_simple_model(
        entries in proptest::collection::vec((0_u8..3, 0_usize..4, 0_usize..4, 0_usize..20_000), 0..25),
    ) {
        let names = ["a", "b", "!", "z"];
        let mut tar = TarBuilder::new();
        let mut model: BTreeMap<PathBuf, Option<usize>> = BTreeMap::new();
        for (kind, first, second, size) in entries {
            let parent = PathBuf::from(format!("./{}", names[first]));
            let path = parent.join(names[second]);
            let text = path.to_str().unwrap();
            match kind {
                // A file in a directory; the parent is made if need be, or is in the way.
                0 | 1 if model.get(&parent).is_some_and(Option::is_some) => continue,
                0 => {
                    tar = tar.file(text, &vec![b'x'; size]);
                    model.insert(parent, None);
                    model.insert(path, Some(size));
                }
                1 => {
                    tar = tar.dir(text);
                    model.insert(parent, None);
                    model.insert(path, None);
                }
                _ => {
                    // A file where there may have been a directory.
                    tar = tar.file(parent.to_str().unwrap(), &vec![b'x'; size]);
                    model.retain(|known, _| !known.starts_with(&parent));
                    model.insert(parent, Some(size));
                }
            }
        }
        let shown = shown(&tar.finish());
        let shown: BTreeMap<PathBuf, Option<usize>> = shown
            .into_iter()
            .filter(|(path, _)| path != Path::new("."))
            .map(|(path, picture)| {
                (path, (picture.mode & 0o170000 != 0o040000).then_some(picture.size as usize))
            })
            .collect();
        prop_assert_eq!(shown, model);
    }
}
