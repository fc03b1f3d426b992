//! Errors for people on standard error, and for engines in `--log`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
};

use caisson_shim::time::{now_unix_nanos, rfc3339_nanos};

use crate::args::{Globals, LogFormat};

/// Says what failed, everywhere it is looked for.
pub(crate) fn report(globals: &Globals, words: &str) {
    // Where standard error is closed nobody listens.
    let _ = writeln!(io::stderr(), "caisson-runtime: {words}");
    let Some(path) = &globals.log else { return };
    let line = line(globals.log_format, words);
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if let Err(error) = written {
        let _ = writeln!(io::stderr(), "caisson-runtime: write {}: {error}", path.display());
    }
}

fn line(format: LogFormat, words: &str) -> String {
    let time = rfc3339_nanos(now_unix_nanos());
    match format {
        LogFormat::Json => {
            let entry = serde_json::json!({ "level": "error", "msg": words, "time": time });
            format!("{entry}\n")
        }
        LogFormat::Text => format!("time={time:?} level=error msg={words:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_object_whatever_it_says() {
        let line = line(LogFormat::Json, "a \"quoted\"\nline");
        assert_eq!(line.matches('\n').count(), 1);
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&entry["level"], &entry["msg"]),
            (&"error".into(), &"a \"quoted\"\nline".into())
        );
    }
}
