//! Runs one of the agent's tools on a container and passes its streams to the command.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
};

use caisson_agent_protocol::Tool;
use caisson_shim::client::{ShimClient, Stdio};

use super::run::not_started;
use crate::{
    attach::{
        AttachError,
        fifo::{self, OutputFifo},
        session::{Attachment, Session},
        signals::Policy,
    },
    engine::{Engine, EngineError, make_fifo},
    failure::Failure,
    names,
    records::Container,
};

/// Of what a tool says about its failure.
const MAX_WORDS_BYTES: u64 = 64 << 10;
/// 128 and a signal that ends a process by default.
const SIGNALED: std::ops::RangeInclusive<u8> = 129..=143;

/// As SIGKILL ends a process, and the loss of its VM.
const KILLED: u8 = 137;

/// Fills a tool's standard input.
pub(super) type Feed = Box<dyn FnOnce(File) -> Result<(), Failure> + Send>;

/// Runs `tool` on `container`, which is booted for it if it does not run. `feed` fills its
/// input, `take` gets all of its output.
pub(super) fn run_tool<T>(
    engine: &Engine,
    container: &Container,
    tool: &Tool,
    feed: Option<Feed>,
    take: impl FnOnce(&mut dyn Read) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let id = names::new_id()?;
    let signals = Policy { proxy: true, terminal: false, exec: Some(id.clone()) };
    let mut session = Session::new(Attachment { signals, ..Attachment::default() })?;
    let visit = engine.visit(container, &mut session);
    let visit = visit.map_err(|error| not_started(&mut session, error))?;
    let run = Run { client: visit.client.clone(), container, id, session: &session };
    let directory = engine.globals.bundle_dir(&container.id).join(format!("exec-{}", run.id));
    let result = run.in_directory(&directory, tool, feed, take);
    // The bundle's removal takes what stays.
    if let Err(error) = fs::remove_dir_all(&directory) {
        tracing::debug!(%error, "remove {}", directory.display());
    }
    session.signals.over();
    let left = engine.leave(visit);
    // The first failure is the one to tell.
    let value = result?;
    left?;
    Ok(value)
}

struct Run<'a> {
    client: ShimClient,
    container: &'a Container,
    id: String,
    session: &'a Session,
}

impl Run<'_> {
    fn in_directory<T>(
        &self,
        directory: &Path,
        tool: &Tool,
        feed: Option<Feed>,
        take: impl FnOnce(&mut dyn Read) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let create =
            |source| EngineError::Io { action: "create", path: directory.to_owned(), source };
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(create)?;
        let fifo = |name: &str| -> Result<PathBuf, Failure> {
            let path = directory.join(name);
            make_fifo(&path)?;
            Ok(path)
        };
        let (stdout, stderr) = (fifo("stdout")?, fifo("stderr")?);
        let stdin = feed.is_some().then(|| fifo("stdin")).transpose()?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let stdio = Stdio {
            stdin: stdin.as_deref().map(text).unwrap_or_default(),
            stdout: text(&stdout),
            stderr: text(&stderr),
            terminal: false,
        };
        let outputs = (OutputFifo::open(&stdout)?, OutputFifo::open(&stderr)?);
        self.client.tool(&self.id, tool, &stdio)?;
        let outputs = (reader(outputs.0, &stdout)?, reader(outputs.1, &stderr)?);
        let result = self.started(outputs, stdin.zip(feed), take);
        if let Err(error) = self.client.delete(Some(&self.id)) {
            tracing::debug!(%error, "delete tool {}", self.id);
        }
        result
    }

    fn started<T>(
        &self,
        (mut stdout, stderr): (File, File),
        feed: Option<(PathBuf, Feed)>,
        take: impl FnOnce(&mut dyn Read) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let input = feed.map(|(path, feed)| Ok::<_, AttachError>((fifo::open_input(&path)?, feed)));
        let input = input.transpose()?;
        self.client.start(Some(&self.id))?;
        self.session.signals.running(&self.client, Some(&self.id));
        let words = spawn("stderr", move || words(stderr))?;
        let (client, id) = (self.client.clone(), self.id.clone());
        let feeding = input.map(|(file, feed)| {
            spawn("stdin", move || {
                let fed = feed(file);
                if let Err(error) = client.close_stdin(Some(&id)) {
                    tracing::debug!(%error, "close the input of tool {id}");
                }
                fed
            })
        });
        let feeding = feeding.transpose()?;
        let taken = take(&mut stdout);
        let was_broken_off = taken.is_err();
        if was_broken_off {
            // It may wait for a reader for ever.
            let _ = self.client.kill(Some(&self.id), nix::libc::SIGKILL as u32, false);
        }
        // Whatever nobody took must not keep it from ending.
        let _ = io::copy(&mut stdout, &mut io::sink());
        let exit = self.client.wait(Some(&self.id))?;
        let words = words.join().unwrap_or_default();
        self.judge(exit.code, words.trim(), was_broken_off)?;
        let value = taken?;
        // A tool that succeeds has read all of it, so this ends.
        match feeding.map(thread::JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(value),
            Some(Ok(Err(failure))) => Err(failure),
            Some(Err(_)) => Err(Failure::message("the thread that writes the input failed")),
        }
    }

    /// A failure of the tool. One that was broken off has failed for the reason of that.
    fn judge(&self, code: u8, words: &str, was_broken_off: bool) -> Result<(), Failure> {
        match code {
            KILLED if was_broken_off => Ok(()),
            KILLED => Err(Failure::message(format!(
                "container {} ended before the work on it was done",
                self.container.name
            ))),
            0 if words.is_empty() => Ok(()),
            0 => {
                // Where standard error is closed nobody listens.
                let words = crate::format::inert::inert_lines(words);
                let _ = io::Write::write_all(&mut io::stderr(), (words + "\n").as_bytes());
                Ok(())
            }
            code if SIGNALED.contains(&code) => Err(Failure::quiet(code)),
            // As Docker has it, with the container's name.
            _ if words.ends_with(" in container") => {
                Err(Failure::message(format!("{words} {}", self.container.name)))
            }
            code if words.is_empty() => {
                Err(Failure::message(format!("the work in the guest failed with code {code}")))
            }
            _ => Err(Failure::message(words)),
        }
    }
}

/// A FIFO's end that the shim has open, read with waiting until it ends.
fn reader(mut output: OutputFifo, path: &Path) -> Result<File, AttachError> {
    output.opened_by_shim();
    let failed = |source| AttachError::Fifo { path: path.to_owned(), source };
    fifo::set_blocking(&output.reader).map_err(failed)?;
    Ok(output.reader)
}

fn words(mut stderr: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not told.
    let _ = stderr.by_ref().take(MAX_WORDS_BYTES).read_to_end(&mut bytes);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn spawn<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, AttachError> {
    let thread = thread::Builder::new().name(what.to_owned());
    thread.spawn(work).map_err(|source| AttachError::Thread { what, source })
}
