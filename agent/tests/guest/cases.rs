//! The cases, in plain verbs.

use std::{
    io::{Read, Write},
    net::Shutdown,
    panic::RefUnwindSafe,
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    Call, ErrorKind, Event, ExitStatus, Outcome,
    network::{InterfacePlan, MacAddress},
    plan::{
        DeviceKind, DevicePlan, FilePlan, PidNamespace, Rlimit, SeccompProgram, TerminalSize,
        UserPlan,
    },
};

use crate::{
    plans::{container, on_disk, process, shell, tmpfs},
    shim::{Shim, read_all},
    tools::{
        no_copy_leaves_the_container, processes_are_listed_with_their_users,
        tools_work_before_the_start_and_while_it_runs,
    },
    world::World,
};

/// How a case that did not fail ended.
#[derive(Debug)]
pub enum Verdict {
    Done,
    Skipped(String),
}
pub use Verdict::{Done, Skipped};

impl RefUnwindSafe for World {}

type Case = fn(&World) -> Verdict;

pub fn all() -> Vec<(&'static str, Case)> {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), $name as Case)),*] };
    }
    cases![
        output_and_code_arrive,
        input_ends_with_its_stream,
        input_closes_on_demand,
        layers_are_stacked,
        as_many_layers_as_docker_has_fit,
        the_disk_is_grown_and_kept,
        commands_that_cannot_run_are_told_apart,
        the_agent_is_invisible,
        users_are_looked_up,
        privileges_are_what_the_plan_says,
        seccomp_filters_hold,
        the_filesystem_is_as_planned,
        a_readonly_root_is_readonly,
        devices_are_filtered,
        generated_files_masks_and_sysctls_hold,
        hostile_paths_stay_inside,
        mounts_over_proc_are_refused,
        terminals_work,
        signals_work_as_for_pid_1,
        execs_join_the_container,
        an_exec_does_not_wait_for_its_background,
        a_reader_that_never_drains_blocks_only_its_process,
        a_broken_stream_does_not_block_the_process,
        much_output_arrives_whole,
        pods_share_a_pid_namespace,
        states_are_guarded,
        a_prepared_container_can_be_killed,
        pause_stats_and_pids_work,
        tools_work_before_the_start_and_while_it_runs,
        processes_are_listed_with_their_users,
        no_copy_leaves_the_container,
        limits_hold,
        out_of_memory_is_told,
        network_interfaces_that_cannot_be_are_refused,
        many_containers_leave_nothing,
        shutdown_ends_the_agent,
        a_lost_channel_ends_the_agent,
    ]
}

pub fn exited(code: u8) -> ExitStatus {
    ExitStatus::Exited(code)
}

/// Runs `script` as root in a fresh container and returns what it said.
fn say(shim: &mut Shim, world: &World, script: &str) -> String {
    let ended = shim.run(container(&world.images, "c", shell(script)));
    assert_eq!(ended.status, exited(0), "{script}: {ended:?}");
    ended.stdout.trim().to_owned()
}

fn output_and_code_arrive(world: &World) -> Verdict {
    let (mut shim, agent) = world.begin();
    let plan = container(&world.images, "c", shell("echo out; echo err >&2; exit 7"));
    let ended = shim.run(plan);
    assert_eq!(ended.stdout, "out\n");
    assert_eq!(ended.stderr, "err\n");
    assert_eq!(ended.status, exited(7));
    assert!(!ended.oom_killed);
    shim.hang_up();
    assert_eq!(agent.wait(), 3);
    Done
}

fn input_ends_with_its_stream(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["cat"]));
    plan.stdio = shim.ports(true, true, false);
    shim.create(&plan).unwrap();
    let mut stdin = shim.stream(plan.stdio.stdin);
    // Before the start, and more than a pipe holds.
    let text = "0123456789abcde\n".repeat(20_000);
    let writer = text.clone();
    let feed = std::thread::spawn(move || {
        stdin.write_all(writer.as_bytes()).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
    });
    let mut stdout = shim.stream(plan.stdio.stdout);
    shim.start("c").unwrap();
    assert!(read_all(&mut stdout) == text);
    feed.join().unwrap();
    assert_eq!(shim.wait("c", None).0, exited(0));
    shim.delete("c").unwrap();
    Done
}

fn input_closes_on_demand(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["cat"]));
    plan.stdio = shim.ports(true, true, false);
    shim.create(&plan).unwrap();
    let mut stdin = shim.stream(plan.stdio.stdin);
    let mut stdout = shim.stream(plan.stdio.stdout);
    shim.start("c").unwrap();
    stdin.write_all(b"some").unwrap();
    let mut four = [0; 4];
    stdout.read_exact(&mut four).unwrap();
    shim.call(Call::CloseStdin { container: "c".into(), exec: None }).unwrap();
    assert_eq!(read_all(&mut stdout), "");
    assert_eq!(shim.wait("c", None).0, exited(0));
    Done
}

