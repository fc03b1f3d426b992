//! What a configuration may ask of whoever runs the image.

use oci_spec::image::ImageConfiguration;

use super::LoadError;
use crate::limits::Limits;

/// Refuses what no process can be given, and lists without end.
pub(crate) fn check_config(config: &ImageConfiguration, limits: &Limits) -> Result<(), LoadError> {
    let Some(config) = config.config() else { return Ok(()) };
    let (none, no_labels) = (Vec::new(), Default::default());
    let list = |what, entries: &Option<Vec<String>>| {
        check(what, entries.as_ref().unwrap_or(&none).iter().map(String::as_str), limits)
    };
    list("Env", config.env())?;
    list("Cmd", config.cmd())?;
    list("Entrypoint", config.entrypoint())?;
    list("ExposedPorts", config.exposed_ports())?;
    list("Volumes", config.volumes())?;
    let labels = config.labels().as_ref().unwrap_or(&no_labels);
    check("Labels", labels.keys().map(String::as_str), limits)?;
    check("Labels", labels.values().map(String::as_str), limits)?;
    let words = [config.user(), config.working_dir(), config.stop_signal()];
    check("User, WorkingDir or StopSignal", words.into_iter().flatten().map(String::as_str), limits)
}

fn check<'a>(
    what: &'static str,
    entries: impl Iterator<Item = &'a str>,
    limits: &Limits,
) -> Result<(), LoadError> {
    let mut count = 0;
    for entry in entries {
        count += 1;
        if count > limits.config_entries {
            let problem = format!("more than {} entries, the limit", limits.config_entries);
            return Err(LoadError::Config { what, problem });
        }
        if entry.len() > limits.config_entry_bytes {
            let problem = format!(
                "one has {} bytes, more than {}, the limit",
                entry.len(),
                limits.config_entry_bytes
            );
            return Err(LoadError::Config { what, problem });
        }
        if entry.contains('\0') {
            return Err(LoadError::Config { what, problem: "one holds a NUL".to_owned() });
        }
    }
    Ok(())
}
