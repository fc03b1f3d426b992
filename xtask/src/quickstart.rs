//! From a clean clone to a container in a microVM.

use std::process::Command;

use crate::{
    binaries, images, packages,
    process::{output, run},
};

pub(crate) fn run_all() -> anyhow::Result<()> {
    packages::install_missing()?;
    binaries::build_all()?;
    let images = images::make_all()?;
    for image in &images {
        load(image)?;
    }
    show(&["run", "--rm", "debian:12", "uname", "-a"])?;
    show(&["run", "--rm", "busybox", "sh", "-c", "echo hello from a microVM; cat /proc/uptime"])?;
    eprintln!();
    eprintln!("It works. Go on with:");
    eprintln!("  export PATH={}:$PATH", binaries::stage_programs().display());
    eprintln!("  caisson run --rm -it debian:12");
    eprintln!("  caisson --help");
    Ok(())
}

/// Loads an image unless the store has it.
fn load(image: &images::TestImage) -> anyhow::Result<()> {
    let known = output(Command::new(binaries::caisson()).args(["images", "-q", image.name]))?;
    if !known.trim().is_empty() {
        return Ok(());
    }
    run(Command::new(binaries::caisson()).args(["load", "-i"]).arg(&image.path))
}

/// Runs a command as the user would type it, shown.
fn show(arguments: &[&str]) -> anyhow::Result<()> {
    eprintln!("\n$ caisson {}", shell_words(arguments));
    run(Command::new(binaries::caisson()).args(arguments))
}

fn shell_words(arguments: &[&str]) -> String {
    let quoted = arguments.iter().map(|word| match word.contains([' ', ';']) {
        true => format!("'{word}'"),
        false => (*word).to_owned(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
