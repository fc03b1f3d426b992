//! Full disks and killed processes: the old state stays valid, nothing partial stays.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use caisson_rootfs::progress::Silent;
use caisson_rootfs::{
    Digest, DiskError, ImportConfig, ImportSource, LoadSource, MIN_DISK_BYTES, Reference, Store,
};
use support::{chain, noise, tar};

fn import(store: &Store, name: &str, tar: &[u8]) -> Result<Digest, String> {
    let config = ImportConfig { created: Some(std::time::UNIX_EPOCH), ..ImportConfig::default() };
    let name: Reference = name.parse().unwrap();
    store
        .import(ImportSource::Reader(Box::new(tar)), Some(&name), &config, &Silent)
        .map_err(|error| chain(&error))
}

fn partials(root: &Path) -> Vec<PathBuf> {
    ["layers", "blobs/sha256", "templates"]
        .iter()
        .flat_map(|directory| fs::read_dir(root.join(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.'))
        .collect()
}

/// Nothing is left of any image. A process that this one is just forking off holds our
/// locks for a moment, and collecting waits for nobody: hence several tries.
fn assert_collected(store: &Store) {
    let left = || -> usize {
        let count = |directory| fs::read_dir(store.root().join(directory)).unwrap().count();
        count("layers") + count("blobs/sha256")
    };
    for _ in 0..100 {
        store.gc().unwrap();
        if left() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{} files are left", left());
}

/// A small file system of its own.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with the reason on standard error, where mounting is not allowed.
    fn new(options: &str) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(directory.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(SmallDisk { directory }),
            result => {
                eprintln!("skipped: cannot mount a small disk: {result:?}");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status =
            Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up_anywhere_leaves_the_old_state_valid() {
    let small = tar("small", b"small");
    let large = tar("large", &noise(600 << 10));
    let (mut failures, mut successes) = (0, 0);
    // From too small for the database's own change to large enough for all.
    for kib in (260..2200).step_by(70) {
        let Some(disk) = SmallDisk::new("size=64m") else { return };
        let store = Store::open(disk.path()).unwrap();
        import(&store, "old", &small).unwrap();
        let used = Command::new("du").arg("-sk").arg(disk.path()).output().unwrap();
        let used: usize = String::from_utf8(used.stdout)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        disk.remount(&format!("size={}k", used.max(kib)));
        match import(&store, "new", &large) {
            Ok(_) => successes += 1,
            Err(error) => {
                failures += 1;
                assert!(error.contains("the disk is full"), "{kib} KiB: {error}");
                assert!(store.resolve("new").is_err());
                assert_eq!(partials(disk.path()), Vec::<PathBuf>::new(), "{kib} KiB");
            }
        }
        let old = store.resolve("old").unwrap();
        store.layers(&old).unwrap();
        drop(store);
        disk.remount("size=64m");
        let store = Store::open(disk.path()).unwrap();
        import(&store, "new", &large).unwrap();
        store.layers(&store.resolve("new").unwrap()).unwrap();
        store.remove("new", false).unwrap();
        store.remove("old", false).unwrap();
        assert_collected(&store);
    }
    assert!(failures > 5 && successes > 2, "{failures} failures, {successes} successes");
}

#[test]
fn a_file_system_without_free_inodes_is_reported() {
    // The root, the six directories, the database and its two companions, the lock.
    for inodes in 12..22 {
        let Some(disk) = SmallDisk::new(&format!("size=64m,nr_inodes={inodes}")) else { return };
        let Ok(store) = Store::open(disk.path()) else { continue };
        if let Err(error) = import(&store, "x", &tar("f", b"data")) {
            assert!(error.contains("the disk is full"), "{inodes}: {error}");
            assert!(store.images().unwrap().is_empty());
            disk.remount("nr_inodes=1000");
            import(&store, "x", &tar("f", b"data")).unwrap();
        }
        store.layers(&store.resolve("x").unwrap()).unwrap();
    }
}

#[test]
fn a_writable_disk_that_does_not_fit_is_not_there() {
    let Some(disk) = SmallDisk::new("size=8m") else { return };
    let store = Store::open(disk.path()).unwrap();
    let filler = disk.path().join("filler");
    store.create_writable_disk(&disk.path().join("first"), MIN_DISK_BYTES).unwrap();
    // Fill what is left.
    let mut file = fs::File::create(&filler).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|count| count > 0) {}
    drop(file);
    let path = disk.path().join("second");
    let error = store.create_writable_disk(&path, MIN_DISK_BYTES).unwrap_err();
    assert!(matches!(error, DiskError::Store(_)), "{error}");
    assert!(chain(&error).contains("the disk is full"), "{}", chain(&error));
    assert!(!path.exists());
    // Nor a template, for a size that has none yet.
    assert!(store.create_writable_disk(&path, 2 * MIN_DISK_BYTES).is_err());
    assert!(!path.exists());
    fs::remove_file(filler).unwrap();
    store.create_writable_disk(&path, MIN_DISK_BYTES).unwrap();
}

const CHILD_ROOT: &str = "CAISSON_TEST_STORE";
const CHILD_ARCHIVE: &str = "CAISSON_TEST_ARCHIVE";

/// Not a test of its own: what the next one kills.
#[test]
fn child_that_loads() {
    let (Ok(root), Ok(archive)) = (std::env::var(CHILD_ROOT), std::env::var(CHILD_ARCHIVE)) else {
        return;
    };
    let store = Store::open(Path::new(&root)).unwrap();
    println!("loading");
    store.load(LoadSource::Path(archive.into()), &Silent).unwrap();
}

#[test]
fn a_loader_killed_at_any_moment_leaves_one_valid_image_after_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("image.tar");
    fs::write(&archive, docker_archive()).unwrap();
    let root = directory.path().join("store");
    for delay_ms in [0, 3, 10, 20, 40, 80, 120, 200, 300, 450, 700] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_loads", "--nocapture"])
            .env(CHILD_ROOT, &root)
            .env(CHILD_ARCHIVE, &archive)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root).unwrap();
        // What is listed is whole.
        for image in store.images().unwrap() {
            let image = store.resolve(&image.id.to_string()).unwrap();
            store.layers(&image).unwrap();
        }
        let loaded = store.load(LoadSource::Path(archive.clone()), &Silent).unwrap();
        let image = store.resolve(&loaded[0].id.to_string()).unwrap();
        assert_eq!(store.layers(&image).unwrap().len(), 2);
        assert_eq!(store.images().unwrap().len(), 1);
        assert_eq!(partials(&root), Vec::<PathBuf>::new());
        store.remove(&loaded[0].id.to_string(), true).unwrap();
        assert_collected(&store);
    }
}

fn docker_archive() -> Vec<u8> {
    let layers = [tar("one", &noise(2 << 20)), tar("two", &noise(3 << 20))];
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": layers.each_ref().map(|layer| Digest::of(layer)) },
    });
    let manifest = serde_json::json!([
        { "Config": "config", "RepoTags": ["killed:1"], "Layers": ["one.tar", "two.tar"] }
    ]);
    let [one, two] = layers;
    let mut archive = Vec::new();
    for (name, data) in [
        ("config", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
        ("one.tar", one),
        ("two.tar", two),
    ] {
        let file = tar(name, &data);
        archive.extend_from_slice(&file[..file.len() - 1024]);
    }
    archive.extend_from_slice(&[0; 1024]);
    archive
}
