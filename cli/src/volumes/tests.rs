use std::os::unix::fs::PermissionsExt;

use caisson_rootfs::Store;

use super::*;

fn volumes(root: &Path) -> Volumes {
    let store = Store::open(root).unwrap();
    Volumes::open(store.open_database().unwrap(), root.join("volumes")).unwrap()
}

fn nobody() -> Result<Vec<String>, VolumeError> {
    Ok(Vec::new())
}

#[test]
fn a_volume_is_made_once_found_and_removed_with_its_files() {
    let root = tempfile::tempdir().unwrap();
    let mut volumes = volumes(root.path());
    let labels: BTreeMap<_, _> = [("a".to_owned(), "b".to_owned())].into();
    volumes.create("data", &labels, false).unwrap();
    fs::write(volumes.data("data").join("file"), "kept").unwrap();
    volumes.create("data", &BTreeMap::new(), true).unwrap();
    volumes.create("another", &BTreeMap::new(), true).unwrap();
    let all = volumes.all().unwrap();
    assert_eq!(all.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["another", "data"]);
    assert_eq!((&all[1].labels, all[1].anonymous), (&labels, false));
    assert_eq!(fs::read_to_string(volumes.data("data").join("file")).unwrap(), "kept");
    let mode = fs::metadata(root.path().join("volumes")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    volumes.remove("data", nobody).unwrap();
    assert!(matches!(volumes.find("data"), Err(VolumeError::NotFound(_))));
    let left = fs::read_dir(root.path().join("volumes")).unwrap().count();
    assert_eq!(left, 1, "only the other is left");
    assert!(matches!(volumes.remove("data", nobody), Err(VolumeError::NotFound(_))));
}

#[test]
fn a_volume_in_use_stays() {
    let root = tempfile::tempdir().unwrap();
    let mut volumes = volumes(root.path());
    volumes.create("data", &BTreeMap::new(), false).unwrap();
    let used = || Ok::<_, VolumeError>(vec!["c1".to_owned(), "c2".to_owned()]);
    let error = volumes.remove("data", used).unwrap_err();
    assert_eq!(error.to_string(), "remove data: volume is in use - [c1, c2]");
    assert!(volumes.data("data").is_dir());
    volumes.find("data").unwrap();
}

#[test]
fn what_a_killed_process_has_left_goes_with_the_next() {
    let root = tempfile::tempdir().unwrap();
    let mut volumes = volumes(root.path());
    volumes.create("data", &BTreeMap::new(), false).unwrap();
    let half = root.path().join("volumes/.removed-abc");
    fs::create_dir_all(half.join(DATA)).unwrap();
    // Its directory had lost its name already.
    fs::remove_dir_all(root.path().join("volumes/data")).unwrap();
    volumes.remove("data", nobody).unwrap();
    assert!(!half.exists());
    // A directory without a row keeps what is in it.
    fs::create_dir_all(volumes.data("data")).unwrap();
    fs::write(volumes.data("data").join("file"), "kept").unwrap();
    volumes.create("data", &BTreeMap::new(), false).unwrap();
    assert_eq!(fs::read_to_string(volumes.data("data").join("file")).unwrap(), "kept");
}

#[test]
fn names_are_no_paths() {
    let long = "x".repeat(129);
    for name in ["", "x", "..", ".x", "-x", "a/b", "../x", "a b", "a\n", "a\0b", "ü2", &long] {
        assert!(matches!(check_name(name), Err(VolumeError::Name(_))), "{name:?}");
    }
    for name in ["xy", "0-_.", &"x".repeat(128), &anonymous_name().unwrap()] {
        check_name(name).unwrap();
    }
}
