//! The OCI bundle of a container: `config.json`, generated files, FIFOs. It exists while
//! the container runs.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use caisson_failpoints::{hit, steps};
use io::Write;
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::network;
use crate::{config::ContainerConfig, spec};

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("write {path} as JSON")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
}

/// Makes the bundle, whose directory must not exist.
pub(super) fn write(
    config: &ContainerConfig,
    context: &spec::Context<'_>,
) -> Result<(), BundleError> {
    let directory = context.bundle;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io_error("create", directory))?;
    let hostname = config.hostname_or(context.id);
    write_file(&directory.join("hostname"), format!("{hostname}\n").as_bytes())?;
    write_file(&directory.join("hosts"), hosts(hostname).as_bytes())?;
    write_file(&directory.join("resolv.conf"), network::resolv_conf(&config.network).as_bytes())?;
    let spec = spec::build(config, context)?;
    let path = directory.join("config.json");
    let text = serde_json::to_vec(&spec)
        .map_err(|source| BundleError::Json { path: path.clone(), source })?;
    hit(&steps::CLI_START_SPEC).map_err(io_error("write", &path))?;
    write_file(&path, &text)
}

/// Makes a FIFO for this user alone.
pub fn make_fifo(path: &Path) -> Result<(), BundleError> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| io_error("make the FIFO", path)(errno.into()))
}

/// Removes the bundle; one that is not there is fine.
pub(super) fn remove(directory: &Path) -> Result<(), BundleError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

fn hosts(hostname: &str) -> String {
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { short.to_owned() } else { format!("{hostname} {short}") };
    format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{names}\n"
    )
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BundleError> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(io_error("write", path))
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BundleError + use<'a> {
    move |source| BundleError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_written_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("bundles/x");
        let config = ContainerConfig {
            entrypoint: vec!["sh".into()],
            working_dir: "/".into(),
            hostname: "box.example".into(),
            ..ContainerConfig::default()
        };
        let context = spec::Context {
            id: "0123456789abcdef",
            bundle: &directory,
            volumes: Path::new("/v"),
            first_start: true,
            console: None,
        };
        write(&config, &context).unwrap();
        oci_spec::runtime::Spec::load(directory.join("config.json")).unwrap();
        let hosts = fs::read_to_string(directory.join("hosts")).unwrap();
        assert!(hosts.contains("127.0.1.1\tbox.example box\n"), "{hosts}");
        assert_eq!(fs::read_to_string(directory.join("hostname")).unwrap(), "box.example\n");
        make_fifo(&directory.join("stdin")).unwrap();
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        assert!(!directory.exists());
    }
}