fn layers_are_stacked(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    assert_eq!(say(&mut shim, world, "cat /top"), "top");
    assert_eq!(say(&mut shim, world, "ls /old"), "above", "an opaque directory hides");
    assert_eq!(say(&mut shim, world, "test -e /gone || echo none"), "none", "a whiteout hides");
    assert_eq!(say(&mut shim, world, "mv /old /new && ls /new"), "above", "directories move");
    // No layers at all: an empty root, in which nothing can be executed.
    let mut plan = container(&world.images, "empty", process(&["/x"]));
    plan.rootfs.layers.clear();
    shim.create(&plan).unwrap();
    assert_eq!(shim.start("empty").unwrap_err().kind, ErrorKind::CommandNotFound);
    shim.delete("empty").unwrap();
    Done
}

fn as_many_layers_as_docker_has_fit(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("cat /top; ls -d /empty"));
    let base = std::mem::take(&mut plan.rootfs.layers);
    plan.rootfs.layers = [world.images.many.clone(), base].concat();
    assert_eq!(plan.rootfs.layers.len(), 127);
    assert_eq!(shim.run(plan).stdout, "top/empty\n");
    Done
}

fn the_disk_is_grown_and_kept(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let plan = on_disk(&world.images, container(&world.images, "c", shell("true")));
    match shim.create(&plan) {
        Ok(_) => drop(shim.delete("c").unwrap()),
        // Growing an ext4 needs CAP_SYS_RESOURCE, which a container on a host may lack.
        Err(error) if error.message.contains("grow") && error.message.contains("permitted") => {
            return Skipped(error.message);
        }
        Err(error) => panic!("{error}"),
    }
    let run = |shim: &mut Shim, script: &str| {
        let plan = on_disk(&world.images, container(&world.images, "c", shell(script)));
        let ended = shim.run(plan);
        assert_eq!(ended.status, exited(0), "{ended:?}");
        ended.stdout
    };
    let blocks = run(&mut shim, "echo kept > /file; df -k / | tail -n1 2>/dev/null || df -k /");
    let kib: u64 = blocks
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .max()
        .unwrap_or_else(|| panic!("{blocks}"));
    assert!(kib > 200_000, "grown to the extent: {blocks}");
    assert_eq!(run(&mut shim, "cat /file; rm /file"), "kept\n");
    // One disk, one container.
    let mut first = on_disk(&world.images, container(&world.images, "a", shell("sleep 100")));
    shim.launch(&mut first);
    let second = on_disk(&world.images, container(&world.images, "b", shell("true")));
    assert_eq!(shim.create(&second).unwrap_err().kind, ErrorKind::InvalidArgument);
    shim.signal("a", 9).unwrap();
    shim.wait("a", None);
    shim.delete("a").unwrap();
    // A full one is told from other errors.
    let fill = "for s in 100000000 10000000 1000000 100000 10000 4096 1; do n=0; \
        while fallocate -l $s /fill-$s-$n; do n=$((n+1)); done; done 2>/dev/null; true";
    run(&mut shim, fill);
    let mut full = on_disk(&world.images, container(&world.images, "c", shell("true")));
    full.process.cwd = "/needs/a/block".into();
    assert_eq!(shim.create(&full).unwrap_err().kind, ErrorKind::NoSpace);
    Done
}

fn commands_that_cannot_run_are_told_apart(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut refused = |args: &[&str], cwd: &str, uid: u32| {
        let mut plan = container(&world.images, "c", process(args));
        plan.process.cwd = cwd.into();
        plan.process.user = UserPlan::Ids { uid, gid: uid, additional_gids: vec![], umask: None };
        shim.create(&plan).unwrap();
        let error = shim.start("c").unwrap_err();
        shim.delete("c").unwrap();
        (error.kind, error.message)
    };
    let not_found = ErrorKind::CommandNotFound;
    let not_executable = ErrorKind::CommandNotExecutable;
    let cases = [
        ("foo", not_found, "exec: \"foo\": executable file not found in $PATH"),
        ("/foo", not_found, "exec: \"/foo\": stat /foo: no such file or directory"),
        ("/", not_executable, "exec: \"/\": is a directory: permission denied"),
        ("/etc/plain", not_executable, "exec: \"/etc/plain\": permission denied"),
        ("/script", not_found, "exec /script: no such file or directory"),
        ("/garbage", not_executable, "exec /garbage: exec format error"),
    ];
    for (command, kind, message) in cases {
        assert_eq!(refused(&[command], "/", 0), (kind, message.to_owned()));
        assert_eq!(refused(&[command], "/", 1000), (kind, message.to_owned()));
    }
    let (kind, message) = refused(&["true"], "/etc/passwd", 0);
    assert!(message.contains("not a directory"), "{kind:?} {message}");
    Done
}

