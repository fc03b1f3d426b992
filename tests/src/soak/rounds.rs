//! The kinds of rounds: each makes a container, does something to it, and removes it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Plan, Random};
use crate::bounded;

/// What any one command may take, in an emulated host under load.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) run: fn(&Caisson, &mut Random) -> Result<(), String>,
}

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "run to the end", run: run_to_the_end },
    Kind { name: "start, execs, kill, remove", run: execs },
    Kind { name: "the vmm is killed", run: kill_vmm },
    Kind { name: "the shim is killed", run: kill_shim },
    Kind { name: "the caller is killed at any time", run: kill_caller },
    Kind { name: "the reader of the output goes away", run: reader_goes },
    Kind { name: "the disk is full", run: full_disk },
    Kind { name: "an image is loaded and removed", run: image },
];

/// The program with one store and state.
pub struct Caisson {
    program: PathBuf,
    busybox: PathBuf,
    pub root: PathBuf,
    pub state: PathBuf,
}

pub(super) struct Done {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Done {
    fn expect(self, codes: &[i32]) -> Result<Self, String> {
        match self.code {
            Some(code) if codes.contains(&code) => Ok(self),
            code => Err(format!("exit code {code:?} instead of {codes:?}: {}", self.stderr)),
        }
    }
}

impl Caisson {
    pub fn new(plan: &Plan) -> Self {
        let Plan { program, busybox, root, state, .. } = plan.clone();
        Self { program, busybox, root, state }
    }

    pub fn programs(&self) -> &Path {
        self.program.parent().unwrap_or(Path::new("/"))
    }

    /// The image, and nothing that an earlier soak has left.
    pub(super) fn prepare(&self) -> Result<(), String> {
        let archive = self.busybox.to_string_lossy().into_owned();
        self.run(&["load", "-i", &archive])?.expect(&[0])?;
        self.clear();
        Ok(())
    }

    /// Removes every container.
    pub(super) fn clear(&self) {
        let Ok(listed) = self.run(&["ps", "-aq"]) else { return };
        for id in listed.stdout.split_whitespace() {
            let _ = self.run(&["rm", "-f", id]);
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg("--state").arg(&self.state).args(arguments);
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<Done, String> {
        finish(self.command(arguments), None).map_err(|problem| format!("{arguments:?}: {problem}"))
    }

    /// A container that runs until it is ended.
    fn start(&self) -> Result<(), String> {
        self.run(&["run", "-d", "--name", NAME, "busybox", "sleep", "100000"])?
            .expect(&[0])
            .map(drop)
    }

    fn remove(&self) -> Result<(), String> {
        self.run(&["rm", "-f", NAME])?.expect(&[0])?;
        let left = self.run(&["ps", "-aq"])?.expect(&[0])?.stdout;
        if left.is_empty() { Ok(()) } else { Err(format!("still listed: {left}")) }
    }

    /// The pids of one of the programs.
    pub(super) fn pids_of(&self, program: &str) -> Vec<i32> {
        let exe = self.programs().join(program);
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|found| found == exe))
            .collect()
    }

