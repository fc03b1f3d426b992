//! The agent's tools on real containers.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use caisson_agent_protocol::{
    Call, Tool,
    plan::FilePlan,
    tool::{ProcessEntry, WriteSource},
};
use caisson_archive::tar::{
    EntryKind, Reader, TarLimits,
    testing::{TarBuilder, TarEntry},
};

use crate::{
    cases::{
        Verdict::{self, Done},
        exited,
    },
    plans::{container, process, shell},
    shim::{Shim, read_all},
    world::World,
};

/// Runs a tool from create to delete: its output, or what it complained about.
fn run(shim: &mut Shim, tool: Tool, input: &[u8]) -> Result<Vec<u8>, String> {
    let stdio = shim.ports(true, true, true);
    let name = || Some("t".to_owned());
    let (container, exec) = ("c".to_owned(), "t".to_owned());
    shim.call(Call::CreateTool { container, exec, tool: Box::new(tool), stdio }).unwrap();
    let mut stdin = shim.stream(stdio.stdin);
    let (mut stdout, mut stderr) = (shim.stream(stdio.stdout), shim.stream(stdio.stderr));
    shim.call(Call::Start { container: "c".into(), exec: name() }).unwrap();
    let input = input.to_vec();
    // Larger than what lies between, and the output must flow meanwhile.
    let feeding = std::thread::spawn(move || {
        // A tool that fails early does not take it all.
        let _ = stdin.write_all(&input);
        let _ = stdin.shutdown(std::net::Shutdown::Write);
    });
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).unwrap();
    let words = read_all(&mut stderr);
    let (status, _) = shim.wait("c", Some("t"));
    feeding.join().unwrap();
    shim.call(Call::Delete { container: "c".into(), exec: name() }).unwrap();
    if status == exited(0) { Ok(output) } else { Err(words) }
}

/// Contents by name; links with an arrow.
fn listed(archive: &[u8]) -> BTreeMap<String, String> {
    let limits = TarLimits { entry_bytes: 1 << 30, entries: 10_000 };
    let mut reader = Reader::new(archive, limits);
    let mut entries = BTreeMap::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match reader.read_data(&mut buffer).unwrap() {
                0 => break,
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
        let text = match &entry.kind {
            EntryKind::Symlink { target } => format!("-> {}", String::from_utf8_lossy(target)),
            EntryKind::Directory => "/".to_owned(),
            _ => String::from_utf8_lossy(&content[..content.len().min(100)]).into_owned(),
        };
        entries.insert(String::from_utf8_lossy(&entry.path).into_owned(), text);
    }
    entries
}

fn read(path: &str) -> Tool {
    Tool::Read { path: path.into(), follow: false }
}

fn write(path: &str, directory: bool) -> Tool {
    let source = WriteSource::Tree { directory, contents: false, keep_owner: false };
    Tool::Write { path: path.into(), source }
}

pub fn tools_work_before_the_start_and_while_it_runs(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let script = "echo written > /made; rm /top; echo more >> /etc/plain; exec sleep 1000";
    let mut plan = container(&world.images, "c", shell(script));
    plan.files = vec![FilePlan {
        path: "/etc/hosts".into(),
        content: "generated".into(),
        mode: 0o644,
        readonly: false,
    }];
    shim.create(&plan).unwrap();
    assert_eq!(run(&mut shim, Tool::Diff, b"").unwrap(), b"", "what is mounted does not count");
    let tree = TarBuilder::new().dir("in/").file("in/file", b"from outside").finish();
    run(&mut shim, write("/root", true), &tree).unwrap();
    let out = listed(&run(&mut shim, read("/root/in"), b"").unwrap());
    assert_eq!(out["in/file"], "from outside");
    // A mount in memory would lose it.
    let error = run(&mut shim, write("/dev/shm", true), &tree).unwrap_err();
    assert!(error.contains("in memory"), "{error}");
    shim.start("c").unwrap();
    shim.exec("c", shell("while test -e /top || ! test -e /made; do sleep 0.1; done")).unwrap();
    run(&mut shim, write("/dev/shm", true), &tree).unwrap();
    let told = shim.exec("c", shell("cat /root/in/file /dev/shm/in/file")).unwrap();
    assert_eq!(told.stdout, "from outsidefrom outside");
    let differences = String::from_utf8(run(&mut shim, Tool::Diff, b"").unwrap()).unwrap();
    assert_eq!(
        differences.split_terminator('\0').collect::<Vec<_>>(),
        ["C /etc/plain", "A /made", "C /root", "A /root/in", "A /root/in/file", "D /top"]
    );
    let export = listed(&run(&mut shim, Tool::Export, b"").unwrap());
    assert_eq!(export["made"], "written\n");
    assert_eq!(export["etc/run"], "-> /run");
    assert_eq!(export["etc/hosts"], "", "what is mounted is left out");
    assert!(!export.contains_key("top") && !export.contains_key("old/below"));
    assert!(!export.keys().any(|name| name.starts_with("proc/") && name != "proc/"));
    shim.signal("c", 9).unwrap();
    shim.wait("c", None);
    shim.delete("c").unwrap();
    Done
}

