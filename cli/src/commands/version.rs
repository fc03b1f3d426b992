//! `version`: what is installed.

use std::{path::PathBuf, process::ExitCode};

use caisson_shim::assets::{AssetError, Assets};
use clap::Args;
use serde_json::{Value, json};

use super::print_line;
use crate::{
    failure::CommandResult,
    format::{inert::inert, template::Format},
};

#[derive(Args, Clone, Debug)]
pub struct VersionArgs {
    /// Format output: "json" or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
}

pub(super) fn version(args: &VersionArgs) -> CommandResult {
    let versions = versions();
    match Format::parse(args.format.as_deref())? {
        Format::Json => print_line(&versions.to_string())?,
        Format::Lines(template) | Format::Table(template) => {
            print_line(&template.fill(&versions)?)?
        }
        Format::Default => print_line(&text(&versions))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The programs are built and installed together: one version holds for all of them.
pub(super) fn versions() -> Value {
    let assets = Assets::locate();
    let path = |find: fn(&Assets) -> Result<PathBuf, AssetError>| match assets.as_ref().map(find) {
        Ok(Ok(path)) => path.display().to_string(),
        _ => String::new(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let component = |path: String| json!({ "Version": version, "Path": path });
    let kernel = path(Assets::kernel);
    json!({
        "Client": { "Version": version, "Os": "linux", "Arch": std::env::consts::ARCH },
        "Shim": component(path(Assets::shim)),
        "Vmm": component(path(Assets::vmm)),
        "Agent": { "Protocol": caisson_agent_protocol::PROTOCOL_VERSION, "Path": path(Assets::initramfs) },
        "Kernel": { "Version": kernel_version(&kernel), "Path": kernel },
    })
}

/// `6.12.…` from the kernel's own banner; empty if it has none.
fn kernel_version(path: &str) -> String {
    const BANNER: &[u8] = b"Linux version ";
    let image = std::fs::read(path).unwrap_or_default();
    let start = image.windows(BANNER.len()).position(|window| window == BANNER);
    let Some(rest) = start.map(|start| &image[start + BANNER.len()..]) else {
        return String::new();
    };
    let version = rest.iter().take(64).take_while(|byte| byte.is_ascii_graphic());
    let version: String = version.map(|&byte| char::from(byte)).collect();
    // A format string is no banner.
    if version.starts_with(|c: char| c.is_ascii_digit()) { version } else { String::new() }
}

fn text(versions: &Value) -> String {
    let field = |component: &str, name: &str| match &versions[component][name] {
        Value::String(text) => inert(text).into_owned(),
        other => other.to_string(),
    };
    let or_missing = |text: String| if text.is_empty() { "not found".to_owned() } else { text };
    format!(
        "Client: Caisson\n Version:           {}\n OS/Arch:           {}/{}\n\n\
         Shim:\n Version:           {}\n Path:              {}\n\n\
         VMM:\n Version:           {}\n Path:              {}\n\n\
         Guest:\n Kernel:            {}\n Agent protocol:    {}",
        field("Client", "Version"),
        field("Client", "Os"),
        field("Client", "Arch"),
        field("Shim", "Version"),
        or_missing(field("Shim", "Path")),
        field("Vmm", "Version"),
        or_missing(field("Vmm", "Path")),
        or_missing(field("Kernel", "Version")),
        field("Agent", "Protocol"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_banner_is_found() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path in UTF-8");
        let write = |content: &[u8]| std::fs::write(path, content).expect("written");
        write(b"\0\0ELF..\0Linux version 6.12.1-caisson (gcc) #1\0");
        assert_eq!(kernel_version(path), "6.12.1-caisson");
        write(b"Linux version %s (%s)\n");
        assert_eq!(kernel_version(path), "");
        assert_eq!(kernel_version("/nonexistent"), "");
    }

    #[test]
    fn the_text_names_every_part() {
        let text = text(&versions());
        let protocol = format!("Agent protocol:    {}", caisson_agent_protocol::PROTOCOL_VERSION);
        for part in ["Client: Caisson", "Shim:", "VMM:", "Guest:", &protocol] {
            assert!(text.contains(part), "{text}");
        }
    }
}