fn the_agent_is_invisible(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    assert_eq!(say(&mut shim, world, "exec readlink /proc/1/exe"), "/bin/busybox");
    let fds = say(&mut shim, world, "exec ls /proc/self/fd");
    let fds: Vec<_> = fds.split_whitespace().collect();
    // The fourth is the directory that ls has open.
    assert_eq!(fds, ["0", "1", "2", "3"]);
    let pids = say(&mut shim, world, "ls /proc | grep '^[0-9]' | wc -l");
    assert!(pids.parse::<u32>().unwrap() <= 5, "only its own processes: {pids}");
    let mounts = say(&mut shim, world, "cat /proc/self/mountinfo");
    assert!(!mounts.contains("/run/container"), "no staging area: {mounts}");
    assert!(mounts.lines().next().unwrap().contains(" / / "), "{mounts}");
    // Not through a shell, which ignores some signals.
    let status =
        shim.run(container(&world.images, "c", process(&["cat", "/proc/1/status"]))).stdout;
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    assert_eq!(say(&mut shim, world, "readlink /proc/1/fd/0"), "/dev/null");
    // A prepared exec waits inside; its executable must not be reachable.
    let mut plan = container(&world.images, "c", shell("sleep 1000"));
    shim.launch(&mut plan);
    shim.call(Call::CreateExec {
        container: "c".into(),
        exec: "waits".into(),
        process: Box::new(process(&["true"])),
        stdio: Default::default(),
    })
    .unwrap();
    let look = "for p in /proc/[0-9]*; do readlink $p/exe; done; true";
    let links = shim.exec("c", shell(look)).unwrap().stdout;
    assert!(links.lines().all(|link| link == "/bin/busybox"), "{links}");
    Done
}

fn users_are_looked_up(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut ask = |user: &str, script: &str| {
        let mut plan = container(&world.images, "c", shell(script));
        plan.process.user =
            UserPlan::Name { user: user.into(), additional_groups: vec!["4242".into()] };
        let ended = shim.run(plan);
        assert_eq!(ended.status, exited(0), "{ended:?}");
        ended.stdout.trim().to_owned()
    };
    assert_eq!(
        ask("app", "id -u; id -g; id -G; echo $HOME").replace('\n', " "),
        "1000 1001 1001 29 4242 /home/app"
    );
    assert_eq!(ask("", "id -u; echo $HOME").replace('\n', " "), "0 /root");
    assert_eq!(ask("77:88", "id -u; id -g; echo $HOME").replace('\n', " "), "77 88 /");
    // Whoever runs it may write to its own streams by name.
    assert_eq!(ask("app", "echo x > /dev/stdout"), "x");
    let mut plan = container(&world.images, "c", shell("true"));
    plan.process.user = UserPlan::Name { user: "foo".into(), additional_groups: vec![] };
    let error = shim.create(&plan).unwrap_err();
    assert_eq!(error.message, "unable to find user foo: no matching entries in passwd file");
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    Done
}

fn privileges_are_what_the_plan_says(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let limits = say(&mut shim, world, "ulimit -n; ulimit -Hn").replace('\n', " ");
    assert!(limits.starts_with("1024 "), "{limits}");
    let status = say(&mut shim, world, "cat /proc/self/status");
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Groups:\t ",
    ] {
        assert!(status.contains(line), "{line:?} in {status}");
    }
    let mut plan = container(&world.images, "c", shell("cat /proc/self/status; ulimit -n; umask"));
    plan.process.user =
        UserPlan::Ids { uid: 5, gid: 6, additional_gids: vec![7, 8], umask: Some(0o027) };
    plan.process.no_new_privileges = false;
    plan.process.rlimits = vec![Rlimit { resource: 7, soft: 100, hard: 200 }];
    plan.process.oom_score_adj = Some(500);
    let net_bind = 1 << 10;
    plan.process.capabilities.effective = net_bind;
    plan.process.capabilities.permitted = net_bind;
    plan.process.capabilities.inheritable = net_bind;
    plan.process.capabilities.ambient = net_bind;
    let ended = shim.run(plan);
    for line in [
        "Uid:\t5\t5\t5\t5",
        "Gid:\t6\t6\t6\t6",
        "Groups:\t7 8",
        "CapEff:\t0000000000000400",
        "CapAmb:\t0000000000000400",
        "NoNewPrivs:\t0",
        "\n100\n0027\n",
    ] {
        assert!(ended.stdout.contains(line), "{line:?} in {}", ended.stdout);
    }
    Done
}

