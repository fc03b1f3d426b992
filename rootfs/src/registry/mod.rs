//! Registries: pull, push and search (OCI distribution-spec 1.1, Docker Registry HTTP API v2).
//!
//! ```text
//! client.rs      credentials, mirrors ─► one Connection per registry
//! connection.rs  base address, authority, requests with a scope
//!   auth.rs        challenges and tokens
//!   http.rs        one request: TLS, deadlines, redirects, retries
//! image.rs       tag ─► index ─► manifest ─► configuration
//! blob.rs        a blob as a reader that resumes
//! pull.rs push.rs search.rs
//! fetch.rs       the same without a store
//! ```
//!
//! A registry is foreign: what it sends is bounded before and while it is read, and believed
//! only as far as its digest goes. The transport is ureq with rustls, synchronous as this
//! crate is. `oci-client` was considered; it reads documents without a bound, does not resume,
//! and does not hear `Retry-After`.

mod auth;
mod blob;
mod client;
mod connection;
mod credentials;
mod error;
mod fetch;
mod http;
mod image;
mod options;
mod platform;
mod pull;
mod push;
mod search;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use self::client::{RegistryClient, registry_name};
pub use self::credentials::{CredentialError, CredentialStore, Credentials, Kept};
pub use self::error::{Detail, RegistryError};
pub use self::fetch::Fetched;
pub use self::options::{Patience, RegistryOptions};
pub use self::platform::WantedPlatform;
pub use self::pull::Pulled;
pub use self::push::{PushProgress, Pushed};
pub use self::search::SearchResult;
