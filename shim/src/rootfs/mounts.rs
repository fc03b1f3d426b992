//! What an engine's mounts say: which directories, in which order, and which of them
//! never change.

use std::path::{Path, PathBuf};

use super::{RootfsError, snapshots::Tree};
use crate::client::RootfsMount;

/// The directories of `mounts`, bottom first. Several mounts stack.
pub(super) fn trees(mounts: &[RootfsMount]) -> Result<Vec<Tree>, RootfsError> {
    let mut trees = Vec::new();
    for mount in mounts {
        match mount.fstype.as_str() {
            "overlay" => trees.extend(overlay(&mount.options)?),
            "bind" | "rbind" => trees.push(bind(mount)),
            other => {
                return Err(RootfsError::UnknownType {
                    fstype: other.to_owned(),
                    source_path: mount.source.clone(),
                });
            }
        }
    }
    Ok(trees)
}

/// `lowerdir` names committed snapshots, the top one first; `upperdir` is active.
fn overlay(options: &[String]) -> Result<Vec<Tree>, RootfsError> {
    let value =
        |name: &str| options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let lower = value("lowerdir").ok_or(RootfsError::NoLowerDir)?;
    let mut trees: Vec<_> = split_escaped(lower).into_iter().map(Tree::Committed).collect();
    trees.reverse();
    trees.extend(value("upperdir").map(|upper| Tree::Active(unescaped(upper))));
    Ok(trees)
}

/// A snapshot without parents, or another engine's directory. Only what is handed over
/// read-only is known not to change.
fn bind(mount: &RootfsMount) -> Tree {
    let source = PathBuf::from(&mount.source);
    match mount.options.iter().any(|option| option == "ro") {
        true => Tree::Committed(source),
        false => Tree::Active(source),
    }
}

/// The parts between colons; a backslash takes a colon's meaning away.
fn split_escaped(text: &str) -> Vec<PathBuf> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => part.extend(characters.next()),
            ':' => parts.push(std::mem::take(&mut part)),
            other => part.push(other),
        }
    }
    parts.push(part);
    parts.into_iter().filter(|part| !part.is_empty()).map(PathBuf::from).collect()
}

fn unescaped(text: &str) -> PathBuf {
    split_escaped(&text.replace(':', "\\:")).into_iter().next().unwrap_or_default()
}

/// The directories behind an overlay that is mounted at `directory`, if one is: an engine
/// that mounts the root filesystem itself has the same snapshots beneath.
pub(super) fn mounted_overlay(directory: &Path, mountinfo: &str) -> Option<Vec<Tree>> {
    let directory = directory.to_str()?;
    // proc_pid_mountinfo(5): the last mount on a place is the one that is seen.
    let line = mountinfo
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4).is_some_and(|place| unoctal(place) == directory))?;
    let (_, filesystem) = line.split_once(" - ")?;
    let mut fields = filesystem.split(' ');
    if fields.next()? != "overlay" {
        return None;
    }
    let options: Vec<String> = fields.nth(1)?.split(',').map(unoctal).collect();
    let trees = overlay(&options).ok()?;
    // Relative paths were relative to where the engine stood.
    let absolute =
        trees.iter().all(|(Tree::Committed(path) | Tree::Active(path))| path.is_absolute());
    absolute.then_some(trees)
}

/// The kernel writes space, tab, line feed, backslash and more as `\ooo`.
fn unoctal(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str, source: &str, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fstype: fstype.into(),
            source: source.into(),
            options: options.iter().map(|&option| option.into()).collect(),
        }
    }

    fn committed(path: &str) -> Tree {
        Tree::Committed(path.into())
    }

    #[test]
    fn an_overlay_lists_its_lower_directories_from_the_top() {
        let options =
            ["index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs"];
        let expected = [committed("/s/1/fs"), committed("/s/2/fs"), Tree::Active("/s/9/fs".into())];
        assert_eq!(trees(&[mount("overlay", "overlay", &options)]).unwrap(), expected);
        let view = [mount("overlay", "overlay", &["lowerdir=/a\\:b:/c"])];
        assert_eq!(trees(&view).unwrap(), [committed("/c"), committed("/a:b")]);
        let none = trees(&[mount("overlay", "overlay", &[])]);
        assert!(matches!(none, Err(RootfsError::NoLowerDir)));
    }

    #[test]
    fn only_a_read_only_bind_is_committed() {
        let mounts = [mount("bind", "/a", &["rbind", "ro"]), mount("bind", "/b", &["rbind", "rw"])];
        assert_eq!(trees(&mounts).unwrap(), [committed("/a"), Tree::Active("/b".into())]);
        assert!(trees(&[mount("btrfs", "/dev/x", &[])]).is_err());
    }

    #[test]
    fn a_mounted_overlay_is_seen_through() {
        let line = |place: &str, kind: &str, options: &str| {
            format!("36 35 98:0 / {place} rw,noatime shared:1 - {kind} src {options}\n")
        };
        let mountinfo = [
            line("/merged\\040x", "overlay", "rw,lowerdir=/l/2:/l/1,upperdir=/u\\040x,workdir=/w"),
            line("/other", "ext4", "rw"),
            line("/short", "overlay", "rw,lowerdir=l/2:l/1,upperdir=x,workdir=w"),
        ]
        .concat();
        let seen = mounted_overlay(Path::new("/merged x"), &mountinfo).unwrap();
        assert_eq!(seen, [committed("/l/1"), committed("/l/2"), Tree::Active("/u x".into())]);
        for other in ["/other", "/short", "/none"] {
            assert_eq!(mounted_overlay(Path::new(other), &mountinfo), None);
        }
    }
}