fn seccomp_filters_hold(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    // mkdir(2) is number 83: EPERM; everything else is allowed.
    let filter = SeccompProgram {
        flags: 0,
        instructions: vec![
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 83),
            (0x06, 0, 0, 0x0005_0001),
            (0x06, 0, 0, 0x7fff_0000),
        ],
    };
    for no_new_privileges in [true, false] {
        let mut plan =
            container(&world.images, "c", shell("mkdir /x 2>&1; grep Seccomp: /proc/self/status"));
        plan.process.seccomp = vec![filter.clone()];
        plan.process.no_new_privileges = no_new_privileges;
        let said = shim.run(plan).stdout;
        assert!(said.contains("Operation not permitted"), "{said}");
        assert!(said.contains("Seccomp:\t2"), "{said}");
    }
    Done
}

fn the_filesystem_is_as_planned(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    assert_eq!(say(&mut shim, world, "hostname"), "box");
    let links =
        say(&mut shim, world, "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done");
    let expected =
        ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
    assert_eq!(links.lines().collect::<Vec<_>>(), expected);
    assert_eq!(
        say(&mut shim, world, "stat -c %a:%t:%T /dev/null /dev/tty").replace('\n', " "),
        "666:1:3 666:5:0"
    );
    assert_eq!(say(&mut shim, world, "stat -c %a /dev/shm"), "1777");
    assert_eq!(say(&mut shim, world, "cat /proc/self/cgroup | grep ^0"), "0::/");
    assert!(say(&mut shim, world, "ls /sys/fs/cgroup").contains("cgroup.procs"));
    assert!(say(&mut shim, world, "ip addr show lo").contains("UP"));
    assert!(say(&mut shim, world, "umask").contains("0022"));
    // A tmpfs over a directory keeps its mode, a dangling link is made where it points,
    // and the working directory comes to be.
    let mut plan =
        container(&world.images, "c", shell("stat -c %a /tmp /run/x; pwd; touch /run/x/y"));
    plan.mounts.extend([tmpfs("/tmp", 0), tmpfs("/etc/run/x", 0)]);
    plan.process.cwd = "/work/deep".into();
    assert_eq!(shim.run(plan).stdout, "1777\n755\n/work/deep\n");
    // A bind within the container, read-only.
    let mut plan =
        container(&world.images, "c", shell("cat /bound/passwd | head -n1; touch /bound/x 2>&1"));
    let mut bind = tmpfs("/bound", libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
    bind.fstype = "bind".into();
    bind.source = "/etc".into();
    plan.mounts.push(bind);
    let said = shim.run(plan).stdout;
    assert!(said.starts_with("root:") && said.contains("Read-only"), "{said}");
    Done
}

fn a_readonly_root_is_readonly(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "touch /x 2>&1; touch /rw/x && echo written; touch /ro/x 2>&1; ls /ro";
    let mut plan = container(&world.images, "c", shell(script));
    plan.rootfs.readonly = true;
    // Mount points that the image lacks, and one inside a read-only tmpfs.
    plan.mounts.extend([tmpfs("/rw", 0), tmpfs("/ro", libc::MS_RDONLY), tmpfs("/ro/inner", 0)]);
    let said = shim.run(plan).stdout;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("Read-only"), "{said}");
    assert_eq!(lines[1], "written");
    assert!(lines[2].contains("Read-only"), "{said}");
    assert_eq!(lines[3], "inner");
    Done
}

fn devices_are_filtered(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo null; \
        mknod /tmp/disk b 7 0 && echo made; head -c1 /tmp/disk 2>&1; \
        mknod /tmp/zero c 1 5; head -c 2 /tmp/zero | wc -c";
    let said = say(&mut shim, world, script);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..3], ["3", "null", "made"], "{said}");
    assert!(lines[3].contains("Operation not permitted"), "{said}");
    assert_eq!(lines[4], "2", "{said}");
    let mut plan = container(&world.images, "c", shell("stat -c %a:%u:%t:%T /dev/extra"));
    plan.devices.push(DevicePlan {
        path: "/dev/extra".into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 200,
        mode: 0o640,
        uid: 3,
        gid: 4,
    });
    assert_eq!(shim.run(plan).stdout, "640:3:a:c8\n");
    Done
}

