//! The log of events: `<root>/events.log`, a JSON object a line, and one older file
//! `events.log.1`. A full log becomes the older one; what was in that is forgotten.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::Event;

const NAME: &str = "events.log";
const OLDER: &str = "events.log.1";
const LOCK: &str = "events.lock";

/// Of either file, but for the line that fills it.
const MAX_BYTES: u64 = 1 << 20;
/// Of one event; labels may be long.
const MAX_LINE_BYTES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("write an event as JSON")]
    Json(#[source] serde_json::Error),
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LogError + use<'a> {
    move |source| LogError::Io { action, path: path.to_owned(), source }
}

/// Appends `event`. One that is too long loses what is not its own: its labels.
pub fn append(root: &Path, event: &Event) -> Result<(), LogError> {
    let mut line = serde_json::to_vec(event).map_err(LogError::Json)?;
    if line.len() as u64 >= MAX_LINE_BYTES {
        let mut short = event.clone();
        short.attributes.retain(|key, value| key.len() + value.len() < 1024);
        short.attributes = short.attributes.into_iter().take(32).collect();
        line = serde_json::to_vec(&short).map_err(LogError::Json)?;
    }
    line.push(b'\n');
    let (path, lock) = (root.join(NAME), root.join(LOCK));
    // Against another process that finds the log full at the same time.
    let locked = File::create(&lock).map_err(failed("open", &lock))?;
    locked.lock().map_err(failed("lock", &lock))?;
    let is_full = fs::metadata(&path).is_ok_and(|log| log.len() >= MAX_BYTES);
    if is_full {
        fs::rename(&path, root.join(OLDER)).map_err(failed("rename", &path))?;
    }
    let log = File::options().append(true).create(true).open(&path);
    // With one call, so that no reader finds half of it under another.
    log.and_then(|mut log| log.write_all(&line)).map_err(failed("write", &path))
}

/// Reads events from the oldest on, and those that come.
pub struct Reader {
    root: PathBuf,
    /// The file that is being read, and its inode.
    file: Option<(BufReader<File>, u64)>,
    /// Of a line whose end is not written yet.
    begun: Vec<u8>,
    inotify: Inotify,
}

impl Reader {
    /// Begins with the oldest event that is kept.
    pub fn open(root: &Path) -> Result<Self, LogError> {
        let watch = || -> nix::Result<Inotify> {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE;
            inotify.add_watch(root, flags)?;
            Ok(inotify)
        };
        let inotify = watch().map_err(|error| failed("watch", root)(error.into()))?;
        let mut reader = Self { root: root.to_owned(), file: None, begun: Vec::new(), inotify };
        if !reader.open_file(OLDER)? {
            reader.open_file(NAME)?;
        }
        Ok(reader)
    }

    /// The next event that is there; lines that are none are passed over.
    pub fn next_event(&mut self) -> Result<Option<Event>, LogError> {
        loop {
            let Some(line) = self.next_line()? else { return Ok(None) };
            match serde_json::from_slice(&line) {
                Ok(event) => return Ok(Some(event)),
                Err(error) => tracing::debug!(%error, "a line of the events' log is damaged"),
            }
        }
    }

