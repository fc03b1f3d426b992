//! One registry: where it is, how one proves oneself to it, and its requests.

use std::sync::Arc;

use ureq::http::header::{ACCEPT, AUTHORIZATION};
use ureq::http::{Method, StatusCode, Uri};

use super::auth::{Authority, Challenge};
use super::credentials::Credentials;
use super::error::{RegistryError, login_argument};
use super::http::{Answer, Call, Http};
use super::options::is_loopback;
use crate::digest::{Digest, Hasher};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// Docker Hub's registry, whose images are named by another host.
const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";
const MAX_PAGES: usize = 1000;
const MAX_LISTED: usize = 100_000;

pub(crate) struct Connection {
    pub(crate) http: Arc<Http>,
    /// As images name it.
    pub(crate) domain: String,
    base: Uri,
    authority: Authority,
}

/// Something that is done to a repository, for its scope and for messages.
#[derive(Clone, Copy)]
pub(crate) struct Access<'a> {
    pub(crate) scope: &'a str,
    pub(crate) what: &'a str,
    pub(crate) action: &'a str,
}

impl Connection {
    /// Finds the registry. Plain HTTP is only tried where it is known to be meant: on this
    /// host and where the user says so.
    pub(crate) fn open(
        http: Arc<Http>,
        domain: &str,
        credentials: Option<Credentials>,
    ) -> Result<Connection, RegistryError> {
        let host = if domain == HUB { HUB_HOST } else { domain };
        let address = |scheme: &str| {
            format!("{scheme}://{host}/v2/")
                .parse::<Uri>()
                .map_err(|_| RegistryError::Host(domain.to_owned()))
        };
        let may_be_plain = is_loopback(host) || http.options.is_insecure(host);
        let secure = address("https")?;
        let (base, answer) = if may_be_plain {
            let encrypted = match ping(&http, &secure, true) {
                Err(error @ RegistryError::Unreachable { .. }) => return Err(error),
                other => other,
            };
            match encrypted {
                Ok(answer) => (secure, answer),
                Err(of_secure) => {
                    let plain = address("http")?;
                    match ping(&http, &plain, false) {
                        Ok(answer) => (plain, answer),
                        Err(RegistryError::NotARegistry { .. })
                            if matches!(of_secure, RegistryError::Tls { .. }) =>
                        {
                            return Err(of_secure);
                        }
                        Err(of_plain) => return Err(of_plain),
                    }
                }
            }
        } else {
            let answer = ping(&http, &secure, false)?;
            (secure, answer)
        };
        let challenge = Challenge::of(&answer.headers);
        let authority = Authority::new(domain, credentials, challenge);
        Ok(Connection { http, domain: domain.to_owned(), base, authority })
    }

    /// Whether the credentials are good.
    pub(crate) fn log_in(&self) -> Result<(), RegistryError> {
        let access = Access { scope: "", what: "it", action: "log in" };
        let call = Call::new(Method::GET, self.base.clone());
        self.judge(self.call(call, access)?, access).map(drop)
    }

    /// `/v2/<path>`; `path` is made of checked names.
    pub(crate) fn url(&self, path: &str) -> Result<Uri, RegistryError> {
        super::http::resolve(&self.base, path)
            .ok_or_else(|| RegistryError::Host(self.domain.clone()))
    }

    /// Sends `call` with the authority for its scope; what was refused is tried once more
    /// with a new token.
    pub(crate) fn call(&self, call: Call<'_>, access: Access<'_>) -> Result<Answer, RegistryError> {
        self.authorized(call, access, |http, call| http.send(call))
    }

    /// As [`Connection::call`], without tries of its own.
    pub(crate) fn call_once(
        &self,
        call: Call<'_>,
        access: Access<'_>,
    ) -> Result<Answer, RegistryError> {
        self.authorized(call, access, Http::follow)
    }

