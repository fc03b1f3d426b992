//! `caisson-fs --config-fd N`.

use std::{fs::File, os::fd::FromRawFd};

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [option, number] = arguments.as_slice() else {
        bail!("usage: caisson-fs --config-fd N; the shim starts it");
    };
    if option != "--config-fd" {
        bail!("unknown option {option:?}; usage: caisson-fs --config-fd N");
    }
    let number: i32 =
        number.parse().with_context(|| format!("{number:?} is no file descriptor"))?;
    if number < 3 {
        bail!("the config is expected beyond the standard streams, not at {number}");
    }
    // SAFETY: the process has just begun, and owns what it inherited.
    let file = unsafe { File::from_raw_fd(number) };
    let config = serde_json::from_reader(file).context("read the config")?;
    // SAFETY: as above.
    Ok(unsafe { caisson_fs::run(&config) }?)
}