    /// Waits until something has changed, at most so long.
    pub fn wait(&self, limit: Option<Duration>) -> Result<(), LogError> {
        let failed = |error: nix::Error| failed("watch", &self.root)(error.into());
        let timeout = match limit {
            None => PollTimeout::NONE,
            // Rounded up, so that the end of the wait is not waited for in a loop.
            Some(limit) => {
                PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(()),
            other => other.map_err(failed)?,
        };
        match self.inotify.read_events() {
            Ok(_) | Err(nix::Error::EAGAIN) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, LogError> {
        loop {
            let Some((file, _)) = &mut self.file else {
                if self.open_file(NAME)? {
                    continue;
                }
                return Ok(None);
            };
            let left = MAX_LINE_BYTES.saturating_sub(self.begun.len() as u64).max(1);
            let path = self.root.join(NAME);
            file.by_ref()
                .take(left)
                .read_until(b'\n', &mut self.begun)
                .map_err(failed("read", &path))?;
            if self.begun.last() == Some(&b'\n') || self.begun.len() as u64 >= MAX_LINE_BYTES {
                return Ok(Some(std::mem::take(&mut self.begun)));
            }
            if !self.follow_rotation()? {
                return Ok(None);
            }
        }
    }

    /// At the end of the file: goes on with the next one, if this one is not written to any
    /// more. Says whether there is more to read.
    fn follow_rotation(&mut self) -> Result<bool, LogError> {
        let inode = |name: &str| fs::metadata(self.root.join(name)).ok().map(|file| file.ino());
        let Some((file, own)) = &mut self.file else { return Ok(false) };
        if inode(NAME) == Some(*own) {
            return Ok(false);
        }
        // Between the end of the file and this look the last line may have come.
        let path = self.root.join(NAME);
        if !file.fill_buf().map_err(failed("read", &path))?.is_empty() {
            return Ok(true);
        }
        self.begun.clear();
        self.file = None;
        self.open_file(NAME)
    }

    fn open_file(&mut self, name: &str) -> Result<bool, LogError> {
        let path = self.root.join(name);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            opened => {
                let file = opened.map_err(failed("open", &path))?;
                let inode = file.metadata().map_err(failed("look at", &path))?.ino();
                self.file = Some((BufReader::new(file), inode));
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Event {
        Event::of_image(&format!("image{number}"), "pull").with("padding", "x".repeat(1000))
    }

    fn read_all(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_event().unwrap()).map(|event| event.id).collect()
    }

    #[test]
    fn events_are_read_as_they_come() {
        let root = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(root.path()).unwrap();
        assert_eq!(read_all(&mut reader), [] as [&str; 0]);
        append(root.path(), &event(1)).unwrap();
        reader.wait(None).unwrap();
        assert_eq!(read_all(&mut reader), ["image1"]);
        append(root.path(), &event(2)).unwrap();
        assert_eq!(read_all(&mut reader), ["image2"]);
        assert_eq!(read_all(&mut Reader::open(root.path()).unwrap()), ["image1", "image2"]);
    }

    #[test]
    fn the_log_is_bounded_and_a_reader_follows_over_rotations() {
        let root = tempfile::tempdir().unwrap();
        let mut reader = Reader::open(root.path()).unwrap();
        let mut seen = Vec::new();
        for number in 0..3000 {
            append(root.path(), &event(number)).unwrap();
            if number % 500 == 0 {
                seen.extend(read_all(&mut reader));
            }
        }
        seen.extend(read_all(&mut reader));
        let expected: Vec<String> = (0..3000).map(|number| format!("image{number}")).collect();
        assert_eq!(seen, expected);
        let sizes: u64 = [NAME, OLDER]
            .iter()
            .map(|name| fs::metadata(root.path().join(name)).unwrap().len())
            .sum();
        assert!(sizes < 3 * MAX_BYTES, "{sizes}");
        let late = read_all(&mut Reader::open(root.path()).unwrap());
        assert!(expected.ends_with(&late) && late.len() > 500, "{}", late.len());
    }

    #[test]
    fn garbage_is_passed_over_and_half_a_line_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(NAME);
        fs::write(&path, "garbage\n{}\n\n").unwrap();
        append(root.path(), &event(1)).unwrap();
        let mut reader = Reader::open(root.path()).unwrap();
        assert_eq!(read_all(&mut reader), ["image1"]);
        let line = serde_json::to_vec(&event(2)).unwrap();
        let mut log = File::options().append(true).open(&path).unwrap();
        log.write_all(&line[..20]).unwrap();
        assert_eq!(read_all(&mut reader), [] as [&str; 0]);
        log.write_all(&line[20..]).unwrap();
        log.write_all(b"\n").unwrap();
        assert_eq!(read_all(&mut reader), ["image2"]);
        fs::write(&path, vec![b'x'; 300_000]).unwrap();
        let mut reader = Reader::open(root.path()).unwrap();
        assert_eq!(read_all(&mut reader), [] as [&str; 0]);
    }

    #[test]
    fn long_labels_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        let long = event(1).with("label", "x".repeat(100_000));
        append(root.path(), &long).unwrap();
        let mut reader = Reader::open(root.path()).unwrap();
        let event = reader.next_event().unwrap().unwrap();
        assert!(!event.attributes.contains_key("label"));
        assert_eq!(event.attributes["name"], "image1");
    }
}
