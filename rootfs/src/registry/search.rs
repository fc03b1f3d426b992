//! `search`: Docker's own search, or a registry's catalog.

use serde::Deserialize;
use ureq::http::{Method, Uri};

use super::client::RegistryClient;
use super::connection::Access;
use super::error::RegistryError;
use super::http::{Call, percent_encode};
use crate::limits::Limits;

/// Docker Hub's search is on another host than its registry.
const HUB_SEARCH: &str = "https://index.docker.io/";
const MAX_SEARCH_BYTES: u64 = 4 << 20;

/// A repository that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct SearchResult {
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub star_count: u64,
    #[serde(default)]
    pub is_official: bool,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    results: Vec<SearchResult>,
}

impl RegistryClient {
    /// Repositories of a registry that fit `term`, `limit` at most.
    pub fn search(
        &self,
        domain: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<SearchResult>, RegistryError> {
        let connection = self.connect(domain, domain)?;
        let access = Access { scope: "", what: "its search", action: "search" };
        let path = format!("/v1/search?q={}&n={limit}", percent_encode(term));
        let url = match domain {
            "docker.io" => {
                let base: Uri = HUB_SEARCH.parse().expect("a constant that parses");
                super::http::resolve(&base, &path).expect("a path on a known host")
            }
            _ => connection.url(&path)?,
        };
        let call = Call::new(Method::GET, url);
        match connection.document(call, access, MAX_SEARCH_BYTES) {
            Ok((_, data)) => {
                let page: Page = serde_json::from_slice(&data).map_err(|source| {
                    RegistryError::Json { host: domain.to_owned(), what: "list", source }
                })?;
                let mut results = page.results;
                results.truncate(limit);
                Ok(results)
            }
            Err(
                RegistryError::NotFound { .. }
                | RegistryError::Denied { .. }
                | RegistryError::Unauthorized { .. }
                | RegistryError::Status { .. },
            ) if domain != "docker.io" => self.search_catalog(domain, term, limit),
            Err(error) => Err(error),
        }
    }

    fn search_catalog(
        &self,
        domain: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<SearchResult>, RegistryError> {
        let connection = self.connect(domain, domain)?;
        let access = Access {
            scope: "registry:catalog:*",
            what: "its catalog",
            action: "list repositories",
        };
        let bytes = Limits::default().manifest_bytes;
        let names = connection.list("/v2/_catalog", "repositories", access, bytes);
        let names = names.map_err(|error| match error {
            RegistryError::NotFound { host, detail, .. }
            | RegistryError::Denied { host, detail, .. }
            | RegistryError::Status { host, detail, .. } => {
                RegistryError::NoSearch { host, detail }
            }
            other => other,
        })?;
        let found = names.into_iter().filter(|name| name.contains(term));
        let found = found.map(|name| SearchResult { name, ..SearchResult::default() });
        Ok(found.take(limit).collect())
    }
}
