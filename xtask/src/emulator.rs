//! A QEMU that does not let the machine's kernel hang.
//!
//! Up to 8.0, QEMU translates guest code without the lock of its page. A write by another
//! CPU in the meantime leaves the old code's translation in use for good. Linux changes its
//! own code by a breakpoint (`text_poke_bp`), and does so each time the first microVM starts
//! or the last one ends; a translation of that breakpoint that stays hangs the whole machine.

use std::{
    fmt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context;

use crate::{
    packages::apt,
    process::{output, run},
    workspace,
};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// The first version that translates a page under its lock.
const NEEDED: Version = Version { major: 8, minor: 1 };

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Replaces an old QEMU by the one of Debian's backports. Where that cannot be had, says
/// what it means and leaves the old one, with which most runs go well.
pub(crate) fn replace_old() -> anyhow::Result<()> {
    let found = installed()?;
    if found >= NEEDED {
        return Ok(());
    }
    eprintln!("QEMU {found} can hang when the machine's kernel changes its own code;");
    eprintln!("installing {NEEDED} or later from Debian's backports");
    if let Err(error) = install_from_backports() {
        eprintln!("warning: {error:#}");
        eprintln!("warning: the machine runs with QEMU {found}, and may hang");
    }
    Ok(())
}

fn installed() -> anyhow::Result<Version> {
    let printed = output(Command::new(PROGRAM).arg("--version"))?;
    parse(&printed).with_context(|| format!("{PROGRAM} --version printed {printed:?}"))
}

/// `QEMU emulator version 7.2.22 (Debian …)`
fn parse(printed: &str) -> Option<Version> {
    let mut numbers = printed.split_whitespace().nth(3)?.split('.');
    let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(Version { major, minor })
}

/// The source of packages is named for these two calls only; the host's configuration of
/// apt stays as it is.
fn install_from_backports() -> anyhow::Result<()> {
    let release = release().context("find where this host's Debian packages come from")?;
    let list = write_sources(&release)?;
    let sources = format!("Dir::Etc::SourceList={}", list.display());
    run(&mut apt(&["-o", &sources, "update"])).context("update the package lists")?;
    let suite = release.backports();
    let arguments =
        ["-o", &sources, "install", "-y", "--no-install-recommends", "-t", &suite, PACKAGE];
    run(&mut apt(&arguments)).with_context(|| format!("install {PACKAGE} from {suite}"))
}

/// apt's own list of sources, and the backports.
fn write_sources(release: &Release) -> anyhow::Result<PathBuf> {
    let mut list = std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let signed = if PathBuf::from(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    list.push_str(&format!("\ndeb {signed}{} {} main\n", release.uri, release.backports()));
    let path = workspace::target().join("apt-backports.list");
    std::fs::create_dir_all(workspace::target())
        .and_then(|()| std::fs::write(&path, list))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// A Debian release and the mirror that this host takes it from.
#[derive(Debug, PartialEq, Eq)]
struct Release {
    codename: String,
    uri: String,
}

impl Release {
    fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }
}

fn release() -> anyhow::Result<Release> {
    let format = "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)";
    let mut list = Command::new("apt-get");
    let targets = output(list.args(["indextargets", "--format", format]).stdin(Stdio::null()))?;
    release_among(&targets).context("no source of packages is Debian's own release")
}

/// The first target of Debian's release proper: that of updates has a dash in its name.
fn release_among(targets: &str) -> Option<Release> {
    targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (origin, component) = (fields.next()?, fields.next()?);
        let (codename, uri) = (fields.next()?, fields.next()?);
        (origin == "Debian" && component == "main" && !codename.contains('-'))
            .then(|| Release { codename: codename.to_owned(), uri: uri.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_by_number() {
        let old = parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n…");
        let new = parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n").unwrap();
        assert_eq!(old, Some(Version { major: 7, minor: 2 }));
        assert!(old.unwrap() < NEEDED && NEEDED < new);
        assert_eq!(parse("QEMU emulator"), None);
        assert_eq!(parse("QEMU emulator version new"), None);
    }

    #[test]
    fn the_release_is_told_from_its_updates_and_from_others() {
        let targets = "Google|main|cloud|https://a.example/\n\
                       Debian|main|bookworm-updates|http://b.example/debian/\n\
                       Debian|contrib|bookworm|http://c.example/debian/\n\
                       Debian|main|bookworm|http://d.example/debian/\n";
        let release = release_among(targets).unwrap();
        assert_eq!(release.uri, "http://d.example/debian/");
        assert_eq!(release.backports(), "bookworm-backports");
        assert_eq!(release_among("Ubuntu|main|jammy|http://e.example/\n\n|"), None);
    }
}
