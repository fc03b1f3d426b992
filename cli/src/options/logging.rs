//! `--log-opt`: how much of a container's log is kept.

use crate::{
    config::{LogDriver, LogRotation},
    format::units,
};

/// More would make every rotation, and every `logs`, slow.
const MAX_FILES: u32 = 1000;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogOptionError {
    #[error("invalid --log-opt {0:?}: expected name=value")]
    NoValue(String),
    #[error("unknown log opt {name:?} for {driver} log driver; there are max-size and max-file")]
    Unknown { name: String, driver: &'static str },
    #[error("unknown log opt {0:?} for none log driver; it keeps nothing")]
    None(String),
    #[error("invalid --log-opt max-size={0}: expected bytes above 0 (10m), or -1 for unlimited")]
    MaxSize(String),
    #[error("invalid --log-opt max-file={0}: expected a number from 1 to {MAX_FILES}")]
    MaxFile(String),
    #[error("--log-opt compress={0}: rotated logs are not compressed in this version")]
    Compress(String),
}

/// What the options say; of several of one name the last holds.
pub fn rotation(driver: LogDriver, options: &[String]) -> Result<LogRotation, LogOptionError> {
    let mut rotation = LogRotation::default();
    for option in options {
        let (name, value) =
            option.split_once('=').ok_or_else(|| LogOptionError::NoValue(option.clone()))?;
        if driver == LogDriver::None {
            return Err(LogOptionError::None(name.to_owned()));
        }
        match name {
            "max-size" if value == "-1" => rotation.max_bytes = None,
            "max-size" => {
                let bytes = units::parse_bytes(value).ok().filter(|&bytes| bytes > 0);
                let error = || LogOptionError::MaxSize(value.to_owned());
                rotation.max_bytes = Some(bytes.ok_or_else(error)?);
            }
            "max-file" => {
                let files = value.parse().ok().filter(|files| (1..=MAX_FILES).contains(files));
                let error = || LogOptionError::MaxFile(value.to_owned());
                rotation.max_files = Some(files.ok_or_else(error)?);
            }
            "compress" if value == "false" => {}
            "compress" => return Err(LogOptionError::Compress(value.to_owned())),
            _ => {
                let driver = "json-file";
                return Err(LogOptionError::Unknown { name: name.to_owned(), driver });
            }
        }
    }
    Ok(rotation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Result<LogRotation, LogOptionError> {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        rotation(LogDriver::JsonFile, &options)
    }

    #[test]
    fn sizes_and_numbers_are_read() {
        assert_eq!(parsed(&[]).unwrap(), LogRotation::default());
        let both = parsed(&["max-size=10m", "max-file=3", "compress=false"]).unwrap();
        assert_eq!(both, LogRotation { max_bytes: Some(10 << 20), max_files: Some(3) });
        assert_eq!(parsed(&["max-size=1k", "max-size=-1"]).unwrap().max_bytes, None);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (bad, message) in [
            ("max-size", "name=value"),
            ("max-size=0", "above 0"),
            ("max-size=big", "max-size=big"),
            ("max-file=0", "from 1 to 1000"),
            ("max-file=1001", "max-file=1001"),
            ("compress=true", "not compressed"),
            ("tag=x", "\"tag\" for json-file"),
        ] {
            let error = parsed(&[bad]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let error = rotation(LogDriver::None, &["max-file=3".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("none log driver"), "{error}");
    }
}
