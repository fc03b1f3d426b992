//! All registries that a command speaks to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::connection::{Access, Connection, pull_scope};
use super::credentials::{CredentialStore, Credentials};
use super::error::RegistryError;
use super::http::Http;
use super::options::RegistryOptions;
use crate::limits::Limits;
use crate::reference::Reference;

const HUB: &str = "docker.io";

/// Speaks to registries. Connections and tokens are kept while it lives.
pub struct RegistryClient {
    http: Arc<Http>,
    credentials: CredentialStore,
    /// Docker Hub's mirrors, by their hosts.
    mirrors: Vec<String>,
    connections: Mutex<HashMap<String, Arc<Connection>>>,
}

impl RegistryClient {
    pub fn new(
        mut options: RegistryOptions,
        credentials: CredentialStore,
    ) -> Result<RegistryClient, RegistryError> {
        let mut mirrors = Vec::new();
        for mirror in &options.mirrors {
            let host = registry_name(mirror)?;
            if mirror.starts_with("http://") {
                options.insecure.push(host.clone());
            }
            mirrors.push(host);
        }
        let http = Arc::new(Http::new(options));
        Ok(RegistryClient { http, credentials, mirrors, connections: Mutex::default() })
    }

    /// The registry of `reference`, with the credentials for its repository.
    pub(crate) fn registry_of(
        &self,
        reference: &Reference,
    ) -> Result<Arc<Connection>, RegistryError> {
        self.connect(reference.domain(), &reference.repository())
    }

    /// The registries to ask for an image, in order.
    pub(crate) fn sources(&self, reference: &Reference) -> Vec<String> {
        let mirrors: &[String] = if reference.domain() == HUB { &self.mirrors } else { &[] };
        mirrors.iter().cloned().chain([reference.domain().to_owned()]).collect()
    }

    pub(crate) fn connect(
        &self,
        domain: &str,
        repository: &str,
    ) -> Result<Arc<Connection>, RegistryError> {
        let credentials = self.credentials.find(repository)?;
        // Credentials may belong to a part of a registry.
        let key = match &credentials {
            Some(_) => repository.to_owned(),
            None => domain.to_owned(),
        };
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connections.get(&key) {
            return Ok(Arc::clone(connection));
        }
        let connection = Connection::open(Arc::clone(&self.http), domain, credentials)?;
        let connection = Arc::new(connection);
        connections.insert(key, Arc::clone(&connection));
        Ok(connection)
    }

    /// Asks a registry whether these credentials are good.
    pub fn verify(&self, domain: &str, credentials: &Credentials) -> Result<(), RegistryError> {
        let connection =
            Connection::open(Arc::clone(&self.http), domain, Some(credentials.clone()))?;
        connection.log_in().map_err(|error| match error {
            RegistryError::Unauthorized { host, detail, .. }
            | RegistryError::Denied { host, detail, .. } => {
                RegistryError::BadCredentials { host, detail }
            }
            other => other,
        })
    }

    /// All tags of a repository.
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        let connection = self.registry_of(reference)?;
        let (scope, what) = (pull_scope(reference.path()), reference.repository());
        let access = Access { scope: &scope, what: &what, action: "list tags" };
        let path = format!("/v2/{}/tags/list", reference.path());
        connection.list(&path, "tags", access, Limits::default().manifest_bytes)
    }
}

/// The host that a user names as a registry: `docker.io` for all of Docker Hub's addresses.
pub fn registry_name(text: &str) -> Result<String, RegistryError> {
    let invalid = || RegistryError::Host(text.chars().take(300).collect());
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    if matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        return Ok(HUB.to_owned());
    }
    // An image's name has the same grammar, if the host is one beyond doubt.
    let reference: Reference = format!("{host}/x").parse().map_err(|_| invalid())?;
    match reference.domain() == host || !host.contains(['.', ':']) && is_plain_name(host) {
        true => Ok(host.to_owned()),
        false => Err(invalid()),
    }
}

/// Such as the name of a container on a private network.
fn is_plain_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_in_many_ways() {
        for (text, host) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("http://localhost:5000/", "localhost:5000"),
            ("quay.io", "quay.io"),
            ("registry", "registry"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(registry_name(text).unwrap(), host, "{text}");
        }
        for bad in ["", "a b", "me@host.io", "../x", "host:port", "https://"] {
            assert!(registry_name(bad).is_err(), "{bad}");
        }
    }
}