pub fn processes_are_listed_with_their_users(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["sleep", "1000"]));
    plan.process.user = caisson_agent_protocol::plan::UserPlan::Ids {
        uid: 1000,
        gid: 1001,
        additional_gids: vec![],
        umask: None,
    };
    shim.launch(&mut plan);
    let list = || Tool::Top;
    let lines = String::from_utf8(run(&mut shim, list(), b"").unwrap()).unwrap();
    let entries: Vec<ProcessEntry> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 1, "{lines}");
    assert_eq!((entries[0].user.as_str(), entries[0].uid), ("app", 1000));
    assert_eq!(entries[0].args, "sleep 1000");
    // A frozen container's too.
    shim.call(Call::Pause { container: "c".into() }).unwrap();
    assert!(!run(&mut shim, list(), b"").unwrap().is_empty());
    shim.call(Call::Resume { container: "c".into() }).unwrap();
    Done
}

pub fn no_copy_leaves_the_container(world: &World) -> Verdict {
    let (mut shim, _agent) = world.begin();
    let mut plan = container(&world.images, "c", process(&["sleep", "1000"]));
    shim.launch(&mut plan);
    shim.exec("c", shell("mkdir /d; mknod /d/pipe p; echo x > /d/f; cd /d; echo y > /root/y"))
        .unwrap();
    // Up from the root is the root, and links mean what they mean inside.
    let out = listed(&run(&mut shim, read("/../../etc/../d/f"), b"").unwrap());
    assert_eq!(out["f"], "x\n");
    let out = listed(&run(&mut shim, read("/d/."), b"").unwrap());
    assert_eq!(out.keys().collect::<Vec<_>>(), ["./", "./f", "./pipe"]);
    let missing = run(&mut shim, read("/no/such"), b"").unwrap_err();
    assert_eq!(missing.trim(), "Could not find the file /no/such in container");
    let evil = TarBuilder::new()
        .dir("e/")
        .symlink("e/way", "/root")
        .file("e/way/y", b"replaced")
        .entry(TarEntry { kind: b'3', name: b"e/null", device: (1, 3), ..TarEntry::default() })
        .finish();
    run(&mut shim, write("/", true), &evil).unwrap();
    assert_eq!(shim.exec("c", shell("cat /root/y")).unwrap().stdout, "replaced");
    for name in ["../e", "e/../../e", "/../e"] {
        let archive = TarBuilder::new().file(name, b"").finish();
        let tool = Tool::Write { path: "/d".into(), source: WriteSource::Entries };
        let error = run(&mut shim, tool, &archive).unwrap_err();
        assert!(error.contains("goes up"), "{error}");
    }
    let tool = Tool::Write { path: "/d".into(), source: WriteSource::Entries };
    let error = run(&mut shim, tool, &[7; 600_000]).unwrap_err();
    assert!(error.contains("no tar header"), "{error}");
    Done
}
