//! A file server that serves nothing, for tests of the shim's processes: it takes the real
//! config and files, says that it is ready, and ends with the other end of its socket.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use caisson_fs::config::Config;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    assert_eq!(words[1], "--config-fd");
    let mut json = String::new();
    File::from(take(words[2].parse().unwrap())).read_to_string(&mut json).unwrap();
    let config: Config = serde_json::from_str(&json).unwrap();
    for share in &config.shares {
        let source = File::from(take(share.source));
        assert!(source.metadata().unwrap().is_dir() && share.readonly);
    }
    File::from(take(config.ready)).write_all(b"\n").unwrap();
    let mut socket = File::from(take(config.socket));
    let _ = socket.read(&mut [0]);
}

fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the config names each inherited descriptor once, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
