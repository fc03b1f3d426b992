//! Out of a container. The archive is the guest's, so hostile: it is unpacked without
//! following any link, makes no device, and gives nobody rights.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use caisson_agent_protocol::Tool;
use caisson_archive::{
    placing::{self, Kind, Placing, Rebase},
    tar::{Entry, EntryKind},
    unpack::{Keep, Links, UnpackError, UnpackTarget, Unpacked, unpack_where},
};

use super::{Counted, CpArgs, CpError, Side, report};
use crate::{
    commands::{beside_machine::run_in_machine_into, tool::run_tool},
    engine::Engine,
    failure::{BROKEN_PIPE, CommandResult, Failure},
    globals::Globals,
    records::Container,
};

pub(super) fn copy(
    engine: &Engine,
    container: &Container,
    path: &str,
    to: Side<'_>,
    args: &CpArgs,
) -> CommandResult {
    let tool = Tool::Read { path: absolute(path), follow: args.follow_link };
    match to {
        Side::Host(to) => {
            let destination = Destination::find(to)?;
            let bytes = run_tool(engine, container, &tool, None, |archive| {
                destination.receive(archive, path, args)
            })?;
            report(args, bytes)
        }
        _ => {
            run_tool(engine, container, &tool, None, |archive| {
                Ok(io::copy(archive, &mut io::stdout().lock()).map(drop)?)
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// On a host whose containers are in the machine, which may write only where this command was
/// called: the archive comes by standard output and is unpacked here.
pub(in crate::commands) fn copy_from_machine(
    globals: &Globals,
    args: &CpArgs,
) -> Option<CommandResult> {
    let (Side::Container { path, .. }, Side::Host(to)) =
        (Side::parse(&args.source), Side::parse(&args.destination))
    else {
        return None;
    };
    let follow = format!("--follow-link={}", args.follow_link);
    let command = ["cp".into(), follow.into(), "--".into(), args.source.clone().into(), "-".into()];
    let copied = || {
        let destination = Destination::find(to)?;
        let (mut archive, writer) = io::pipe()?;
        thread::scope(|scope| {
            let sending = scope.spawn(|| run_in_machine_into(globals, &command, writer));
            let received = destination.receive(&mut archive, path, args);
            // Without a reader the sender ends.
            drop(archive);
            match sending.join() {
                Ok(Ok(0)) => report(args, received?),
                Ok(Ok(code)) => Err(match received {
                    // It could not go on because nobody took what it sent.
                    Err(failure) if code == BROKEN_PIPE => failure,
                    // It has said why.
                    _ => Failure::quiet(code),
                }),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(Failure::message("the thread that asks the machine failed")),
            }
        })
    };
    Some(copied())
}

/// Paths in a container begin at its root.
pub(super) fn absolute(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

/// Where on this host the copy goes, looked up before anything is sent.
struct Destination {
    /// As the caller wrote it.
    path: String,
    kind: Option<Kind>,
    /// The destination itself, if it is a directory.
    itself: Option<File>,
    /// Its parent, and its name there.
    parent: Option<(File, String)>,
}

impl Destination {
    fn find(path: &str) -> Result<Self, CpError> {
        let look = |path: &Path, source| CpError::Look { path: path.to_owned(), source };
        let given = PathBuf::from(path);
        let kind = match fs::metadata(&given) {
            Ok(metadata) if metadata.is_dir() => Some(Kind::Directory),
            Ok(_) => Some(Kind::Other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // `file/` is no directory.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Some(Kind::Other),
            Err(error) => return Err(look(&given, error)),
        };
        if kind == Some(Kind::Directory) {
            let itself = File::open(&given).map_err(|error| look(&given, error))?;
            return Ok(Self { path: path.to_owned(), kind, itself: Some(itself), parent: None });
        }
        // What a link leads to is replaced, not the link.
        let real = fs::canonicalize(&given).unwrap_or(given);
        let (directory, name) = (directory_of(&real), real.file_name());
        let name = name.map(|name| name.to_string_lossy().into_owned());
        let parent = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CpError::NoParent(directory.to_owned()));
            }
            other => other.map_err(|error| look(directory, error))?,
        };
        let parent = name.map(|name| (parent, name));
        Ok(Self { path: path.to_owned(), kind, itself: None, parent })
    }

    /// Unpacks the archive of what was asked for as `source`; the archive's bytes.
    fn receive(&self, archive: &mut dyn Read, source: &str, args: &CpArgs) -> Result<u64, Failure> {
        let keep = Keep { owner: args.archive, devices: false, capabilities: args.archive };
        let mut archive = Counted::new(archive);
        let contents = placing::asks_for_contents(source.as_bytes());
        let mut rebase: Option<(Vec<u8>, &str)> = None;
        let becomes = std::cell::Cell::new("");
        let unpacked = unpack_where(
            &mut archive,
            |first| {
                let (directory, name) = self.place(first)?;
                becomes.set(name);
                let (root, directory) = (directory.as_fd(), &b""[..]);
                Ok(UnpackTarget { root, directory, links: Links::Refused, keep })
            },
            &mut |entry| {
                let (base, becomes) = rebase.get_or_insert_with(|| {
                    let base = if contents { &[][..] } else { first_name(&entry.path) };
                    (base.to_vec(), becomes.get())
                });
                let becomes = if becomes.is_empty() { &base[..] } else { becomes.as_bytes() };
                Rebase { base, becomes }.apply(entry)
            },
        );
        let unpacked = unpacked.map_err(|error| self.explained(error))?;
        if unpacked.entries == 0 {
            return Err(CpError::Nothing.into());
        }
        tell_left_out(&unpacked);
        Ok(archive.bytes)
    }

    /// The directory to unpack into, and the name that the copy gets there if not its own.
    fn place(&self, first: &Entry) -> Result<(&File, &str), UnpackError> {
        let kind = match first.kind {
            EntryKind::Directory => Kind::Directory,
            _ => Kind::Other,
        };
        let placing = placing::place(kind, self.kind, self.path.as_bytes())?;
        match (placing, &self.itself, &self.parent) {
            (Placing::Into, Some(directory), _) => Ok((directory, "")),
            (_, _, Some((parent, name))) => Ok((parent, name)),
            // A name such as `..` of a directory that is not there.
            _ => Err(placing::PlacingError::NoSuchDirectory.into()),
        }
    }

    /// Names the destination where the archive's own names say too little.
    fn explained(&self, error: UnpackError) -> Failure {
        let error = anyhow::Error::new(error);
        Failure::from_anyhow(error.context(format!("copy to {}", self.path)))
    }
}

/// Of the first entry, which names the whole archive; `.` for the root.
fn first_name(path: &[u8]) -> &[u8] {
    path.split(|&byte| byte == b'/').find(|name| !matches!(*name, b"" | b".")).unwrap_or_default()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn tell_left_out(unpacked: &Unpacked) {
    let Some(first) = &unpacked.first_device else { return };
    let first = caisson_archive::name::display(first);
    tracing::warn!(
        "{} device nodes of the guest were not made on this host, the first is \"{first}\"; `caisson cp \
         CONTAINER:PATH -` has them in its archive",
        unpacked.devices_left_out
    );
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use caisson_archive::tar::testing::{TarBuilder, TarEntry};

    use super::*;

    const ARGS: fn() -> CpArgs = || CpArgs {
        archive: false,
        follow_link: false,
        quiet: true,
        source: String::new(),
        destination: String::new(),
    };

    fn receive(archive: &[u8], source: &str, to: &Path) -> Result<u64, Failure> {
        let destination = Destination::find(to.to_str().unwrap())?;
        destination.receive(&mut &archive[..], source, &ARGS())
    }

    fn tree() -> Vec<u8> {
        TarBuilder::new().dir("src/").file("src/file", b"text").symlink("src/link", "/etc").finish()
    }

    #[test]
    fn a_directory_goes_into_one_that_is_there_and_else_becomes_it() {
        let host = tempfile::tempdir().unwrap();
        receive(&tree(), "/src", host.path()).unwrap();
        assert_eq!(fs::read_to_string(host.path().join("src/file")).unwrap(), "text");
        receive(&tree(), "/src", &host.path().join("new")).unwrap();
        assert_eq!(fs::read_to_string(host.path().join("new/file")).unwrap(), "text");
        assert_eq!(fs::read_link(host.path().join("new/link")).unwrap(), Path::new("/etc"));
        let contents = TarBuilder::new().dir("./").file("./inner", b"x").finish();
        receive(&contents, "/src/.", &host.path().join("contents")).unwrap();
        assert!(host.path().join("contents/inner").exists());
        receive(&contents, "/src/.", host.path()).unwrap();
        assert!(host.path().join("inner").exists());
    }

    #[test]
    fn a_file_replaces_one_also_behind_a_link() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("old"), "old").unwrap();
        symlink("old", host.path().join("link")).unwrap();
        let archive = TarBuilder::new().file("f", b"new").finish();
        receive(&archive, "/f", &host.path().join("link")).unwrap();
        assert_eq!(fs::read_to_string(host.path().join("old")).unwrap(), "new");
        assert!(host.path().join("link").is_symlink());
    }

    #[test]
    fn what_cannot_be_is_told_as_docker_tells_it() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "").unwrap();
        let one = TarBuilder::new().file("f", b"").finish();
        let cases = [
            (tree(), host.path().join("file"), "cannot copy directory"),
            (one.clone(), host.path().join("no/"), "no such directory"),
            (one.clone(), host.path().join("no/where"), "does not exist"),
            (TarBuilder::new().finish(), host.path().join("x"), "no archive"),
        ];
        for (archive, to, words) in cases {
            let failure = receive(&archive, "/f", &to).unwrap_err();
            assert!(failure.text().contains(words), "{}", failure.text());
        }
    }

    #[test]
    fn a_hostile_archive_stays_where_it_was_asked_to() {
        let evil = [
            TarBuilder::new().file("../out", b"").finish(),
            TarBuilder::new().dir("f/").file("other/out", b"").finish(),
            TarBuilder::new().dir("f/").symlink("f/way", "..").file("f/way/out", b"").finish(),
            TarBuilder::new().symlink("f", "/tmp").file("f/out", b"").finish(),
        ];
        for archive in evil {
            let host = tempfile::tempdir().unwrap();
            fs::create_dir(host.path().join("to")).unwrap();
            receive(&archive, "/f", &host.path().join("to")).unwrap_err();
            let names = fs::read_dir(host.path()).unwrap().count();
            assert_eq!(names, 1, "something lies beside the destination");
            assert!(!Path::new("/tmp/out").exists());
        }
    }

    #[test]
    fn devices_and_rights_stay_in_the_guest() {
        use std::os::unix::fs::PermissionsExt;
        let host = tempfile::tempdir().unwrap();
        let device = TarEntry { kind: b'4', name: b"d/sda", device: (8, 0), ..TarEntry::default() };
        let program = TarEntry { name: b"d/su", mode: 0o4755, ..TarEntry::default() };
        let archive = TarBuilder::new().dir("d/").entry(device).entry(program).finish();
        receive(&archive, "/d", host.path()).unwrap();
        assert!(!host.path().join("d/sda").exists());
        let mode = host.path().join("d/su").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}
