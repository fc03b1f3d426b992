//! State that is damaged, gone, full or read-only, and the limits of a process: the
//! commands that tidy up still work.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::resource::{Resource, setrlimit};

use crate::host::{Host, Outcome, eventually, host};

fn run(host: &Host, name: &str) {
    host.caisson(&["run", "-d", "--name", name, "tools", "sleep", "1000"]).exited_with(0);
}

fn change_rows(host: &Host, sql: &str) {
    let database = rusqlite::Connection::open(host.path("root/caisson.db")).unwrap();
    assert_eq!(database.execute(sql, []).unwrap(), 1, "{sql}");
}

fn id_of(host: &Host, name: &str) -> String {
    let id = host.caisson(&["ps", "-aq", "--no-trunc", "--filter", &format!("name={name}")]);
    id.stdout.trim().to_owned()
}

#[test]
fn a_damaged_record_is_listed_and_can_be_removed() {
    let host = host!();
    for (number, damage) in [
        "config = '{\"half'",
        "config = ''",
        "config = '{}'",
        "state = 'of another version'",
        "started = -1, finished = 9223372036854775807",
        "pid = -5",
    ]
    .iter()
    .enumerate()
    {
        run(&host, "good");
        host.caisson(&["create", "--name", "bad", "tools"]).succeeded();
        change_rows(&host, &format!("UPDATE containers SET {damage} WHERE name = 'bad'"));
        host.caisson(&["ps", "-a"]).exited_with(0).showed("good").showed("bad");
        host.caisson(&["exec", "good", "true"]).exited_with(0);
        host.caisson(&["rm", "-f", "bad"]).exited_with(0);
        host.caisson(&["rm", "-f", "good"]).exited_with(0);
        host.nothing_left();
        host.caisson(&["ps", "-aq"]).exited_with(0).printed("");
        assert!(number < 6);
    }
    host.caisson(&["rmi", "tools"]).exited_with(0);
}

#[test]
fn a_damaged_record_of_a_running_container_can_be_removed() {
    let host = host!();
    for damage in ["config = '{\"half'", "state = 'of another version'"] {
        run(&host, "bad");
        change_rows(&host, &format!("UPDATE containers SET {damage} WHERE name = 'bad'"));
        host.caisson(&["ps", "-a"]).exited_with(0).showed("bad");
        host.caisson(&["rm", "-f", "bad"]).exited_with(0);
        host.nothing_left();
    }
}

#[test]
fn a_truncated_exit_record_is_no_exit_code() {
    let host = host!();
    run(&host, "web");
    let bundle = host.path("state/bundles").join(id_of(&host, "web"));
    fs::write(bundle.join("exit.json"), "{\"code\":").unwrap();
    crate::faults::kill_all(&host, "shim");
    eventually("it is listed as exited", || {
        host.caisson(&["ps", "-a"]).stdout.contains("Exited (137)")
    });
    host.caisson(&["rm", "web"]).exited_with(0);
    host.nothing_left();
}

#[test]
fn a_lost_disk_is_named_and_the_container_can_be_removed() {
    let host = host!();
    host.caisson(&["create", "--name", "web", "tools"]).succeeded();
    let directory = host.path("root/containers").join(id_of(&host, "web"));
    fs::remove_dir_all(directory).unwrap();
    host.caisson(&["start", "web"]).exited_with(1).complained("disk.ext4");
    host.caisson(&["rm", "-f", "web"]).exited_with(0);
    host.nothing_left();
}

#[test]
fn a_state_directory_that_is_gone_takes_nothing_along_that_rm_cannot_find() {
    let host = host!();
    run(&host, "web");
    fs::remove_dir_all(host.path("state")).unwrap();
    host.caisson(&["ps", "-a"]).exited_with(0).showed("web");
    host.caisson(&["rm", "-f", "web"]).exited_with(0);
    host.nothing_left();
    run(&host, "web");
    host.caisson(&["rm", "-f", "web"]).exited_with(0);
    host.nothing_left();
}

