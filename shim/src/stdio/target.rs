//! The host's end of a stream: what its name means, and opening it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{self, Receiver, Sender},
};

use super::{StdioError, json_log::JsonLog, rotating_file::Rotation};

/// What an engine's name for a stream means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A FIFO that exists.
    Fifo(PathBuf),
    /// `file://`: raw bytes, appended.
    File(PathBuf),
    /// `json-file://`: Docker's log format, appended, and rotated as
    /// `?max-bytes=N&max-files=N` says.
    JsonFile(PathBuf, Rotation),
}

impl Target {
    /// The target that `uri` names; `None` for the empty name.
    pub fn parse(stream: &'static str, uri: &str) -> Result<Option<Self>, StdioError> {
        let invalid = |problem| Err(StdioError::Invalid { stream, uri: uri.to_owned(), problem });
        let (scheme, path) = match uri.split_once("://") {
            _ if uri.is_empty() => return Ok(None),
            Some((scheme, path)) => (scheme, path),
            None => ("fifo", uri),
        };
        // containerd appends the logger's options as a query.
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            return invalid("the path is not absolute");
        }
        match scheme {
            "fifo" => Ok(Some(Self::Fifo(path))),
            "file" if stream != "stdin" => Ok(Some(Self::File(path))),
            "json-file" if stream != "stdin" => match rotation(query) {
                Some(rotation) => Ok(Some(Self::JsonFile(path, rotation))),
                None => invalid("max-bytes and max-files are positive numbers"),
            },
            "file" | "json-file" => invalid("standard input comes from a FIFO only"),
            "binary" => invalid(
                "logging by an external program (binary://) is not supported; use a FIFO, file:// or json-file://",
            ),
            _ => invalid("unknown scheme; use a FIFO's path, file:// or json-file://"),
        }
    }

    pub(super) fn open_stdin(self) -> Result<Stdin, StdioError> {
        let (Self::Fifo(path) | Self::File(path) | Self::JsonFile(path, _)) = self;
        Stdin::open(&path).map_err(|source| StdioError::Open { stream: "stdin", path, source })
    }

    pub(super) fn open_sink(self, stream: &'static str) -> Result<Sink, StdioError> {
        let (opened, path) = match self {
            Self::Fifo(path) => (open_fifo_for_output(&path).map(Sink::Fifo), path),
            Self::File(path) => (open_appending(&path).map(Sink::File), path),
            Self::JsonFile(path, rotation) => {
                (JsonLog::open(&path, rotation, stream).map(Sink::JsonFile), path)
            }
        };
        opened.map_err(|source| StdioError::Open { stream, path, source })
    }
}

/// What a query says; options of other loggers are no business of this one.
fn rotation(query: &str) -> Option<Rotation> {
    let mut rotation = Rotation { max_bytes: None, max_files: 1 };
    for option in query.split('&') {
        match option.split_once('=') {
            Some(("max-bytes", number)) => {
                rotation.max_bytes = Some(number.parse().ok().filter(|&bytes: &u64| bytes > 0)?);
            }
            Some(("max-files", number)) => {
                rotation.max_files = number.parse().ok().filter(|&files: &u32| files > 0)?;
            }
            _ => {}
        }
    }
    Some(rotation)
}

/// A FIFO to read standard input from.
#[derive(Debug)]
pub(super) struct Stdin {
    pub(super) reader: Receiver,
    /// Keeps the FIFO from ending when an engine's client goes and another comes; dropped
    /// by CloseIO, after which the last writer's close is the end.
    pub(super) keep_open: Sender,
}

impl Stdin {
    fn open(path: &Path) -> io::Result<Self> {
        check_fifo(path)?;
        // A non-blocking open for reading succeeds without a writer, and one for writing
        // once there is a reader.
        let reader = pipe::OpenOptions::new().open_receiver(path)?;
        let keep_open = pipe::OpenOptions::new().open_sender(path)?;
        Ok(Self { reader, keep_open })
    }
}

/// Where a process's output goes.
#[derive(Debug)]
pub(super) enum Sink {
    Fifo(Sender),
    File(File),
    JsonFile(JsonLog),
}

impl Sink {
    /// Writes all of it. A FIFO whose reader is slow or away is waited for.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
            Self::JsonFile(log) => log.push(bytes),
        }
    }

    /// Writes what waits for the end of its line.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Fifo(_) | Self::File(_) => Ok(()),
            Self::JsonFile(log) => log.finish(),
        }
    }
}

fn open_fifo_for_output(path: &Path) -> io::Result<Sender> {
    check_fifo(path)?;
    // Being a reader too keeps the open from blocking and a reader's absence from being an
    // error: the bytes wait in the FIFO.
    pipe::OpenOptions::new().read_write(true).open_sender(path)
}

fn open_appending(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

fn check_fifo(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.file_type().is_fifo() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Result<Option<Target>, StdioError> {
        Target::parse("stdout", uri)
    }

    #[test]
    fn names_mean_what_they_say() {
        assert_eq!(parse("").unwrap(), None);
        assert_eq!(parse("/a/b").unwrap(), Some(Target::Fifo("/a/b".into())));
        assert_eq!(parse("fifo:///a/b").unwrap(), Some(Target::Fifo("/a/b".into())));
        assert_eq!(parse("file:///a").unwrap(), Some(Target::File("/a".into())));
        let log = |max_bytes, max_files| {
            Some(Target::JsonFile("/a".into(), Rotation { max_bytes, max_files }))
        };
        assert_eq!(parse("json-file:///a?x=1").unwrap(), log(None, 1));
        assert_eq!(parse("json-file:///a?max-bytes=9&max-files=3").unwrap(), log(Some(9), 3));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for uri in [
            "binary:///usr/bin/logger",
            "relative",
            "ftp:///x",
            "file://host/x",
            "json-file:///x?max-bytes=0",
            "json-file:///x?max-files=-1",
        ] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(uri), "{error}");
        }
        assert!(parse("binary:///l").unwrap_err().to_string().contains("external program"));
        Target::parse("stdin", "file:///a").unwrap_err();
    }
}
