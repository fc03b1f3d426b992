//! What can go wrong between here and a registry.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::credentials::CredentialError;
use crate::digest::{Digest, DigestError};
use crate::load::LoadError;
use crate::manifest::DocumentError;
use crate::store::StoreError;

#[derive(Debug, Error)]
pub enum RegistryError {
    #[error("cannot reach {host}: {why}")]
    Unreachable { host: String, why: &'static str, source: io::Error },

    #[error(
        "{host} does not prove who it is; its certificate authority can be named with --tls-ca or \
         put into {}, and --tls-verify=false does without",
        .certs_dir.display()
    )]
    Tls { host: String, certs_dir: PathBuf, source: io::Error },

    #[error("the connection to {host} broke off; {attempts} tries brought nothing more")]
    Broken { host: String, attempts: u32, source: io::Error },

    #[error("{host} asks to wait {} s before the next request; try again then", .pause.as_secs())]
    Busy { host: String, pause: Duration },

    #[error(
        "{host} has too many requests to answer this one; try again later, or log in with `caisson login{login}`{detail}"
    )]
    TooManyRequests { host: String, login: String, detail: Detail },

    #[error("{host} refuses access to {what}; log in with `caisson login{login}`{detail}")]
    Unauthorized { host: String, what: String, login: String, detail: Detail },

    #[error("{host} refuses access: the user name or the password is wrong{detail}")]
    BadCredentials { host: String, detail: Detail },

    #[error(
        "access to {what} is denied: it does not exist on {host}, or needs `caisson login{login}` \
         by someone who may{detail}"
    )]
    Denied { host: String, what: String, login: String, detail: Detail },

    #[error("{what} is not found on {host}{detail}")]
    NotFound { host: String, what: String, detail: Detail },

    #[error("{host} answered {status} when asked to {action}{detail}")]
    Status { host: String, action: String, status: u16, detail: Detail },

    #[error("{host} is no registry: it does not answer as one at /v2/")]
    NotARegistry { host: String },

    #[error("{host} redirects to \"{}\", {why}", .to.escape_debug())]
    Redirect { host: String, to: String, why: &'static str },

    #[error("{host} asks for a login of a kind that is not known: \"{}\"", .challenge.escape_debug())]
    Challenge { host: String, challenge: String },

    #[error("{host} sends its clients for a token to \"{}\", which is no safe address", .realm.escape_debug())]
    Realm { host: String, realm: String },

    #[error("{host} sent more than {limit} bytes for {what}, the limit")]
    TooLarge { host: String, what: String, limit: u64 },

    #[error("{host} sent a {what} that cannot be understood")]
    Document { host: String, what: String, source: DocumentError },

    #[error("{host} sent a {what} that cannot be understood")]
    Json { host: String, what: &'static str, source: serde_json::Error },

    #[error("{host} sent a {what} with digest {actual} instead of {expected}")]
    Mismatch { host: String, what: String, expected: Digest, actual: Digest },

    #[error("{host} sent {actual} bytes of {what} instead of {expected}")]
    Size { host: String, what: String, expected: u64, actual: u64 },

    #[error("{host} named an invalid digest")]
    Digest { host: String, source: DigestError },

    #[error("no image for {wanted}; there are {}", .found.join(", "))]
    Platform { wanted: String, found: Vec<String> },

    #[error("\"{}\" is no platform; expected linux/amd64 or the like", .0.escape_debug())]
    PlatformName(String),

    #[error("{what} is no container image but \"{}\"", .kind.escape_debug())]
    NotAnImage { what: String, kind: String },

    #[error("too many {what}: more than {limit}, the limit")]
    TooMany { what: &'static str, limit: usize },

    #[error(
        "{host} does not offer a search: it has neither Docker's search nor a catalog for you{detail}"
    )]
    NoSearch { host: String, detail: Detail },

    #[error(
        "layer {digest} of {image} is not in the store as it came; pull or load the image again"
    )]
    NoBlob { digest: Digest, image: String },

    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },

    #[error("{} holds no certificate in PEM form", .path.display())]
    NoCertificate { path: PathBuf },

    #[error("\"{}\" is not the name of a registry", .0.escape_debug())]
    Host(String),

    #[error("{0} names a digest; an image is pushed under a tag")]
    PushDigest(String),

    #[error("interrupted")]
    Cancelled,

    #[error(transparent)]
    Credentials(#[from] CredentialError),

    #[error(transparent)]
    Load(#[from] LoadError),

    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the registry itself says, shown inert after a colon.
#[derive(Clone, Debug, Default)]
pub struct Detail(pub(crate) String);

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0.escape_debug()) }
    }
}

/// What follows `caisson login` in a message: nothing for Docker Hub.
pub(crate) fn login_argument(domain: &str) -> String {
    if domain == "docker.io" { String::new() } else { format!(" {domain}") }
}
