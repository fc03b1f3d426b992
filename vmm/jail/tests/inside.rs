//! The jail seen from inside: this program enters one and looks around.
//!
//! Run without arguments it is the test: it starts itself as the shim starts a vmm, with
//! more than a vmm should have, and compares what that finds with what it should.

use std::{
    fs, io,
    io::Write,
    net::TcpStream,
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, Stdio},
};

use caisson_jail::{Jail, pid_namespace};

const UID: u32 = 64_001;
const GID: u32 = 64_002;

fn main() {
    if std::env::args().any(|word| word == "inside") {
        return inside();
    }
    // What a test runner asks a test program.
    if std::env::args().any(|word| word == "--list") {
        println!("the_jail_from_inside: test");
        return;
    }
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIP: a jail needs root");
        return;
    }
    the_jail_from_inside(UserNamespaces::Allowed);
    the_jail_from_inside(UserNamespaces::Refused);
    println!("test the_jail_from_inside ... ok");
}

/// What the host says to a process that wants one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserNamespaces {
    /// As far as this host does.
    Allowed,
    /// A filter refuses them, as hosts do that are set up so.
    Refused,
}

fn the_jail_from_inside(user_namespaces: UserNamespaces) {
    let secret = tempfile::tempfile().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("inside").env("SECRET", "of the parent").stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (secret_fd, umask) = (secret.as_raw_fd(), 0o022);
    // SAFETY: the child only makes system calls that are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            libc::umask(umask);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            libc::signal(libc::SIGRTMIN(), libc::SIG_IGN);
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            // Inherited by mistake.
            libc::fcntl(secret_fd, libc::F_SETFD, 0);
            if user_namespaces == UserNamespaces::Refused {
                refuse_user_namespaces()
            } else {
                Ok(())
            }
        });
    }
    let output = pid_namespace::spawn(&mut command).unwrap().wait_with_output().unwrap();
    let found = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success(),
        "{}, signal {:?}\n{found}",
        output.status,
        output.status.signal()
    );
    let (mapping, rest) = found.split_once('\n').unwrap();
    assert_eq!(rest, EXPECTED);
    let refused = "user namespace: enter a user namespace: Operation not permitted (os error 1)";
    match user_namespaces {
        UserNamespaces::Refused => assert_eq!(mapping, refused.replace(": enter", ": jail: enter")),
        UserNamespaces::Allowed if mapping == "user namespace: its own" => {}
        UserNamespaces::Allowed => eprintln!("SKIP: this host allows no user namespace: {mapping}"),
    }
}

/// Makes `unshare(CLONE_NEWUSER)` fail with EPERM from now on.
fn refuse_user_namespaces() -> io::Result<()> {
    const ARGUMENT: u32 = 16;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let has = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let result = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        step(load, 0, 0, 0),
        step(is, 0, 3, libc::SYS_unshare as u32),
        step(load, 0, 0, ARGUMENT),
        step(has, 0, 1, libc::CLONE_NEWUSER as u32),
        step(result, 0, 0, refuse),
        step(result, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call and is as long as said. Root needs no
    // `no_new_privs` for it.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const EXPECTED: &str = "\
pid 1, parent 0
users 64001 64001 64001, groups 64002 64002 64002, others 0
capabilities 0 0 0, bounding 0, ambient 0
no new privileges 1, dumpable 0, keep capabilities 0
files 0 1 2
limits files 64, core 0, memlock 0, msgqueue 0
umask 077, blocked 0, ignored [13]
environment 0
working directory /
read / EACCES
read /proc EACCES
make /file EACCES
mount EPERM
pivot_root EPERM
chroot EACCES
unshare mount EPERM
unshare net EPERM
become root EPERM
become the parent's user EINVAL
leave groups EPERM
raise the limit EPERM
set the host name EPERM
a raw socket EPERM
connect EACCES
interfaces 1, up 0
";

/// Enters the jail, and writes what it finds to standard error, the one stream that stays.
fn inside() {
    let jail = Jail { uid: UID, gid: GID, max_open_files: 64 };
    let entered = caisson_jail::enter(&jail, &[], false).unwrap();
    let mapped = entered.no_user_namespace.is_none();
    let mut text = match &entered.no_user_namespace {
        None => "user namespace: its own\n".to_owned(),
        Some(error) => {
            let cause = std::error::Error::source(error).unwrap();
            format!("user namespace: {error}: {cause}\n")
        }
    };
    text += &identity();
    text += &inherited();
    text += &refusals(mapped, entered.landlock_abi);
    text += &interfaces();
    io::stderr().write_all(text.as_bytes()).unwrap();
}

fn identity() -> String {
    let [mut r, mut e, mut s] = [0; 3];
    let [mut rg, mut eg, mut sg] = [0; 3];
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [0_u32; 6];
    // SAFETY: every pointer is to a value that outlives its call and is as large as the call
    // expects; the rest are numbers.
    unsafe {
        libc::getresuid(&mut r, &mut e, &mut s);
        libc::getresgid(&mut rg, &mut eg, &mut sg);
        libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr());
        let held = |option, last: libc::c_ulong| {
            (0..=last).filter(|&number| libc::prctl(option, number, 0, 0, 0) == 1).count()
        };
        let bounding = held(libc::PR_CAPBSET_READ, 40);
        let ambient = (0..=40_u64)
            .filter(|&number| {
                let is_set = libc::PR_CAP_AMBIENT_IS_SET as libc::c_ulong;
                libc::prctl(libc::PR_CAP_AMBIENT, is_set, number, 0, 0) == 1
            })
            .count();
        format!(
            "pid {}, parent {}\nusers {r} {e} {s}, groups {rg} {eg} {sg}, others {}\n\
             capabilities {} {} {}, bounding {bounding}, ambient {ambient}\n\
             no new privileges {}, dumpable {}, keep capabilities {}\n",
            libc::getpid(),
            libc::getppid(),
            libc::getgroups(0, std::ptr::null_mut()),
            data[0] | data[3],
            data[1] | data[4],
            data[2] | data[5],
            libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
            libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0),
            libc::prctl(libc::PR_GET_KEEPCAPS, 0, 0, 0, 0),
        )
    }
}

