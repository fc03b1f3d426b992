//! `load`, `import`, `images`, `rmi`, and what layers say.

use std::{fs, path::Path, process::Command};

use caisson_tests::{Leftovers, host};

#[test]
fn both_images_are_listed_as_docker_lists_them() {
    let host = host!();
    let listed = host.caisson(["images"]).succeeded();
    assert!(listed.lines()[0].starts_with("REPOSITORY"), "{listed:?}");
    let line = |repository: &str, tag: &str| {
        listed.lines().iter().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(repository) && words.next() == Some(tag)
        })
    };
    assert!(line("debian", "12") && line("busybox", "latest"), "{listed:?}");
}

#[test]
fn layers_delete_replace_and_hide_as_they_say() {
    let host = host!();
    let script =
        "cd /opt; ls | sort | grep -v nnn; ls -A opaque; cat becomes-a-directory/file replaced";
    host.caisson(["run", "--rm", "debian:12", "sh", "-c", script]).succeeded().printed(
        "becomes-a-directory\ncapable\nfifo\nlinked-1\nlinked-2\nnull\nopaque\nreplaced\n\
         setuid\nsparse\nnew\nfrom layer 3\nfrom layer 3, and longer\n",
    );
}

#[test]
fn owners_times_links_devices_and_attributes_are_kept() {
    let host = host!();
    let script = r#"
import os, stat
os.chdir("/opt")
s = os.lstat("replaced"); print(s.st_uid, s.st_gid, s.st_mtime_ns)
a, b = os.lstat("linked-1"), os.lstat("linked-2"); print(a.st_ino == b.st_ino, a.st_nlink)
print(oct(os.lstat("setuid").st_mode), oct(os.lstat("fifo").st_mode), oct(os.lstat("opaque").st_mode))
n = os.lstat("null"); print(stat.S_ISCHR(n.st_mode), os.major(n.st_rdev), os.minor(n.st_rdev))
s = os.lstat("sparse"); print(s.st_size, open("sparse", "rb").read()[-4:])
print(os.getxattr("linked-1", "user.note"), len(os.getxattr("capable", "security.capability")))
print(len(max(os.listdir("."), key=len)))
"#;
    host.caisson(["run", "--rm", "debian:12", "python3", "-c", script]).succeeded().printed(
        "12345 123456 981173106789000000\nTrue 2\n0o104755 0o10640 0o40750\nTrue 1 3\n\
         67108868 b'end\\n'\nb'kept' 20\n255\n",
    );
}

#[test]
fn a_tarball_becomes_an_image() {
    let host = host!();
    let scratch = host.scratch();
    let tree = scratch.path().join("tree/bin");
    fs::create_dir_all(&tree).expect("make a tree");
    fs::copy("/usr/bin/busybox", tree.join("sh"))
        .or_else(|_| fs::copy("/bin/busybox", tree.join("sh")))
        .expect("busybox-static is there");
    tar(&scratch.path().join("tree"), "../tree.tar", &["."]);
    let archive = scratch.path().join("tree.tar");
    let archive = archive.to_str().expect("a path in UTF-8");
    host.caisson(["import", archive, "imported:1"]).succeeded();
    host.caisson(["run", "--rm", "imported:1", "/bin/sh", "-c", "echo works"])
        .succeeded()
        .printed("works\n");
    host.caisson(["rmi", "imported:1"]).succeeded();
    host.caisson(["rmi", "imported:1"]).exited_with(1).complained_about("imported:1");
}

#[test]
fn an_image_comes_by_standard_input_too() {
    let host = host!();
    let archive = fs::read(&host.busybox).expect("the archive is there");
    host.caisson_with_input(["load"], &archive).succeeded().printed_something_like("busybox");
}

#[test]
fn a_layer_that_is_not_what_the_image_says_is_named_and_leaves_nothing() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let scratch = host.scratch();
    let promised = "0".repeat(64);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{promised}"]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["lies:1"],"Layers":["layer.tar"]}]"#;
    fs::write(scratch.path().join("config.json"), config).expect("write the config");
    fs::write(scratch.path().join("manifest.json"), manifest).expect("write the manifest");
    fs::write(scratch.path().join("file"), "content\n").expect("write a file");
    tar(scratch.path(), "layer.tar", &["file"]);
    tar(scratch.path(), "lies.tar", &["manifest.json", "config.json", "layer.tar"]);
    let archive = scratch.path().join("lies.tar");
    host.caisson(["load", "-i", archive.to_str().expect("a path in UTF-8")])
        .exited_with(1)
        .complained_about(&promised);
    host.caisson(["images", "-q", "lies:1"]).succeeded().printed("");
    leftovers.none(host);
}

fn tar(directory: &Path, archive: &str, files: &[&str]) {
    let made =
        Command::new("tar").current_dir(directory).args(["-cf", archive]).args(files).status();
    assert!(made.expect("start tar").success());
}

#[test]
fn what_is_no_image_is_refused() {
    let host = host!();
    host.caisson(["load", "-i", "/etc/passwd"]).exited_with(1).complained_about("/etc/passwd");
    host.caisson(["load", "-i", "/no/such/file"]).exited_with(1).complained_about("/no/such/file");
}

#[test]
fn an_image_in_use_is_not_removed() {
    let host = host!();
    host.caisson(["run", "--name", "user", "busybox", "true"]).succeeded();
    host.caisson(["rmi", "busybox"]).exited_with(1).complained_about("user");
    host.caisson(["rm", "user"]).succeeded();
}