fn generated_files_masks_and_sysctls_hold(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "cat /etc/hosts; stat -c %a /etc/hosts; echo more >> /etc/hosts && echo appended; \
        echo x >> /etc/fixed 2>&1; cat /proc/sys/net/core/somaxconn; \
        echo 1 2>&1 > /proc/sys/kernel/pid_max; wc -c < /etc/group; ls /old; touch /top 2>&1; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let mut plan = container(&world.images, "c", shell(script));
    let file = |path: &str, readonly| FilePlan {
        path: path.into(),
        mode: 0o644,
        content: "127.0.0.1 localhost\n".into(),
        readonly,
    };
    plan.files = vec![file("/etc/hosts", false), file("/etc/fixed", true)];
    plan.sysctls.insert("net.core.somaxconn".into(), "777".into());
    plan.masked_paths.extend(["/etc/group".into(), "/old".into()]);
    plan.readonly_paths.push("/top".into());
    let ended = shim.run(plan);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[..3], ["127.0.0.1 localhost", "644", "appended"], "{said}");
    assert!(lines.contains(&"777"), "{said}");
    assert!(lines.contains(&"0"), "a masked file is empty: {said}");
    assert!(!said.contains("above"), "a masked directory is empty: {said}");
    assert_eq!(said.matches("Read-only").count() + said.matches("read-only").count(), 3, "{said}");
    assert_eq!(lines.last(), Some(&"0"), "{said}");
    let mut plan = container(&world.images, "c", shell("true"));
    plan.sysctls.insert("kernel.no_such".into(), "1".into());
    let error = shim.create(&plan).unwrap_err();
    assert!(error.message.contains("kernel.no_such"), "{error}");
    Done
}

fn hostile_paths_stay_inside(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan =
        container(&world.images, "c", shell("cat /escape; ls /proc/self >/dev/null && echo proc"));
    plan.files = vec![FilePlan {
        path: "/../../escape".into(),
        mode: 0o644,
        content: "confined\n".into(),
        readonly: false,
    }];
    plan.mounts.push(tmpfs("/tmp/../../../deep", 0));
    assert_eq!(shim.run(plan).stdout, "confined\nproc\n");
    // /proc is a link in the topmost layer.
    let mut plan = container(&world.images, "c", shell("true"));
    plan.rootfs.layers.push(world.images.hostile.clone());
    let error = shim.create(&plan).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("symbolic link"), "{error}");
    for id in ["../x", "", "a\nb"] {
        let plan = container(&world.images, id, shell("true"));
        assert_eq!(shim.create(&plan).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
    Done
}

fn mounts_over_proc_are_refused(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    for destination in ["/proc", "/proc/self", "/x/../proc/sys", "/dev/fd", "/"] {
        let mut plan = container(&world.images, "c", shell("true"));
        plan.mounts.push(tmpfs(destination, 0));
        match shim.create(&plan) {
            Err(error) => assert!(
                matches!(error.kind, ErrorKind::InvalidArgument | ErrorKind::Internal),
                "{destination}: {error}"
            ),
            // /dev/fd is no link yet when it is mounted on: a directory like any other.
            Ok(_) if destination == "/dev/fd" => drop(shim.delete("c").unwrap()),
            Ok(_) => panic!("mounted on {destination}"),
        }
    }
    Done
}

fn terminals_work(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; \
        stat -c %t:%T /dev/console; read line; stty size; echo got $line; echo err >&2";
    let mut plan = container(&world.images, "c", shell(script));
    plan.process.terminal = Some(TerminalSize { columns: 81, rows: 31 });
    plan.stdio = shim.ports(true, true, false);
    shim.create(&plan).unwrap();
    let (mut input, mut output) = (shim.stream(plan.stdio.stdin), shim.stream(plan.stdio.stdout));
    shim.start("c").unwrap();
    let mut seen = String::new();
    while !seen.contains("88:0") {
        let mut buffer = [0; 256];
        let count = output.read(&mut buffer).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.starts_with("/dev/pts/0\r\n31 81\r\nall\r\n88:0"), "{seen:?}");
    shim.call(Call::Resize { container: "c".into(), exec: None, columns: 99, rows: 44 }).unwrap();
    input.write_all(b"hello\n").unwrap();
    let rest = read_all(&mut output);
    assert!(rest.contains("44 99\r\ngot hello\r\nerr"), "{rest:?}");
    assert_eq!(shim.wait("c", None).0, exited(0));
    // The terminal's interrupt key reaches the foreground process.
    let script = "trap 'echo int; exit 3' INT; echo ready; while :; do sleep 1; done";
    let mut plan = container(&world.images, "d", shell(script));
    plan.process.terminal = Some(TerminalSize { columns: 80, rows: 24 });
    plan.stdio = shim.ports(true, true, false);
    shim.create(&plan).unwrap();
    let (mut input, mut output) = (shim.stream(plan.stdio.stdin), shim.stream(plan.stdio.stdout));
    shim.start("d").unwrap();
    let mut ready = [0; 7];
    output.read_exact(&mut ready).unwrap();
    input.write_all(b"\x03").unwrap();
    assert!(read_all(&mut output).contains("int"));
    assert_eq!(shim.wait("d", None).0, exited(3));
    let error = shim.call(Call::Resize { container: "x".into(), exec: None, columns: 1, rows: 1 });
    assert_eq!(error.unwrap_err().kind, ErrorKind::NotFound);
    Done
}

fn signals_work_as_for_pid_1(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["sleep", "1000"]));
    shim.launch(&mut plan);
    // Without a handler PID 1 does not die of this.
    shim.signal("c", libc::SIGTERM).unwrap();
    shim.signal("c", 0).unwrap();
    assert_eq!(shim.signal("c", 65).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(shim.signal("c", -1).unwrap_err().kind, ErrorKind::InvalidArgument);
    shim.signal("c", libc::SIGKILL).unwrap();
    assert_eq!(shim.wait("c", None).0, ExitStatus::Signaled(9));
    assert_eq!(shim.signal("c", 9).unwrap_err().kind, ErrorKind::NotFound);
    shim.delete("c").unwrap();
    let mut plan = container(
        &world.images,
        "c",
        shell("trap 'exit 5' TERM; echo up; while :; do sleep 1; done"),
    );
    let (mut stdout, _) = shim.launch(&mut plan);
    stdout.read_exact(&mut [0; 3]).unwrap();
    shim.signal("c", libc::SIGTERM).unwrap();
    assert_eq!(shim.wait("c", None).0, exited(5));
    // A real-time signal in an exec.
    let mut plan = container(&world.images, "d", shell("sleep 1000"));
    shim.launch(&mut plan);
    let ended = shim.exec("d", shell("kill -40 $$")).unwrap();
    assert_eq!(ended.status, ExitStatus::Signaled(40));
    Done
}

