//! Directories and files of the host in a container.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use caisson_tests::{Host, Leftovers, Outcome, eventually, host};

/// Runs `caisson` in this directory, which is the host's in the machine too.
fn caisson_in(host: &Host, directory: &Path, arguments: &[&str]) -> Outcome {
    let mut command = host.command(arguments.iter().copied());
    let output = command.current_dir(directory).output().expect("start caisson");
    Outcome::of(&command, output)
}

#[test]
fn directories_and_files_are_the_hosts_own() {
    let host = host!();
    let scratch = host.scratch();
    let at = |name: &str| scratch.path().join(name);
    fs::create_dir(at("data")).expect("a directory");
    fs::write(at("data/in"), "from the host\n").expect("a file");
    fs::write(at("app.conf"), vec![b'x'; 3 << 20]).expect("a file");
    let binding = format!("{}:/data/conf:ro", at("app.conf").display());
    let script = "cat /data/in; wc -c < /data/conf; mkdir /data/sub; echo out > /data/sub/out
        chmod 600 /data/sub/out; chown 7:8 /data/sub/out; ln -s /etc/passwd /data/link
        head -c 2000000 /dev/zero > /data/large; echo more >> /data/sub/out
        ls /again; rm /again/in; ls /data/in 2>&1; grep -c ' /shares\\| virtiofs ' /proc/mounts";
    // From another directory: in the machine too, what is named is the host's.
    let data = at("data").display().to_string();
    let places = [format!("{data}:/data"), format!("{data}:/again")];
    let mounts = ["-v", &places[0], "-v", &binding, "-v", &places[1]];
    let run = [&["run", "--rm"], &mounts[..], &["busybox", "sh", "-c", script]].concat();
    host.caisson(run).succeeded().printed(
        "from the host\n3145728\nconf\nin\nlarge\nlink\nsub\n\
             ls: /data/in: No such file or directory\n3\n",
    );
    assert_eq!(fs::read_to_string(at("data/sub/out")).expect("a file"), "out\nmore\n");
    let out = fs::metadata(at("data/sub/out")).expect("a file");
    assert_eq!(out.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&out), 7);
    assert_eq!(fs::metadata(at("data/large")).expect("a file").len(), 2_000_000);
    assert_eq!(fs::read_link(at("data/link")).expect("a link"), Path::new("/etc/passwd"));
}

/// Root of a privileged container is the guest's: it may mount the filesystem again, and
/// take the flags off.
#[test]
fn what_is_read_only_is_so_for_the_guests_root_and_devices_are_nobodys() {
    let host = host!();
    let scratch = host.scratch();
    fs::create_dir_all(scratch.path().join("data/below")).expect("a directory");
    fs::write(scratch.path().join("data/file"), "as it was\n").expect("a file");
    std::os::unix::fs::symlink("/etc/shadow", scratch.path().join("data/out")).expect("a link");
    let script = "mkdir /mnt; mount -o remount,rw /data; mount -t virtiofs shares /mnt; ls /mnt
        for d in /data /mnt/0; do
            echo x > $d/file; rm $d/file; mkdir $d/made; chmod 777 $d/file; mknod $d/null c 1 3
        done 2>/dev/null; cat /data/file
        mknod /rw/null c 1 3 2>/dev/null || echo no device
        cat /mnt/0/out 2>/dev/null || echo no secret; ls /mnt/0/..";
    let arguments = [
        "run",
        "--rm",
        "--privileged",
        "--mount",
        "type=bind,source=./data,target=/data,readonly",
        "-v",
        "./data/below:/rw",
        "busybox",
    ];
    caisson_in(host, scratch.path(), &[&arguments[..], &["sh", "-c", script]].concat())
        .succeeded()
        .printed("0\n1\nas it was\nno device\nno secret\n0\n1\n");
    let mut left: Vec<_> = fs::read_dir(scratch.path().join("data"))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["below", "file", "out"]);
}

#[test]
fn a_source_that_is_missing_or_no_file_is_told() {
    let host = host!();
    let scratch = host.scratch();
    let here = scratch.path();
    caisson_in(host, here, &["run", "--mount", "type=bind,src=./no,dst=/d", "busybox", "true"])
        .exited_with(125)
        .complained_about("bind source path does not exist: ")
        .complained_about("/no");
    caisson_in(host, here, &["run", "--rm", "-v", "./made:/etc/passwd", "busybox", "true"])
        .exited_with(125)
        .complained_about("are you trying to mount a directory onto a file");
    assert!(here.join("made").is_dir());
    caisson_in(host, here, &["run", "--rm", "-v", "/dev/null:/d", "busybox", "true"])
        .exited_with(125)
        .complained_about("a microVM has no devices of the host");
}

#[test]
fn a_killed_file_server_fails_the_guests_files_and_nothing_else() {
    let host = host!();
    let scratch = host.scratch();
    let leftovers = Leftovers::watch(host);
    let run = ["run", "-d", "--name", "served", "-v", ".:/data", "busybox", "sleep", "1000"];
    caisson_in(host, scratch.path(), &run).succeeded();
    host.caisson(["exec", "served", "touch", "/data/file"]).succeeded();
    host.inside("kill -9 $(pidof caisson-fs)").succeeded();
    host.caisson(["exec", "served", "touch", "/data/other"])
        .exited_with(1)
        .complained_about("not connected");
    host.caisson(["exec", "served", "echo", "alive"]).succeeded().printed("alive\n");
    // And with a server again, whoever loses its shim.
    host.caisson(["rm", "-f", "served"]).succeeded();
    caisson_in(host, scratch.path(), &run).succeeded();
    host.inside("kill -9 $(pidof containerd-shim-caisson-v2)").succeeded();
    let gone = || host.inside("pidof caisson-fs").stdout.trim().is_empty();
    eventually("the file server has ended with its VM", 20, gone);
    host.caisson(["rm", "-f", "served"]).succeeded();
    leftovers.none(host);
}

#[test]
fn a_volume_begins_with_the_images_content_and_is_kept() {
    let host = host!();
    let write = "echo mine > /etc/mine; chown 7:8 /etc/mine; test -s /etc/passwd; ls -ld /etc";
    let first = host.caisson(["run", "--rm", "-v", "conf:/etc", "busybox", "sh", "-c", write]);
    let plain = host.caisson(["run", "--rm", "busybox", "ls", "-ld", "/etc"]).succeeded();
    let owner_and_mode = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        [words[0], words[2], words[3]].join(" ")
    };
    assert_eq!(owner_and_mode(&first.succeeded().stdout), owner_and_mode(&plain.stdout));
    let read = "cat /kept/mine; stat -c %u:%g /kept/mine; cmp /kept/passwd /etc/passwd
        echo x 2>/dev/null > /kept/mine || echo read-only";
    host.caisson(["run", "--rm", "-v", "conf:/kept:ro", "busybox", "sh", "-c", read])
        .succeeded()
        .printed("mine\n7:8\nread-only\n");
    host.caisson(["volume", "rm", "conf"]).succeeded().printed("conf\n");
}
