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

use super::{StdioError, json_log::JsonLog};

/// What an engine's name for a stream means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A FIFO that exists.
    Fifo(PathBuf),
    /// `file://`: raw bytes, appended.
    File(PathBuf),
    /// `json-file://`: Docker's log format, appended.
    JsonFile(PathBuf),
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
        // containerd appends the logger's options as a query; these targets have none.
        let path = PathBuf::from(path.split('?').next().unwrap_or(path));
        if !path.is_absolute() {
            return invalid("the path is not absolute");
        }
        match scheme {
            "fifo" => Ok(Some(Self::Fifo(path))),
            "file" if stream != "stdin" => Ok(Some(Self::File(path))),
            "json-file" if stream != "stdin" => Ok(Some(Self::JsonFile(path))),
            "file" | "json-file" => invalid("standard input comes from a FIFO only"),
            "binary" => invalid(
                "logging by an external program (binary://) is not supported; use a FIFO, file:// or json-file://",
            ),
            _ => invalid("unknown scheme; use a FIFO's path, file:// or json-file://"),
        }
    }

    pub(super) fn open_stdin(self) -> Result<Stdin, StdioError> {
        let (Self::Fifo(path) | Self::File(path) | Self::JsonFile(path)) = self;
        Stdin::open(&path).map_err(|source| StdioError::Open { stream: "stdin", path, source })
    }

    pub(super) fn open_sink(self, stream: &'static str) -> Result<Sink, StdioError> {
        let (opened, path) = match self {
            Self::Fifo(path) => (open_fifo_for_output(&path).map(Sink::Fifo), path),
            Self::File(path) => (open_appending(&path).map(Sink::File), path),
            Self::JsonFile(path) => {
                (open_appending(&path).map(|file| Sink::JsonFile(file, JsonLog::new(stream))), path)
            }
        };
        opened.map_err(|source| StdioError::Open { stream, path, source })
    }
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
    JsonFile(File, JsonLog),
}

impl Sink {
    /// Writes all of it. A FIFO whose reader is slow or away is waited for.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::File(file) => file.write_all(bytes),
            Self::JsonFile(file, log) => log.push(bytes, |lines| file.write_all(lines)),
        }
    }

    /// Writes what waits for the end of its line.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Fifo(_) | Self::File(_) => Ok(()),
            Self::JsonFile(file, log) => log.finish(|lines| file.write_all(lines)),
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
        assert_eq!(parse("json-file:///a?x=1").unwrap(), Some(Target::JsonFile("/a".into())));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for uri in ["binary:///usr/bin/logger", "relative", "ftp:///x", "file://host/x"] {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(uri), "{error}");
        }
        assert!(parse("binary:///l").unwrap_err().to_string().contains("external program"));
        Target::parse("stdin", "file:///a").unwrap_err();
    }
}
