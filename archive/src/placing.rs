//! Where a copied file or directory goes: the rules of `docker cp`.
//!
//! | destination | a file | a directory | a directory's contents (`dir/.`) |
//! |---|---|---|---|
//! | a directory | into it | into it | into it |
//! | a file | replaces it | refused | refused |
//! | not there | gets that name | gets that name | gets that name |
//! | not there, ends with `/` | refused | gets that name | gets that name |

use thiserror::Error;

use crate::{
    tar::Entry,
    unpack::{UnpackError, clean},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Other,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PlacingError {
    #[error("cannot copy directory")]
    DirectoryOverFile,
    #[error("no such directory")]
    NoSuchDirectory,
}

/// The directory to unpack into, and what becomes of the first name of each entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placing {
    /// Into the destination, under the names that the entries have.
    Into,
    /// Into the destination's parent, under the destination's name.
    As,
}

/// Decides for a source of `kind` and what is at the destination, whose path is `path`.
pub fn place(
    source: Kind,
    destination: Option<Kind>,
    path: &[u8],
) -> Result<Placing, PlacingError> {
    match (destination, source) {
        (Some(Kind::Directory), _) => Ok(Placing::Into),
        (Some(Kind::Other), Kind::Directory) => Err(PlacingError::DirectoryOverFile),
        (Some(Kind::Other), Kind::Other) if asserts_directory(path) => {
            Err(PlacingError::NoSuchDirectory)
        }
        (None, Kind::Other) if asserts_directory(path) => Err(PlacingError::NoSuchDirectory),
        (Some(Kind::Other) | None, _) => Ok(Placing::As),
    }
}

/// Whether a path can only name a directory.
pub fn asserts_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || asks_for_contents(path)
}

/// Whether a path names a directory's contents rather than the directory.
pub fn asks_for_contents(path: &[u8]) -> bool {
    path == b"." || path.ends_with(b"/.")
}

/// The directory and the last name of a path; no name for the root.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let path = &path[..end];
    match path.iter().rposition(|&byte| byte == b'/') {
        None => (b"", path),
        Some(0) => (b"/", &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
    }
}

/// Gives entries their new first name. The archive must be one file or directory, `base`; an
/// empty one means that the entries are a directory's contents.
#[derive(Debug)]
pub struct Rebase<'a> {
    pub base: &'a [u8],
    /// What `base` becomes; empty to leave it out.
    pub becomes: &'a [u8],
}

impl Rebase<'_> {
    /// The place of `entry` below the directory that is unpacked into.
    pub fn apply(&self, entry: &Entry) -> Result<Vec<u8>, UnpackError> {
        let mut names = clean(&entry.path)?;
        if !self.base.is_empty() {
            match names.first() {
                Some(first) if *first == self.base => drop(names.remove(0)),
                _ => {
                    let reason = "it is not part of what was asked for";
                    return Err(UnpackError::Entry { path: entry.path.clone(), reason });
                }
            }
        }
        if !self.becomes.is_empty() {
            names.insert(0, self.becomes);
        }
        Ok(names.join(&b'/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_docker() {
        use Kind::{Directory, Other};
        let cases = [
            ((Other, Some(Directory), "d"), Ok(Placing::Into)),
            ((Directory, Some(Directory), "d/"), Ok(Placing::Into)),
            ((Directory, Some(Other), "f"), Err(PlacingError::DirectoryOverFile)),
            ((Other, Some(Other), "f"), Ok(Placing::As)),
            ((Other, Some(Other), "f/"), Err(PlacingError::NoSuchDirectory)),
            ((Directory, None, "n"), Ok(Placing::As)),
            ((Directory, None, "n/"), Ok(Placing::As)),
            ((Other, None, "n"), Ok(Placing::As)),
            ((Other, None, "n/"), Err(PlacingError::NoSuchDirectory)),
            ((Other, None, "n/."), Err(PlacingError::NoSuchDirectory)),
        ];
        for ((source, destination, path), expected) in cases {
            assert_eq!(place(source, destination, path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn paths_are_split_before_their_last_name() {
        let cases = [
            ("/a/b", "/a", "b"),
            ("/a/b//", "/a", "b"),
            ("a", "", "a"),
            ("/a", "/", "a"),
            ("/", "", ""),
            ("a/.", "a", "."),
        ];
        for (path, directory, name) in cases {
            let expected = (directory.as_bytes(), name.as_bytes());
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
    }
}