    fn authorized(
        &self,
        mut call: Call<'_>,
        access: Access<'_>,
        send: impl Fn(&Http, &Call<'_>) -> Result<Answer, RegistryError>,
    ) -> Result<Answer, RegistryError> {
        // An upload's address may be on another host, which gets no credentials.
        let is_ours = call.url.authority() == self.base.authority();
        for last in [false, true] {
            if is_ours {
                match self.authority.header(&self.http, &self.base, access.scope)? {
                    Some(value) => drop(call.headers.insert(AUTHORIZATION, value)),
                    None => drop(call.headers.remove(AUTHORIZATION)),
                }
            }
            let answer = send(&self.http, &call)?;
            if last || !is_ours || answer.status != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            self.authority.challenged(access.scope, &answer);
        }
        unreachable!("the last turn returns")
    }

    /// An error for an answer that is none of success.
    pub(crate) fn judge(
        &self,
        answer: Answer,
        access: Access<'_>,
    ) -> Result<Answer, RegistryError> {
        let status = answer.status.as_u16();
        if answer.status.is_success() {
            return Ok(answer);
        }
        let (host, what) = (self.domain.clone(), access.what.to_owned());
        let login = login_argument(&self.domain);
        let detail = answer.detail();
        Err(match status {
            401 => RegistryError::Unauthorized { host, what, login, detail },
            403 => RegistryError::Denied { host, what, login, detail },
            404 => RegistryError::NotFound { host, what, detail },
            429 => RegistryError::TooManyRequests { host, login, detail },
            _ => {
                let action = access.action.to_owned();
                RegistryError::Status { host, action, status, detail }
            }
        })
    }

    /// A small document, whole.
    pub(crate) fn document(
        &self,
        call: Call<'_>,
        access: Access<'_>,
        limit: u64,
    ) -> Result<(ureq::http::HeaderMap, Vec<u8>), RegistryError> {
        let mut call = call;
        call.whole = Some(self.http.options.patience.document);
        let again =
            Call { headers: call.headers.clone(), ..Call::new(Method::GET, call.url.clone()) };
        let first = self.judge(self.call(call, access)?, access)?;
        // By now the authority is known to be good, so the tries need not renew it.
        let mut again = Call { whole: Some(self.http.options.patience.document), ..again };
        if let Some(value) = self.authority.header(&self.http, &self.base, access.scope)? {
            again.headers.insert(AUTHORIZATION, value);
        }
        let judge = |answer| self.judge(answer, access);
        self.http.document(&again, access.what, limit, Some(first), judge)
    }

    /// A manifest or an index by tag or digest: its bytes, as what it was declared, and its
    /// digest, which has been checked.
    pub(crate) fn manifest(
        &self,
        repository: &str,
        reference: &str,
        limit: u64,
    ) -> Result<FetchedManifest, RegistryError> {
        let scope = pull_scope(repository);
        let separator = if reference.contains(':') { '@' } else { ':' };
        let what = format!("{}/{repository}{separator}{reference}", self.domain);
        let access = Access { scope: &scope, what: &what, action: "send a manifest" };
        let url = self.url(&format!("/v2/{repository}/manifests/{reference}"))?;
        let mut call = Call::new(Method::GET, url);
        for kind in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST] {
            call = call.header(ACCEPT, kind);
        }
        let (headers, data) = self.document(call, access, limit)?;
        let expected = match reference.parse::<Digest>() {
            Ok(digest) => Some(digest),
            Err(_) => match headers.get("docker-content-digest").and_then(|v| v.to_str().ok()) {
                Some(text) => Some(text.parse().map_err(|source| RegistryError::Digest {
                    host: self.domain.clone(),
                    source,
                })?),
                None => None,
            },
        };
        let algorithm = expected.as_ref().map_or(crate::Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&data);
        let digest = hasher.finish();
        if let Some(expected) = expected
            && expected != digest
        {
            let (host, what) = (self.domain.clone(), "manifest".to_owned());
            return Err(RegistryError::Mismatch { host, what, expected, actual: digest });
        }
        let declared = headers.get("content-type").and_then(|value| value.to_str().ok());
        let declared = declared.and_then(|text| text.split(';').next()).unwrap_or_default();
        Ok(FetchedManifest { data, declared: declared.trim().to_owned(), digest })
    }

    /// Names listed over pages (`tags/list`, `_catalog`), bounded.
    pub(crate) fn list(
        &self,
        path: &str,
        field: &'static str,
        access: Access<'_>,
        limit: u64,
    ) -> Result<Vec<String>, RegistryError> {
        let mut url = self.url(path)?;
        let mut names: Vec<String> = Vec::new();
        for _ in 0..MAX_PAGES {
            let (headers, data) =
                self.document(Call::new(Method::GET, url.clone()), access, limit)?;
            let page: serde_json::Value = serde_json::from_slice(&data).map_err(|source| {
                RegistryError::Json { host: self.domain.clone(), what: "list", source }
            })?;
            let page = page.get(field).and_then(serde_json::Value::as_array);
            names.extend(page.into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)));
            if names.len() > MAX_LISTED {
                return Err(RegistryError::TooMany { what: field, limit: MAX_LISTED });
            }
            let link = headers.get("link").and_then(|value| value.to_str().ok());
            let next = link.and_then(next_page).and_then(|next| super::http::resolve(&url, next));
            match next {
                Some(next) if next.authority() == self.base.authority() && next != url => {
                    url = next
                }
                _ => return Ok(names),
            }
        }
        Err(RegistryError::TooMany { what: "pages", limit: MAX_PAGES })
    }
}

pub(crate) struct FetchedManifest {
    pub(crate) data: Vec<u8>,
    /// The type of content that the answer's head names.
    pub(crate) declared: String,
    pub(crate) digest: Digest,
}

pub(crate) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// `<address>; rel="next"`
fn next_page(link: &str) -> Option<&str> {
    let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    parameters.contains("next").then_some(address)
}

fn ping(http: &Http, url: &Uri, once: bool) -> Result<Answer, RegistryError> {
    let call = Call::new(Method::GET, url.clone());
    let answer = if once { http.follow(&call)? } else { http.send(&call)? };
    let host = super::http::host_of(url);
    match answer.status.as_u16() {
        200 | 401 => Ok(answer),
        status @ (429 | 500..) => {
            let (action, detail) = ("say who it is".to_owned(), answer.detail());
            Err(RegistryError::Status { host, action, status, detail })
        }
        _ => Err(RegistryError::NotARegistry { host }),
    }
}