fn inherited() -> String {
    // SAFETY: as in `identity`.
    unsafe {
        let open: Vec<String> = (0..4096)
            .filter(|&fd| libc::fcntl(fd, libc::F_GETFD) != -1)
            .map(|fd| fd.to_string())
            .collect();
        let limit = |resource| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::getrlimit(resource, &mut limit);
            assert_eq!(limit.rlim_cur, limit.rlim_max);
            limit.rlim_max
        };
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
        let signals = 1..=libc::SIGRTMAX();
        let blocked = signals.clone().filter(|&n| libc::sigismember(&blocked, n) == 1).count();
        let ignored: Vec<i32> = signals
            .filter(|&signal| {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut action) == 0
                    && action.sa_sigaction == libc::SIG_IGN
            })
            .collect();
        let umask = libc::umask(0o077);
        format!(
            "files {}\nlimits files {}, core {}, memlock {}, msgqueue {}\n\
             umask {umask:03o}, blocked {blocked}, ignored {ignored:?}\nenvironment {}\n\
             working directory {}\n",
            open.join(" "),
            limit(libc::RLIMIT_NOFILE),
            limit(libc::RLIMIT_CORE),
            limit(libc::RLIMIT_MEMLOCK),
            limit(libc::RLIMIT_MSGQUEUE),
            std::env::vars_os().count(),
            std::env::current_dir().unwrap().display(),
        )
    }
}

fn refusals(mapped: bool, landlock_abi: u32) -> String {
    let none = std::ptr::null();
    let mut text = String::new();
    let mut note = |what: &str, error: i32| {
        let name = match error {
            0 => "works".to_owned(),
            libc::EACCES => "EACCES".to_owned(),
            libc::EPERM => "EPERM".to_owned(),
            libc::EINVAL => "EINVAL".to_owned(),
            other => format!("error {other}"),
        };
        text += &format!("{what} {name}\n");
    };
    let of = |result: i64| match result {
        -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    };
    let of_io = |result: io::Result<()>| result.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1));
    note("read /", of_io(fs::read_dir("/").map(drop)));
    // Without Landlock the search in the root, which has no mode bit, is refused alike.
    note("read /proc", of_io(fs::read_dir("/proc").map(drop)));
    note("make /file", of_io(fs::write("/file", "")));
    // SAFETY: constant strings and numbers; each call would change this process alone.
    unsafe {
        let tmpfs = c"tmpfs".as_ptr();
        let slash = c"/".as_ptr();
        note("mount", of(libc::mount(tmpfs, slash, tmpfs, 0, none).into()));
        note("pivot_root", of(libc::syscall(libc::SYS_pivot_root, slash, slash)));
        note("chroot", of(libc::chroot(slash).into()));
        note("unshare mount", of(libc::unshare(libc::CLONE_NEWNS).into()));
        note("unshare net", of(libc::unshare(libc::CLONE_NEWNET).into()));
        // In a user namespace no other user has a number.
        let root = of(libc::setresuid(0, 0, 0).into());
        note("become root", if mapped && root == libc::EINVAL { libc::EPERM } else { root });
        let other = of(libc::setresuid(1, 1, 1).into());
        let expected = if mapped { libc::EINVAL } else { libc::EPERM };
        note("become the parent's user", if other == expected { libc::EINVAL } else { other });
        note("leave groups", of(libc::setgroups(0, std::ptr::null()).into()));
        let more = libc::rlimit { rlim_cur: 65, rlim_max: 65 };
        note("raise the limit", of(libc::setrlimit(libc::RLIMIT_NOFILE, &more).into()));
        note("set the host name", of(libc::sethostname(c"x".as_ptr(), 1).into()));
        note("a raw socket", of(libc::socket(libc::AF_INET, libc::SOCK_RAW, 1).into()));
    }
    // Without Landlock's rule about ports there is still no way out of the namespace.
    let connected = of_io(TcpStream::connect(("127.0.0.1", 1)).map(drop));
    let without = [libc::ENETUNREACH, libc::ECONNREFUSED, libc::EADDRNOTAVAIL];
    let refused = landlock_abi < 4 && without.contains(&connected);
    note("connect", if refused { libc::EACCES } else { connected });
    text
}

/// The network interfaces, asked of the kernel: there is no /proc and no /sys.
fn interfaces() -> String {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    let mut names = std::collections::BTreeMap::new();
    // SAFETY: getifaddrs fills a list whose entries and names stay until freeifaddrs.
    unsafe {
        assert_eq!(libc::getifaddrs(&mut list), 0);
        let mut entry = list;
        while !entry.is_null() {
            let name = std::ffi::CStr::from_ptr((*entry).ifa_name).to_owned();
            names.insert(name, (*entry).ifa_flags & libc::IFF_UP as u32 != 0);
            entry = (*entry).ifa_next;
        }
        libc::freeifaddrs(list);
    }
    format!("interfaces {}, up {}\n", names.len(), names.values().filter(|&&up| up).count())
}
