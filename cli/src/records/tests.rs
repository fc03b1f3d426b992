//! Records, names, states, and rows that are damaged.

use super::*;

fn records(root: &std::path::Path) -> Records {
    let connection = caisson_rootfs::open_database(root).expect("a database");
    Records::open(connection, root).expect("records")
}

fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

fn config() -> ContainerConfig {
    ContainerConfig { image: "busybox".into(), ..ContainerConfig::default() }
}

#[test]
fn a_container_goes_through_its_states() {
    let root = tempfile::tempdir().unwrap();
    let mut records = records(root.path());
    let (container, lock) = records.insert(&id('a'), Some("web"), &config()).unwrap();
    assert_eq!(container.state, State::Creating);
    assert_eq!(container.config, Some(config()));
    assert!(records.try_lock(&container, Purpose::Change).unwrap().is_none());
    records.set_state(&container.id, State::Created).unwrap();
    drop(lock);
    records.set_start_failed(&container.id, 127, "no such file").unwrap();
    assert_eq!(records.find("web").unwrap().state, State::Created);
    records.set_running(&container.id, 42).unwrap();
    let running = records.find("web").unwrap();
    assert_eq!((running.state, running.pid, running.error.as_str()), (State::Running, 42, ""));
    let ended = Ended { code: 3, at: units::now(), oom_killed: true, error: String::new() };
    records.set_exited(&container.id, &ended).unwrap();
    let exited = records.find("web").unwrap();
    assert_eq!((exited.state, exited.exit_code, exited.oom_killed), (State::Exited, 3, true));
    records.set_start_failed(&container.id, 125, "x").unwrap();
    assert_eq!(records.find("web").unwrap().state, State::Exited);
    records.delete(&container.id).unwrap();
    assert!(matches!(records.find("web"), Err(RecordError::NotFound(_))));
    records.delete(&container.id).unwrap();
}

#[test]
fn names_are_unique_and_generated_names_make_way() {
    let root = tempfile::tempdir().unwrap();
    let mut records = records(root.path());
    records.insert(&id('a'), Some("web"), &config()).unwrap();
    let error = records.insert(&id('b'), Some("web"), &config()).unwrap_err();
    let RecordError::NameInUse { name, owner } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), owner), ("web", &id('a')));
    assert!(error.to_string().contains("is already in use by container"), "{error}");
    let (generated, _lock) = records.insert(&id('c'), None, &config()).unwrap();
    assert!(names::validate(&generated.name).is_ok());
}

#[test]
fn references_are_ids_names_and_prefixes() {
    let root = tempfile::tempdir().unwrap();
    let mut records = records(root.path());
    let first = "abc1".repeat(16);
    let second = "abc2".repeat(16);
    records.insert(&first, Some("first"), &config()).unwrap();
    // A name that looks like the other's id wins over the prefix.
    records.insert(&second, Some("abc1"), &config()).unwrap();
    let found = |reference: &str| records.find(reference).map(|container| container.id);
    assert_eq!(found(&first).unwrap(), first);
    assert_eq!(found("/first").unwrap(), first);
    assert_eq!(found("abc1a").unwrap(), first);
    assert_eq!(found("abc1").unwrap(), second);
    assert!(matches!(found("abc"), Err(RecordError::Ambiguous(_))));
    for unknown in ["", "abd", "*", "a*", "'", "first%"] {
        assert!(matches!(found(unknown), Err(RecordError::NotFound(_))), "{unknown:?}");
    }
}

#[test]
fn a_damaged_row_is_listed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let mut records = records(root.path());
    records.insert(&id('a'), Some("broken"), &config()).unwrap();
    records.insert(&id('b'), Some("fine"), &config()).unwrap();
    records
        .connection
        .execute(
            "UPDATE containers SET config = '{\"ima', state = 'melted', exit_code = 99999, pid = -1
             WHERE name = 'broken'",
            [],
        )
        .unwrap();
    let all = records.all().unwrap();
    assert_eq!(all.len(), 2);
    let broken = records.find("broken").unwrap();
    assert_eq!((broken.state, broken.config, broken.exit_code), (State::Unknown, None, 255));
    records.delete(&id('a')).unwrap();
    assert_eq!(records.all().unwrap().len(), 1);
}

#[test]
fn of_a_hundred_with_one_name_one_wins() {
    let root = tempfile::tempdir().unwrap();
    records(root.path());
    let wins = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (root, wins) = (root.path(), &wins);
            scope.spawn(move || {
                let mut records = records(root);
                for number in 0..25 {
                    let id = format!("{thread:032x}{number:032x}");
                    match records.insert(&id, Some("one"), &config()) {
                        Ok(_) => {
                            wins.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        Err(RecordError::NameInUse { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), 1);
}

#[test]
fn the_log_of_changes_outlives_a_command_and_stays_small() {
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("caisson.db-wal");
    let mut kept = 0;
    for number in 0..300 {
        let mut records = records(root.path());
        records.insert(&format!("{number:064x}"), None, &config()).unwrap();
        drop(records);
        let bytes = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        assert!(bytes < MAX_LOG_BYTES + (64 << 10), "{bytes} bytes");
        kept += u32::from(bytes > 0);
    }
    assert!(kept > 250, "kept {kept} times");
    assert_eq!(records(root.path()).all().unwrap().len(), 300);
}