fn execs_join_the_container(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("echo mine > /mark; touch /up; sleep 1000"));
    shim.launch(&mut plan);
    let script = "while ! test -e /up; do sleep 0.1; done; cat /mark; hostname; echo $$; ps | grep -c sleep; exit 9";
    let ended = shim.exec("c", shell(script)).unwrap();
    assert_eq!(ended.status, exited(9), "{ended:?}");
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["mine", "box"]);
    assert!(lines[2].parse::<u32>().unwrap() < 100, "its pid is the container's: {lines:?}");
    let same = shim.exec("c", shell("for n in mnt pid net ipc uts cgroup; do \
        test $(readlink /proc/1/ns/$n) = $(readlink /proc/$$/ns/$n) || echo $n; done; cat /proc/$$/cgroup | grep ^0"));
    // Root without CAP_SYS_PTRACE may not look at all of them; what it sees is the same.
    assert!(same.unwrap().stdout.contains("0::/\n"));
    let error = shim.exec("c", process(&["nope"])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::CommandNotFound);
    let mut strange = process(&["true"]);
    strange.user = UserPlan::Name { user: "nobody".into(), additional_groups: vec![] };
    assert_eq!(shim.exec("c", strange).unwrap_err().kind, ErrorKind::InvalidArgument);
    // The container's end ends the exec.
    let stdio = shim.ports(false, true, false);
    let name = || Some("long".to_owned());
    shim.call(Call::CreateExec {
        container: "c".into(),
        exec: "long".into(),
        process: Box::new(shell("sleep 1000")),
        stdio,
    })
    .unwrap();
    shim.call(Call::Start { container: "c".into(), exec: name() }).unwrap();
    shim.signal("c", 9).unwrap();
    assert_eq!(shim.wait("c", Some("long")).0, ExitStatus::Signaled(9));
    assert_eq!(shim.wait("c", None).0, ExitStatus::Signaled(9));
    let error = shim.exec("c", shell("true")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    Done
}

fn an_exec_does_not_wait_for_its_background(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("sleep 1000"));
    shim.launch(&mut plan);
    let begin = Instant::now();
    let ended = shim.exec("c", shell("sleep 900 & echo started")).unwrap();
    assert_eq!(ended.stdout, "started\n");
    assert_eq!(ended.status, exited(0));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // One that keeps talking does not keep it open either, nor is it killed by the cut.
    let ended = shim.exec("c", shell("yes & echo $! >&2")).unwrap();
    assert_eq!(ended.status, exited(0));
    let alive = format!("kill -0 {} && echo alive", ended.stderr.trim());
    assert_eq!(shim.exec("c", shell(&alive)).unwrap().stdout.trim(), "alive");
    Done
}

fn a_reader_that_never_drains_blocks_only_its_process(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "stuck", shell("exec yes"));
    let (stdout, _stderr) = shim.launch(&mut plan);
    assert_eq!(say(&mut shim, world, "echo fine"), "fine");
    shim.signal("stuck", 9).unwrap();
    assert_eq!(shim.wait("stuck", None).0, ExitStatus::Signaled(9));
    shim.delete("stuck").unwrap();
    drop(stdout);
    Done
}

fn a_broken_stream_does_not_block_the_process(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "head -c 1000000 /dev/zero && head -c 1000000 /dev/zero; exit 4";
    let mut plan = container(&world.images, "c", shell(script));
    let (stdout, stderr) = shim.launch(&mut plan);
    drop((stdout, stderr));
    assert_eq!(shim.wait("c", None).0, exited(4));
    Done
}