    fn kill_all(&self, program: &str) -> Result<(), String> {
        let pids = self.pids_of(program);
        for &pid in &pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if pids.is_empty() { Err(format!("no {program} runs")) } else { Ok(()) }
    }
}

const NAME: &str = "soak";

/// Runs a command to its end, which `kill_after` brings about early.
fn finish(mut command: Command, kill_after: Option<Duration>) -> Result<Done, String> {
    let ended = bounded::run(&mut command, b"", kill_after.unwrap_or(COMMAND_LIMIT))?;
    if ended.killed && kill_after.is_none() {
        return Err(format!("does not end within {COMMAND_LIMIT:?}"));
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Done {
        code: ended.output.status.code(),
        stdout: text(ended.output.stdout),
        stderr: text(ended.output.stderr),
    })
}

fn run_to_the_end(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    let (code, size) = (random.below(120) as i32, random.below(60_000));
    let script = format!("head -c {size} /dev/zero | tr '\\0' x; exit {code}");
    let done = caisson.run(&["run", "--rm", "busybox", "sh", "-c", &script])?.expect(&[code])?;
    let bytes = done.stdout.len() as u64;
    if bytes == size { Ok(()) } else { Err(format!("{bytes} bytes of output instead of {size}")) }
}

fn execs(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    caisson.start()?;
    for _ in 0..=random.below(4) {
        let code = random.below(100) as i32;
        let exit = format!("exit {code}");
        caisson.run(&["exec", NAME, "sh", "-c", &exit])?.expect(&[code])?;
    }
    caisson.run(&["kill", NAME])?.expect(&[0])?;
    let waited = caisson.run(&["wait", NAME])?.expect(&[0])?.stdout;
    if waited != "137\n" {
        return Err(format!("ended with {waited:?}"));
    }
    caisson.remove()
}

fn kill_vmm(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    caisson.start()?;
    thread::sleep(Duration::from_millis(random.below(200)));
    caisson.kill_all("caisson-vmm")?;
    let waited = caisson.run(&["wait", NAME])?.expect(&[0])?.stdout;
    if waited != "137\n" {
        return Err(format!("ended with {waited:?}"));
    }
    caisson.remove()
}

fn kill_shim(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    caisson.start()?;
    thread::sleep(Duration::from_millis(random.below(200)));
    caisson.kill_all("containerd-shim-caisson-v2")?;
    caisson.remove()
}

fn kill_caller(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    let command = caisson.command(&["run", "--name", NAME, "busybox", "sleep", "100000"]);
    finish(command, Some(Duration::from_millis(random.below(3000))))?;
    caisson.run(&["ps", "-a"])?.expect(&[0])?;
    caisson.remove()
}

fn reader_goes(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    let mut command = caisson.command(&["run", "--name", NAME, "busybox", "yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child: Child = command.spawn().map_err(|error| error.to_string())?;
    let mut output = child.stdout.take().ok_or("no pipe")?;
    let mut some = vec![0; 1 + random.below(8192) as usize];
    output.read_exact(&mut some).map_err(|error| format!("read the output: {error}"))?;
    drop(output);
    let deadline = Instant::now() + COMMAND_LIMIT;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err("run goes on without a reader".to_owned());
        }
        thread::sleep(Duration::from_millis(10));
    }
    caisson.remove()
}

/// A small file system in the place of the containers' directories, for one command.
fn full_disk(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    let containers = caisson.root.join("containers");
    fs::create_dir_all(&containers).map_err(|error| error.to_string())?;
    let inodes = 1 + random.below(3);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg(
        "mount -t tmpfs -o size=64k,nr_inodes=$1 none \"$2\" || exit 99; shift 2; exec \"$@\"",
    );
    command.arg("sh").arg(inodes.to_string()).arg(&containers).arg(&caisson.program);
    command.arg("--root").arg(&caisson.root).arg("--state").arg(&caisson.state);
    command.args(["run", "--rm", "--name", NAME, "busybox", "true"]);
    let done = finish(command, None)?.expect(&[125])?;
    if !done.stderr.contains("full") && !done.stderr.contains("No space left") {
        return Err(format!("a full disk was not told: {}", done.stderr));
    }
    caisson.run(&["ps", "-a"])?.expect(&[0]).map(drop)
}

fn image(caisson: &Caisson, random: &mut Random) -> Result<(), String> {
    let archive = caisson.busybox.to_string_lossy().into_owned();
    let killed = caisson.command(&["load", "-i", &archive]);
    caisson.run(&["rmi", "busybox"])?.expect(&[0])?;
    finish(killed, Some(Duration::from_millis(random.below(600))))?;
    caisson.run(&["load", "-i", &archive])?.expect(&[0]).map(drop)
}
