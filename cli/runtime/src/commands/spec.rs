//! `spec`: an example of a bundle's config.json.

use std::{fs::OpenOptions, io::Write, path::Path};

use caisson_cli::{config::ContainerConfig, spec};

use super::CommandResult;
use crate::error::{RuntimeError, io_error};

/// A shell on a terminal in `rootfs`, with the privileges of any container.
pub(super) fn write(bundle: &Path) -> CommandResult {
    let path = bundle.join("config.json");
    let config = ContainerConfig {
        entrypoint: vec!["sh".to_owned()],
        env: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "TERM=xterm".to_owned(),
        ],
        working_dir: "/".to_owned(),
        hostname: "caisson".to_owned(),
        tty: true,
        ..ContainerConfig::default()
    };
    let context =
        spec::Context { id: "caisson", bundle, volumes: bundle, first_start: false, console: None };
    let built = spec::build(&config, &context).map_err(RuntimeError::Spec)?;
    let mut value = serde_json::to_value(built)
        .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
    value["root"]["path"] = "rootfs".into();
    // The engine's files, which this bundle does not have.
    if let Some(mounts) = value["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "bind");
    }
    let text = format!("{value:#}\n");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(io_error("write a new file", path))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;

    #[test]
    fn an_example_is_a_bundle_and_replaces_nothing() {
        let root = tempfile::tempdir().unwrap();
        write(root.path()).unwrap();
        std::fs::create_dir(root.path().join("rootfs")).unwrap();
        let bundle = Bundle::load(root.path()).unwrap();
        assert!(bundle.has_terminal());
        assert_eq!(bundle.rootfs, root.path().canonicalize().unwrap().join("rootfs"));
        let again = write(root.path()).unwrap_err().words();
        assert!(again.contains("File exists"), "{again}");
    }
}