fn much_output_arrives_whole(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "head -c 30000000 /dev/zero; head -c 10000000 /dev/zero >&2";
    let mut plan = container(&world.images, "c", shell(script));
    let (mut stdout, mut stderr) = shim.launch(&mut plan);
    let errors = std::thread::spawn(move || count(&mut stderr));
    assert_eq!(count(&mut stdout), 30_000_000);
    assert_eq!(errors.join().unwrap(), 10_000_000);
    assert_eq!(shim.wait("c", None).0, exited(0));
    Done
}

fn count(stream: &mut impl Read) -> usize {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total,
            count => total += count,
        }
    }
}

fn pods_share_a_pid_namespace(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut pause = container(&world.images, "pause", process(&["sleep", "1000"]));
    shim.launch(&mut pause);
    let mut plan = container(
        &world.images,
        "c",
        shell("readlink /proc/1/exe; cat /proc/1/cmdline | tr '\\0' ' '; sleep 500 & exit 2"),
    );
    plan.namespaces.pid = PidNamespace::Of { container: "pause".into() };
    let ended = shim.run(plan);
    assert!(ended.stdout.contains("sleep 1000"), "{ended:?}");
    assert_eq!(ended.status, exited(2));
    // What it left behind in the shared namespace went with it.
    let left = shim.exec("pause", shell("ps")).unwrap().stdout;
    assert!(!left.contains("sleep 500"), "{left}");
    let mut plan = container(&world.images, "d", shell("true"));
    plan.namespaces.pid = PidNamespace::Of { container: "nobody".into() };
    assert_eq!(shim.create(&plan).unwrap_err().kind, ErrorKind::NotFound);
    Done
}

fn states_are_guarded(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("sleep 1000"));
    plan.stdio = shim.ports(false, true, false);
    shim.create(&plan).unwrap();
    assert_eq!(shim.create(&plan).unwrap_err().kind, ErrorKind::AlreadyExists);
    let error = shim.exec("c", shell("true")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "not started yet");
    shim.start("c").unwrap();
    assert_eq!(shim.start("c").unwrap_err().kind, ErrorKind::FailedPrecondition);
    assert_eq!(shim.delete("c").unwrap_err().kind, ErrorKind::FailedPrecondition);
    shim.signal("c", 9).unwrap();
    shim.wait("c", None);
    assert_eq!(shim.start("c").unwrap_err().kind, ErrorKind::FailedPrecondition);
    shim.delete("c").unwrap();
    for error in [shim.delete("c"), shim.start("c"), shim.signal("c", 9)] {
        assert_eq!(error.unwrap_err().kind, ErrorKind::NotFound);
    }
    Done
}

fn a_prepared_container_can_be_killed(world: &World) -> Verdict {
    let (mut shim, agent) = world.begin();
    let plan = container(&world.images, "c", shell("true"));
    shim.create(&plan).unwrap();
    shim.delete("c").unwrap();
    shim.create(&plan).unwrap();
    shim.signal("c", 9).unwrap();
    assert_eq!(shim.wait("c", None).0, ExitStatus::Signaled(9));
    assert_eq!(shim.start("c").unwrap_err().kind, ErrorKind::FailedPrecondition);
    shim.delete("c").unwrap();
    shim.call(Call::Shutdown).unwrap();
    assert_eq!(agent.wait(), 0);
    Done
}

fn pause_stats_and_pids_work(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("while :; do echo x; done"));
    let (mut stdout, _) = shim.launch(&mut plan);
    stdout.read_exact(&mut [0; 2]).unwrap();
    let Outcome::Pids(pids) = shim.call(Call::Pids { container: "c".into() }).unwrap() else {
        panic!("pids")
    };
    assert!(!pids.is_empty());
    let Outcome::Stats(stats) = shim.call(Call::Stats { container: "c".into() }).unwrap() else {
        panic!("stats")
    };
    assert!(stats.cpu_usage_usec > 0);
    shim.call(Call::Pause { container: "c".into() }).unwrap();
    stdout.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    while matches!(stdout.read(&mut [0; 65536]), Ok(count) if count > 0) {}
    shim.call(Call::Resume { container: "c".into() }).unwrap();
    stdout.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    // A paused container can still be killed.
    shim.call(Call::Pause { container: "c".into() }).unwrap();
    shim.signal("c", 9).unwrap();
    assert_eq!(shim.wait("c", None).0, ExitStatus::Signaled(9));
    Done
}

fn limits_hold(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "cd /sys/fs/cgroup && cat memory.max pids.max cpu.max cpu.weight";
    let mut plan = container(&world.images, "c", shell(script));
    plan.resources.memory_bytes = Some(64 << 20);
    plan.resources.pids = Some(50);
    plan.resources.cpu_quota_usec = Some(150_000);
    plan.resources.cpu_period_usec = Some(100_000);
    plan.resources.cpu_weight = Some(321);
    if let Some(reason) = lacks_controllers(&mut shim, &plan) {
        return Skipped(reason);
    }
    assert_eq!(shim.run(plan.clone()).stdout, "67108864\n50\n150000 100000\n321\n");
    plan.resources.unified.insert("no.such".into(), "1".into());
    let error = shim.create(&plan).unwrap_err();
    assert!(error.message.contains("no.such"), "{error}");
    Done
}

