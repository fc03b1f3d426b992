//! Image names as Docker writes and normalises them (distribution/reference grammar).
//!
//! `debian:12` means `docker.io/library/debian:12`; listings show the familiar form again.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL_REPOSITORY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Of `domain/path`, as the registries enforce it.
const MAX_NAME_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;

/// `domain/path[:tag][@digest]`, normalised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReferenceError {
    #[error("an image name is empty")]
    Empty,
    #[error("image name \"{}\" is invalid: {reason}", .name.escape_debug())]
    Invalid { name: String, reason: &'static str },
    #[error("image name \"{}\" has an invalid digest", .name.escape_debug())]
    Digest { name: String, source: DigestError },
}

impl Reference {
    /// The registry's host name, `docker.io` by default.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry, such as `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `debian`, `me/app`, `registry:5000/app`; in full
    /// where the short form would mean something else, as `docker.io/a.b/app`.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        let short = match self.path.strip_prefix(OFFICIAL_REPOSITORY) {
            Some(official) if !official.contains('/') => official,
            _ => &self.path,
        };
        let (domain, path) = split_domain(short);
        match domain == self.domain && path == self.path && !is_hex_id(short) {
            true => short.to_owned(),
            false => self.repository(),
        }
    }

    /// The whole name as people write it: `debian:12`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    /// With `latest` where neither a tag nor a digest is given.
    pub fn with_default_tag(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository with this digest instead of a tag.
    pub(crate) fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

/// The canonical form: `docker.io/library/debian:12`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let shown = || text.chars().take(300).collect::<String>();
        let invalid = |reason| ReferenceError::Invalid { name: shown(), reason };
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { name: shown(), source })?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash begins a tag; one before it is a registry's port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            None => (rest, None),
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("a tag is up to 128 of [A-Za-z0-9_.-], not first '.' or '-'"));
        }
        if digest.is_none() && tag.is_none() && is_hex_id(name) {
            return Err(invalid("64 hex digits are an image id, not a name"));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(invalid("the registry is not a host name with an optional port"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(invalid(
                "a repository is lower-case letters and digits, joined by '.', '_', '__' or dashes",
            ));
        }
        if domain.len() + 1 + path.len() > MAX_NAME_LEN {
            return Err(invalid("a repository has at most 255 characters"));
        }
        Ok(Reference { domain, path, tag: tag.map(str::to_owned), digest })
    }
}

/// The first component is a domain if it cannot be a repository's first component.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL_REPOSITORY}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG_LEN).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_hex_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Host names, IPv4 addresses, and IPv6 addresses in brackets, with an optional port.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let hex = address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
                if !hex || address.is_empty() {
                    return false;
                }
                ("v6", port)
            }
            None => return false,
        },
        None => domain.find(':').map_or((domain, ""), |colon| domain.split_at(colon)),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        });
    port_ok && host.split('.').all(label)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(|&b| alphanumeric(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (text, canonical, familiar) in [
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("debian", "docker.io/library/debian", "debian"),
            ("docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
            ("index.docker.io/debian", "docker.io/library/debian", "debian"),
            ("me/app:v1", "docker.io/me/app:v1", "me/app:v1"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"),
            ("ghcr.io/a/b/c", "ghcr.io/a/b/c", "ghcr.io/a/b/c"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("a--b__c/d.e", "docker.io/a--b__c/d.e", "a--b__c/d.e"),
            ("library/debian", "docker.io/library/debian", "debian"),
            ("docker.io/x-y.z/app", "docker.io/x-y.z/app", "docker.io/x-y.z/app"),
            ("docker.io/localhost/app:1", "docker.io/localhost/app:1", "docker.io/localhost/app:1"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(reference.familiar(), familiar);
        }
        let tagged = "debian".parse::<Reference>().unwrap().with_default_tag();
        assert_eq!(tagged.tag(), Some("latest"));
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = format!("{}:x", "a".repeat(256));
        let id = "a".repeat(64);
        for bad in [
            "",
            ":12",
            "Debian",
            "debian:",
            "debian:-x",
            "debian:a b",
            "a//b",
            "/a",
            "a/",
            "../x",
            "a___b",
            "a..b",
            "-a",
            "debian\n",
            "host.:x/a",
            "h_st:80/a",
            "a@sha256:1",
            "\u{1b}[31mred",
            &long,
            &id,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_survives_a_round_trip(text in "[a-zA-Z0-9._:/@-]{1,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