/// As after a power loss, which took the row and left the directory.
#[test]
fn a_directory_without_a_row_is_removed_once_after_a_boot() {
    let host = host!();
    host.caisson(&["create", "--name", "web", "tools"]).succeeded();
    let containers = host.path("root/containers");
    let lost = containers.join("a1".repeat(32));
    let foreign = containers.join("somebody's");
    fs::create_dir(&lost).unwrap();
    fs::create_dir(&foreign).unwrap();
    // This boot has been looked through before.
    host.caisson(&["ps", "-a"]).succeeded();
    assert!(lost.exists());
    fs::write(host.path("root/containers.boot"), "another boot").unwrap();
    host.caisson(&["ps", "-a"]).exited_with(0).complained("which no record names");
    assert!(!lost.exists() && foreign.exists());
    fs::remove_dir(foreign).unwrap();
    host.caisson(&["start", "-a", "web"]).succeeded();
    host.caisson(&["rm", "web"]).succeeded();
    host.nothing_left();
}

#[test]
fn delete_twice_kill_after_exit_and_start_twice() {
    let host = host!();
    run(&host, "web");
    host.caisson(&["start", "web"]).exited_with(0);
    host.caisson(&["kill", "web"]).exited_with(0);
    host.caisson(&["wait", "web"]).exited_with(0).printed("137\n");
    host.caisson(&["kill", "web"]).exited_with(1).complained("not running");
    host.caisson(&["rm", "web"]).exited_with(0);
    host.caisson(&["rm", "web"]).exited_with(1).complained("No such container");
    host.nothing_left();
}

/// A small file system in the place of a directory of the host.
struct SmallDisk<'a> {
    host: &'a Host,
    name: &'static str,
}