/// Why a plan with limits cannot be tried here, if so.
fn lacks_controllers(
    shim: &mut Shim,
    plan: &caisson_agent_protocol::ContainerPlan,
) -> Option<String> {
    match shim.create(plan) {
        Ok(_) => {
            shim.delete(&plan.id).unwrap();
            None
        }
        Err(error) if error.message.contains("has no") => Some(error.message),
        Err(error) => panic!("{error}"),
    }
}

fn out_of_memory_is_told(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(
        &world.images,
        "c",
        shell("head -c 200000000 /dev/zero > /dev/shm/x; sleep 1000"),
    );
    plan.mounts.retain(|mount| mount.destination != "/dev/shm");
    plan.mounts.push(tmpfs("/dev/shm", 0));
    plan.resources.memory_bytes = Some(24 << 20);
    plan.resources.swap_bytes = None;
    if let Some(reason) = lacks_controllers(&mut shim, &plan) {
        return Skipped(reason);
    }
    plan.process = shell("exec head -c 200000000 /dev/zero > /dev/shm/x");
    let ended = shim.run(plan);
    assert_eq!(ended.status, ExitStatus::Signaled(9));
    assert!(ended.oom_killed);
    assert!(shim.has_event(|event| matches!(event, Event::OutOfMemory { .. })));
    Done
}

fn network_interfaces_that_cannot_be_are_refused(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["true"]));
    plan.interfaces = vec![InterfacePlan {
        mac: MacAddress([2, 0xca, 0, 0, 0, 0x5e]),
        name: "eth0".into(),
        mtu: 1500,
        addresses: vec![],
        routes: vec![],
        neighbours: vec![],
    }];
    let refused = |shim: &mut Shim, plan: &_| {
        let error = shim.create(plan).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error:?}");
        error.message
    };
    let message = refused(&mut shim, &plan);
    assert!(message.contains("has eth0's MAC address 02:ca:00:00:00:5e"), "{message}");
    plan.interfaces[0].name = "lo".into();
    assert!(refused(&mut shim, &plan).starts_with("\"lo\" is no name"));
    plan.interfaces[0].name = "eth0".into();
    plan.namespaces.network = false;
    assert!(refused(&mut shim, &plan).contains("namespace of the container's own"));
    Done
}

fn many_containers_leave_nothing(world: &World) -> Verdict {
    let (mut shim, agent) = world.begin();
    let mut open_files = 0;
    for round in 0..20 {
        if round == 3 {
            open_files = agent.open_files();
        }
        let id = format!("c{round}");
        let plan = container(&world.images, &id, shell("echo $$"));
        assert_eq!(shim.run(plan).stdout, "1\n");
    }
    assert_eq!(agent.open_files(), open_files, "the agent keeps no descriptor");
    // Two at a time from one disk.
    let ids = ["a", "b"];
    let calls: Vec<_> = ids
        .iter()
        .map(|id| {
            let plan = container(&world.images, id, shell("true"));
            shim.send(Call::CreateContainer(Box::new(plan)))
        })
        .collect();
    calls.into_iter().for_each(|id| drop(shim.reply(id).unwrap()));
    ids.iter().for_each(|id| drop(shim.delete(id).unwrap()));
    shim.call(Call::Shutdown).unwrap();
    assert_eq!(agent.wait(), 0);
    let partitions: Vec<_> = std::fs::read_dir("/dev")
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| match &world.disks {
            crate::world::DiskNames::Loop { layers, .. } => name.starts_with(&format!("{layers}p")),
            crate::world::DiskNames::BySerial => name.starts_with("vda") && name.len() > 3,
        })
        .collect();
    assert!(partitions.is_empty(), "{partitions:?}");
    Done
}

fn shutdown_ends_the_agent(world: &World) -> Verdict {
    let (mut shim, agent) = world.begin();
    let mut plan = container(&world.images, "c", shell("sleep 1000"));
    let _streams = shim.launch(&mut plan);
    shim.call(Call::Shutdown).unwrap();
    assert_eq!(agent.wait(), 0);
    Done
}

fn a_lost_channel_ends_the_agent(world: &World) -> Verdict {
    for garbage in [&[0xff_u8; 8][..], b"\x02\0\0\0{]", b"\x00", b""] {
        let (mut shim, agent) = world.begin();
        shim.send_raw(garbage);
        shim.hang_up();
        assert_eq!(agent.wait(), 3, "{garbage:?}");
    }
    Done
}
