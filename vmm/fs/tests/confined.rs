//! The server as the vmm meets it: a process behind a socket that is sent FUSE messages, both
//! such as a guest's kernel sends and such as only a hostile one would.

mod client;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use client::{Client, ROOT, is_root, op};

/// A directory with two shares, `rw` and `ro`, and a file beside them that is not shared.
fn scene() -> Option<(tempfile::TempDir, Client)> {
    if !is_root() {
        eprintln!("SKIP: a file server needs root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("secret"), "host").unwrap();
    for share in ["rw", "ro"] {
        fs::create_dir(path.join(share)).unwrap();
        fs::write(path.join(share).join("file"), share).unwrap();
    }
    let mut client = Client::start(&[(&path.join("rw"), false), (&path.join("ro"), true)]);
    client.init();
    Some((directory, client))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn files_are_read_and_written() {
    let Some((directory, mut client)) = scene() else { return };
    let share = client.lookup(ROOT, "0").unwrap();
    let file = client.lookup(share, "file").unwrap();
    assert_eq!(client.read(file).unwrap(), b"rw");
    assert_eq!(client.create(share, "new", 0o640, 1000), Err(libc::EACCES), "it is root's");
    let everyones = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path().join("rw"), everyones).unwrap();
    let (made, handle) = client.create(share, "new", 0o640, 1000).unwrap();
    client.write(made, handle, b"from the guest").unwrap();
    let path = directory.path().join("rw/new");
    assert_eq!(fs::read(&path).unwrap(), b"from the guest");
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (1000, 0o640));
    fs::write(&path, "from the host").unwrap();
    assert_eq!(client.read(made).unwrap(), b"from the host");
}

#[test]
fn attributes_links_and_names_are_the_hosts() {
    let Some((directory, mut client)) = scene() else { return };
    let share = client.lookup(ROOT, "0").unwrap();
    let file = client.lookup(share, "file").unwrap();
    client.set_xattr(file, "user.a", b"value").unwrap();
    assert_eq!(client.get_xattr(file, "user.a").unwrap(), b"value");
    client.link(file, share, "second").unwrap();
    let path = directory.path().join("rw");
    assert_eq!(path.join("file").metadata().unwrap().nlink(), 2);
    client.unlink(share, "file").unwrap();
    assert!(!exists(&path.join("file")));
    assert_eq!(client.read(file).unwrap(), b"rw", "what has no name any more is still there");
}

#[test]
fn a_read_only_share_is_so_by_the_hosts_kernel() {
    let Some((directory, mut client)) = scene() else { return };
    let share = client.lookup(ROOT, "1").unwrap();
    let file = client.lookup(share, "file").unwrap();
    assert_eq!(client.read(file).unwrap(), b"ro");
    assert_eq!(client.create(share, "new", 0o644, 0), Err(libc::EROFS));
    assert_eq!(client.unlink(share, "file"), Err(libc::EROFS));
    assert_eq!(client.set_xattr(file, "user.a", b"value"), Err(libc::EROFS));
    assert_eq!(client.open(file, libc::O_RDWR), Err(libc::EROFS));
    assert!(exists(&directory.path().join("ro/file")));
    // Nor through the other share.
    let writable = client.lookup(ROOT, "0").unwrap();
    assert_eq!(client.link(file, writable, "stolen"), Err(libc::EXDEV));
}

#[test]
fn no_name_leads_out() {
    let Some((directory, mut client)) = scene() else { return };
    let share = client.lookup(ROOT, "0").unwrap();
    for name in ["../secret", "../../proc", "/etc/passwd", "file/../../secret"] {
        assert!(client.lookup(share, name).is_err(), "{name}");
        assert!(client.create(share, name, 0o644, 0).is_err(), "{name}");
        assert!(client.unlink(share, name).is_err(), "{name}");
    }
    // The parent of a share is the root, and the root its own parent.
    let parent = client.lookup(share, "..").unwrap();
    for above in [parent, client.lookup(parent, "..").unwrap()] {
        assert!(client.lookup(above, "0").is_ok());
        for name in ["proc", "secret", "shares", "etc"] {
            assert_eq!(client.lookup(above, name), Err(libc::ENOENT), "{name}");
        }
    }
    assert!(exists(&directory.path().join("secret")));
}

#[test]
fn no_link_is_followed() {
    let Some((directory, mut client)) = scene() else { return };
    let secret = directory.path().join("secret");
    let share = client.lookup(ROOT, "0").unwrap();
    for target in [secret.to_str().unwrap(), "../secret", "/proc/self/root", "/proc/1/mem"] {
        let link = directory.path().join("rw/link");
        symlink(target, &link).unwrap();
        let node = client.lookup(share, "link").unwrap();
        assert!(client.open(node, libc::O_RDWR).is_err(), "{target}");
        assert!(client.lookup(node, "secret").is_err(), "{target}");
        fs::remove_file(link).unwrap();
        client.forget(node);
    }
    assert_eq!(fs::read(secret).unwrap(), b"host");
}

#[test]
fn device_nodes_are_neither_made_nor_opened() {
    let Some((directory, mut client)) = scene() else { return };
    let share = client.lookup(ROOT, "0").unwrap();
    assert_eq!(client.mknod(share, "null", libc::S_IFCHR | 0o666, 0x103), Err(libc::EPERM));
    let path = directory.path().join("rw/null");
    let made = std::process::Command::new("mknod").arg(&path).args(["c", "1", "3"]).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: this host lets root make no device node");
        return;
    }
    let node = client.lookup(share, "null").unwrap();
    assert_eq!(client.open(node, libc::O_RDWR), Err(libc::EBADF));
}

#[test]
fn messages_that_are_none_end_nothing() {
    let Some((_directory, mut client)) = scene() else { return };
    for message in [&[0_u8; 1][..], &[0; 40], &[0xff; 40], &[0xff; 4096]] {
        client.send_raw(message);
    }
    for opcode in 0..64 {
        // Not the one that waits for the next session.
        if opcode != op::DESTROY {
            client.send_request(opcode, u64::MAX, &[0xff; 200]);
        }
    }
    assert!(client.lookup(ROOT, "0").is_ok());
}

#[test]
fn a_single_file_is_shared_without_its_directory() {
    if !is_root() {
        eprintln!("SKIP: a file server needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one");
    fs::write(&path, "content").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut client = Client::start(&[(&path, false)]);
    client.init();
    let file = client.lookup(ROOT, "0").unwrap();
    assert_eq!(client.read(file).unwrap(), b"content");
    assert!(client.lookup(file, "..").is_err());
}

#[test]
fn the_server_ends_with_its_socket() {
    let Some((_directory, client)) = scene() else { return };
    assert!(client.end().success());
}
