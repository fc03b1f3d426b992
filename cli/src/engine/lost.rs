//! Directories of containers whose rows a power loss has taken.
//!
//! The database loses at most its last transactions when the host does, while a directory
//! that was made after its row may have reached the disk. So once after each boot every
//! directory without a row is removed. At other times there is none: a row is written
//! before its directory, and deleted after it.

use std::{collections::HashSet, fs, io, path::Path};

use super::{Engine, EngineError, io_error};

/// In the root directory: the boot in which it was looked through last.
const MARKER: &str = "containers.boot";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Engine {
    /// Removes the directories without a row, if that was not done since the boot.
    pub(super) fn remove_lost(&self) -> Result<(), EngineError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(io_error("read", Path::new(BOOT_ID)))?;
        let marker = self.globals.root.join(MARKER);
        if fs::read_to_string(&marker).is_ok_and(|seen| seen == boot) {
            return Ok(());
        }
        // Listed before the rows are read: whatever has no row then had none, or is gone.
        let directories = self.container_directories()?;
        let rows: HashSet<String> =
            self.records.all()?.into_iter().map(|container| container.id).collect();
        for id in directories.iter().filter(|id| !rows.contains(*id)) {
            let directory = self.globals.container_dir(id);
            tracing::warn!("remove {}, which no record names", directory.display());
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &directory)(error));
                }
                _ => {}
            }
        }
        fs::write(&marker, boot).map_err(io_error("write", &marker))
    }

    /// The ids that have a directory. What else somebody put there is left alone.
    fn container_directories(&self) -> Result<Vec<String>, EngineError> {
        let parent = self.globals.root.join("containers");
        let entries = match fs::read_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &parent))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let is_id = |name: &String| {
            name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        Ok(names.filter(is_id).collect())
    }
}