impl<'a> SmallDisk<'a> {
    fn mount(host: &'a Host, name: &'static str, options: &str) -> Option<Self> {
        let path = host.path(name);
        let kept = host.path("kept");
        fs::create_dir_all(&path).unwrap();
        // What is there already goes along.
        let copy = format!(
            "cp -a {path}/. {kept} && mount -t tmpfs -o {options} none {path} && cp -a {kept}/. {path} \
             && rm -r {kept}",
            path = path.display(),
            kept = kept.display(),
        );
        let mounted = Command::new("sh").args(["-c", &copy]).output().unwrap();
        if !mounted.status.success() {
            eprintln!("skipped: no small disk: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { host, name })
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let path = self.host.path(self.name);
        assert!(Command::new("mount").args(["-o", &options]).arg(path).status().unwrap().success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.host.path(self.name)).status();
    }
}

/// Uses up what is free, in bytes and then in files.
fn fill(directory: &Path) {
    let mut file = fs::File::create(directory.join("filler")).unwrap();
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|count| count > 0) {}
}

fn assert_told(outcome: &Outcome, words: &[&str]) {
    let told = words.iter().any(|words| outcome.stderr.contains(words));
    assert!(told && outcome.code != 0, "{outcome:?}");
}

#[test]
fn a_full_disk_of_either_directory_is_named_and_leaves_nothing() {
    for name in ["root", "state"] {
        let host = host!();
        let Some(disk) = SmallDisk::mount(&host, name, "size=24m") else { return };
        run(&host, "old");
        fill(&host.path(name));
        let outcome = host.caisson(&["run", "-d", "--name", "new", "tools", "sleep", "1000"]);
        assert_told(&outcome, &["the disk is full", "No space left", "database or disk is full"]);
        host.caisson(&["ps"]).exited_with(0).showed("old");
        host.caisson(&["exec", "old", "true"]);
        fs::remove_file(host.path(name).join("filler")).unwrap();
        host.caisson(&["rm", "-f", "old"]).exited_with(0);
        host.caisson(&["rm", "-f", "new"]).exited_with(0);
        run(&host, "new");
        host.caisson(&["rm", "-f", "new"]).exited_with(0);
        host.nothing_left();
        drop(disk);
    }
}

#[test]
fn a_disk_that_is_full_does_not_keep_containers_from_being_removed() {
    let host = host!();
    let Some(disk) = SmallDisk::mount(&host, "root", "size=24m") else { return };
    run(&host, "old");
    fill(&host.path("root"));
    // The database's log takes the change where its pages were reserved, or the removal
    // says what it wants; never half.
    let removed = host.caisson(&["rm", "-f", "old"]);
    if removed.code != 0 {
        assert_told(&removed, &["full", "No space left"]);
        fs::remove_file(host.path("root/filler")).unwrap();
        host.caisson(&["rm", "-f", "old"]).exited_with(0);
    }
    host.nothing_left();
    drop(disk);
}

#[test]
fn a_disk_without_free_inodes_is_named_at_any_step() {
    let host = host!();
    let mut failures = 0;
    for free in (0..24).step_by(3) {
        let Some(disk) = SmallDisk::mount(&host, "state", "size=24m") else { return };
        let used = 4;
        disk.remount(&format!("nr_inodes={}", used + free));
        let outcome = host.caisson(&["run", "-d", "--name", "web", "tools", "sleep", "1000"]);
        if outcome.code != 0 {
            failures += 1;
            assert_told(&outcome, &["the disk is full", "No space left"]);
        }
        disk.remount("nr_inodes=1000");
        host.caisson(&["rm", "-f", "web"]).exited_with(0);
        host.nothing_left();
        drop(disk);
    }
    assert!(failures > 0);
}

#[test]
fn a_read_only_disk_is_named_and_leaves_nothing() {
    for name in ["root", "state"] {
        let host = host!();
        let Some(disk) = SmallDisk::mount(&host, name, "size=24m") else { return };
        disk.remount("ro");
        let outcome = host.caisson(&["run", "--rm", "tools", "true"]);
        assert_told(&outcome, &["ead-only file system", "readonly database"]);
        disk.remount("rw");
        host.caisson(&["run", "--rm", "tools", "echo", "again"]).succeeded().printed("again\n");
        host.nothing_left();
        drop(disk);
    }
}

/// The command line and, as they inherit it, the shim and the monitor.
#[test]
fn too_few_descriptors_are_an_error_and_leave_nothing() {
    let host = host!();
    let (mut failures, mut successes) = (0, 0);
    for limit in (4..52).step_by(3) {
        let args = ["run", "-d", "--name", "web", "tools", "sleep", "1000"];
        let mut command = host.command(&args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: one system call, in the child of a fork.
        unsafe {
            command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?));
        }
        let outcome = Outcome::of(&args, command.spawn().unwrap());
        match outcome.code {
            0 => successes += 1,
            _ => {
                failures += 1;
                assert!(!outcome.stderr.contains("panicked"), "{limit}: {outcome:?}");
            }
        }
        host.caisson(&["rm", "-f", "web"]).exited_with(0);
        host.nothing_left();
    }
    assert!(failures > 1 && successes > 1, "{failures} failures, {successes} successes");
}

#[test]
fn a_pause_whose_record_was_lost_can_be_undone() {
    let host = host!();
    run(&host, "frozen");
    host.caisson(&["pause", "frozen"]).succeeded();
    // As if the command had died between the two.
    change_rows(&host, "UPDATE containers SET paused = 0");
    host.caisson(&["pause", "frozen"]).exited_with(1).complained("already paused");
    host.caisson(&["ps"]).succeeded().showed(" (Paused)");
    host.caisson(&["unpause", "frozen"]).succeeded();
    host.caisson(&["exec", "frozen", "true"]).succeeded();
    host.caisson(&["rm", "-f", "frozen"]).succeeded();
    host.nothing_left();
}
