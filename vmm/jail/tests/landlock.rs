//! Landlock by itself: a process that is confined by nothing else.

use std::{
    net::TcpListener,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use caisson_jail::landlock;

/// What a child says that has confined itself and then tried `action`.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Worked,
    Failed(i32),
    NoLandlock,
}

/// `action` returns 0 or an error number. It may allocate: glibc's allocator survives a
/// fork, and no other lock of this process is taken.
fn confined(least_abi: u32, action: impl FnOnce() -> i32) -> Said {
    const NO_LANDLOCK: i32 = 254;
    const BROKEN: i32 = 255;
    // SAFETY: the child has one thread, keeps to plain system calls and the allocator, and
    // leaves without unwinding.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                libc::_exit(BROKEN);
            }
            match landlock::forbid_all() {
                Ok(abi) if abi < least_abi => libc::_exit(NO_LANDLOCK),
                Ok(_) => libc::_exit(action()),
                Err(_) => libc::_exit(BROKEN),
            }
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFEXITED(status), "status {status:#x}");
        match libc::WEXITSTATUS(status) {
            0 => Said::Worked,
            NO_LANDLOCK => {
                eprintln!("SKIP: this kernel has no Landlock ABI {least_abi}");
                Said::NoLandlock
            }
            BROKEN => panic!("the child could not confine itself"),
            error => Said::Failed(error),
        }
    }
}

fn error_of<T>(result: std::io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(253))
}

#[track_caller]
fn assert_refused(said: Said, error: i32) {
    assert!([Said::Failed(error), Said::NoLandlock].contains(&said), "{said:?}, not {error}");
}

#[test]
fn no_file_is_opened_made_or_removed_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let (new, link) = (directory.path().join("new"), directory.path().join("link"));
    assert_refused(confined(1, || error_of(std::fs::read("/proc/self/status"))), libc::EACCES);
    assert_refused(confined(1, || error_of(std::fs::read(&file))), libc::EACCES);
    assert_refused(confined(1, || error_of(std::fs::write(&new, "x"))), libc::EACCES);
    assert_refused(confined(1, || error_of(std::fs::read_dir("/"))), libc::EACCES);
    assert_refused(confined(1, || error_of(std::fs::create_dir(&new))), libc::EACCES);
    assert_refused(confined(1, || error_of(std::fs::remove_file(&file))), libc::EACCES);
    // Across directories nothing is linked, even without a right of its own (EXDEV).
    let linked = confined(1, || error_of(std::fs::hard_link(&file, &link)));
    assert!(linked != Said::Worked, "{linked:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"content");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn what_is_open_stays_usable() {
    let file = tempfile::tempfile().unwrap();
    let said = confined(0, || {
        use std::os::unix::fs::FileExt;
        error_of(file.write_all_at(b"written", 0).and_then(|()| file.set_len(3)))
    });
    assert_eq!(said, Said::Worked);
    assert_eq!(file.metadata().unwrap().len(), 3);
}

#[test]
fn no_tcp_port_is_bound_or_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || error_of(std::net::TcpStream::connect(address));
    assert_refused(confined(4, connect), libc::EACCES);
    assert_refused(confined(4, || error_of(TcpListener::bind("127.0.0.1:0"))), libc::EACCES);
}

#[test]
fn no_socket_or_process_outside_is_reached() {
    let name = format!("caisson-landlock-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    assert!(UnixStream::connect_addr(&address).is_ok());
    let connect = || error_of(UnixStream::connect_addr(&address));
    assert_refused(confined(6, connect), libc::EPERM);
    let signal_parent = || {
        // SAFETY: takes numbers; the signal 0 only asks whether it may be sent.
        match unsafe { libc::kill(libc::getppid(), 0) } {
            0 => 0,
            _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(253),
        }
    };
    assert_refused(confined(6, signal_parent), libc::EPERM);
    // A connection that exists is not touched.
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: the buffer outlives the call and is as long as said.
    let send =
        || unsafe { i32::from(libc::write(theirs.as_raw_fd(), c"x".as_ptr().cast(), 1) != 1) };
    assert_eq!(confined(0, send), Said::Worked);
    drop(ours);
}
