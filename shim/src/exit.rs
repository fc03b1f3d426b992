//! How a container ended, as a small file in its bundle, for those who ask after the
//! shim has gone.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_failpoints::{hit, steps};
use serde::{Deserialize, Serialize};

const FILE: &str = "exit.json";
const MAX_BYTES: u64 = 64 << 10;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + the signal; 137 when the VM was lost.
    pub code: u8,
    /// Nanoseconds since 1970.
    pub at_unix_nanos: u64,
    /// An OOM killer ended the container: the guest's one of its processes, or, with a reason,
    /// the host's the whole VM.
    #[serde(default)]
    pub oom_killed: bool,
    /// Why, when it was not the process's own doing.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Exit {
    /// An exit at the present time.
    pub fn now(code: u8) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let at_unix_nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self { code, at_unix_nanos, oom_killed: false, reason: None }
    }

    pub fn at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.at_unix_nanos)
    }

    /// Writes the record into `bundle`, whole or not at all.
    pub fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(".exit.json.new");
        hit(&steps::SHIM_EXIT_WRITE)?;
        File::create(&temporary)?.write_all(&serde_json::to_vec(self)?)?;
        hit(&steps::SHIM_EXIT_RENAME)?;
        fs::rename(temporary, bundle.join(FILE))
    }

    /// The record in `bundle`; `None` if the container has not ended.
    pub fn load(bundle: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(bundle.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(serde_json::from_slice(&bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_file() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Exit::load(bundle.path()).unwrap(), None);
        let exit = Exit { reason: Some("why".into()), oom_killed: true, ..Exit::now(137) };
        exit.save(bundle.path()).unwrap();
        assert_eq!(Exit::load(bundle.path()).unwrap(), Some(exit));
    }

    #[test]
    fn a_truncated_record_is_an_error_not_an_exit() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join(FILE), "{\"code\":").unwrap();
        Exit::load(bundle.path()).unwrap_err();
    }
}
