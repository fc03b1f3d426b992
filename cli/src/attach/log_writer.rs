//! A container's log, written by a command that relays the output itself. (Of a detached
//! container the shim writes it, by the same code.)

use std::io;

use caisson_shim::stdio::json_log::JsonLog;

use super::AttachError;
use crate::engine::LogTarget;

/// The one log of all streams of a container.
pub struct Log {
    target: LogTarget,
    /// From the first stream on.
    opened: Option<JsonLog>,
}

impl Log {
    pub fn new(target: LogTarget) -> Self {
        Self { target, opened: None }
    }

    /// What writes the stream of this name.
    pub fn writer(&mut self, stream: &'static str) -> Result<LogWriter, AttachError> {
        let LogTarget { path, rotation } = &self.target;
        let log = match &self.opened {
            Some(log) => log.for_stream(stream),
            None => JsonLog::open(path, *rotation, stream)
                .map_err(|source| AttachError::Log { path: path.clone(), source })?,
        };
        self.opened.get_or_insert_with(|| log.for_stream(stream));
        Ok(LogWriter(Some(log)))
    }
}

/// One stream on its way into a log. A log that cannot be written is given up with a
/// warning; the container goes on.
pub struct LogWriter(Option<JsonLog>);

impl LogWriter {
    pub fn push(&mut self, bytes: &[u8]) {
        self.write(|log| log.push(bytes));
    }

    /// Writes the last line if it has no end.
    pub fn finish(&mut self) {
        self.write(JsonLog::finish);
    }

    fn write(&mut self, write: impl FnOnce(&mut JsonLog) -> io::Result<()>) {
        if let Some(Err(error)) = self.0.as_mut().map(write) {
            tracing::warn!(%error, "write the container's log; it ends here");
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use caisson_shim::stdio::{log_files, rotating_file::Rotation};

    use super::*;

    #[test]
    fn both_streams_share_one_log_and_its_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotation = Rotation { max_bytes: Some(1000), max_files: 50 };
        let mut log = Log::new(LogTarget { path: path.clone(), rotation });
        let mut writers = ["stdout", "stderr"].map(|stream| log.writer(stream).unwrap());
        for number in 0..100 {
            for writer in &mut writers {
                writer.push(format!("line {number}\n").as_bytes());
            }
        }
        writers[0].push(b"the end");
        writers.iter_mut().for_each(LogWriter::finish);
        let files = log_files::oldest_first(&path).unwrap();
        assert!(files.len() > 5);
        let text: String =
            files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        assert_eq!(text.lines().count(), 201);
        assert!(text.contains("\"log\":\"the end\""));
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }
}
