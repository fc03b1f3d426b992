//! One request over HTTP/1.1: TLS, deadlines, redirects, retries.
//!
//! ureq carries the requests; this file adds what a registry needs and what a hostile one
//! must not get. Redirects are followed here, since only GET and HEAD may be, only over
//! HTTP, never from TLS to plain text, and without the credentials once the host changes.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};

use super::error::{Detail, RegistryError};
use super::options::{RegistryOptions, is_loopback};
use super::tls;

const MAX_REDIRECTS: usize = 10;
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Of an error's body, or of a token.
pub(crate) const SMALL_DOCUMENT: u64 = 64 << 10;

pub(crate) struct Http {
    pub(crate) options: RegistryOptions,
    /// By host: each has its own certificates.
    agents: Mutex<HashMap<String, Agent>>,
}

/// What is sent; it can be sent again.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// So many bytes of what the function opens.
    Stream {
        bytes: u64,
        open: &'a dyn Fn() -> io::Result<Box<dyn Read + 'a>>,
    },
}

pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
    /// The whole answer must be there in this time.
    pub(crate) whole: Option<Duration>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, url: Uri) -> Call<'a> {
        Call { method, url, headers: HeaderMap::new(), payload: Payload::None, whole: None }
    }

    /// With a header whose value is ours, so that it is known to be valid.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Whence it came in the end.
    pub(crate) url: Uri,
    pub(crate) body: Box<dyn Read + Send>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH.as_str())?.parse().ok()
    }

    /// The whole body, if it is no longer than `limit`.
    pub(crate) fn read(self, what: &str, limit: u64) -> Result<Vec<u8>, ReadFailure> {
        let too_large = || ReadFailure::TooLarge { what: what.to_owned(), limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let expected = self.content_length();
        let mut data = Vec::new();
        self.body.take(limit + 1).read_to_end(&mut data).map_err(ReadFailure::Io)?;
        if data.len() as u64 > limit {
            return Err(too_large());
        }
        if expected.is_some_and(|expected| expected != data.len() as u64) {
            return Err(ReadFailure::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(data)
    }

    /// What a registry says of an error (distribution-spec, "Error Codes").
    pub(crate) fn detail(self) -> Detail {
        #[derive(serde::Deserialize)]
        struct Body {
            #[serde(default)]
            errors: Vec<Entry>,
            #[serde(default)]
            details: Option<String>,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let Ok(data) = self.read("an error", SMALL_DOCUMENT) else { return Detail::default() };
        let Ok(body) = serde_json::from_slice::<Body>(&data) else { return Detail::default() };
        let mut text = match body.errors.into_iter().next() {
            Some(Entry { code, message }) if message.is_empty() => code.to_lowercase(),
            Some(Entry { message, .. }) => message,
            None => body.details.unwrap_or_default(),
        };
        text = text.chars().take(300).collect();
        Detail(text)
    }
}

pub(crate) enum ReadFailure {
    TooLarge { what: String, limit: u64 },
    Io(io::Error),
}

impl Http {
    pub(crate) fn new(options: RegistryOptions) -> Http {
        Http { options, agents: Mutex::new(HashMap::new()) }
    }

    /// Sends until there is an answer that is not a wish for patience, and follows it where
    /// it leads. Errors of the registry are answers as well.
    pub(crate) fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut failures = 0;
        loop {
            let outcome = self.follow(call);
            failures += 1;
            let last = failures >= self.options.patience.attempts;
            let pause = match &outcome {
                Ok(answer) if is_temporary(answer.status) => match retry_after(answer) {
                    Some(pause) if pause > self.options.patience.longest_pause => {
                        return Err(RegistryError::Busy { host: host_of(&call.url), pause });
                    }
                    asked => asked.unwrap_or_else(|| self.options.patience.pause(failures)),
                },
                Err(RegistryError::Broken { .. }) => self.options.patience.pause(failures),
                _ => return outcome,
            };
            if last {
                return outcome.map_err(|error| with_attempts(error, failures));
            }
            tracing::info!(url = %shown(&call.url), failures, "the request is tried again");
            std::thread::sleep(pause);
        }
    }

    /// A small document, of which `first` may be the answer; asked for again if its body
    /// breaks off.
    pub(crate) fn document(
        &self,
        call: &Call<'_>,
        what: &str,
        limit: u64,
        first: Option<Answer>,
        judge: impl Fn(Answer) -> Result<Answer, RegistryError>,
    ) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let mut failures = 0;
        let mut first = first;
        loop {
            let answer = match first.take() {
                Some(answer) => answer,
                None => judge(self.send(call)?)?,
            };
            let host = host_of(&call.url);
            let headers = answer.headers.clone();
            match answer.read(what, limit) {
                Ok(data) => return Ok((headers, data)),
                Err(ReadFailure::TooLarge { what, limit }) => {
                    return Err(RegistryError::TooLarge { host, what, limit });
                }
                Err(ReadFailure::Io(source)) => {
                    failures += 1;
                    if failures >= self.options.patience.attempts {
                        return Err(RegistryError::Broken { host, attempts: failures, source });
                    }
                    std::thread::sleep(self.options.patience.pause(failures));
                }
            }
        }
    }

    pub(crate) fn follow(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut url = call.url.clone();
        let mut headers = call.headers.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send_once(call, &url, &headers)?;
            if !answer.status.is_redirection() || answer.status == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let refuse = |to: &str, why| {
                let to = to.chars().take(300).collect();
                Err(RegistryError::Redirect { host: host_of(&url), to, why })
            };
            let Some(target) = answer.header(LOCATION.as_str()) else {
                return refuse("", "which is no address");
            };
            if call.method != Method::GET && call.method != Method::HEAD {
                return refuse(target, "though what is sent to it must not go elsewhere");
            }
            let Some(next) = resolve(&url, target) else {
                return refuse(target, "which is no HTTP address");
            };
            let leaves_tls = url.scheme_str() == Some("https") && next.scheme_str() == Some("http");
            if leaves_tls && !self.options.is_insecure(&host_of(&url)) {
                return refuse(target, "which is not encrypted");
            }
            if url.authority() != next.authority() || url.scheme() != next.scheme() {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        let (host, to) = (host_of(&call.url), url.to_string());
        Err(RegistryError::Redirect { host, to, why: "and so on without an end" })
    }

    fn send_once(
        &self,
        call: &Call<'_>,
        url: &Uri,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let host = host_of(url);
        let agent = self.agent(&host)?;
        let failed = |error: ureq::Error| self.failure(&host, error);
        let mut request = Request::new(());
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers.clone();
        let whole = call.whole;
        let answer = match &call.payload {
            Payload::None => {
                agent.run(agent.configure_request(request).timeout_recv_body(whole).build())
            }
            Payload::Bytes(bytes) => {
                let request = request.map(|()| *bytes);
                agent.run(agent.configure_request(request).timeout_recv_body(whole).build())
            }
            Payload::Stream { bytes, open } => {
                let mut source = open().map_err(|source| RegistryError::Unreachable {
                    host: host.clone(),
                    why: "what shall be sent cannot be read",
                    source,
                })?;
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(*bytes));
                let request = request.map(|()| ureq::SendBody::from_reader(&mut source));
                agent.run(agent.configure_request(request).timeout_recv_body(whole).build())
            }
        }
        .map_err(failed)?;
        let (parts, body) = answer.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            url: url.clone(),
            body: Box::new(body.into_with_config().limit(u64::MAX).reader()),
        })
    }

    fn agent(&self, host: &str) -> Result<Agent, RegistryError> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(host) {
            return Ok(agent.clone());
        }
        let patience = &self.options.patience;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            .accept_encoding("identity")
            .user_agent(concat!("caisson/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.first_byte))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall))
            .tls_config(tls::config(&self.options, host)?);
        // A proxy has another idea of what this host is.
        let config = if is_loopback(host) { config.proxy(None) } else { config };
        let agent = Agent::new_with_config(config.build());
        agents.insert(host.to_owned(), agent.clone());
        Ok(agent)
    }

    fn failure(&self, host: &str, error: ureq::Error) -> RegistryError {
        let host = host.to_owned();
        let certs_dir = self.options.certs_dir.join(&host);
        if is_tls(&error) {
            return RegistryError::Tls { host, certs_dir, source: error.into_io() };
        }
        let why = match &error {
            ureq::Error::HostNotFound => "there is no host of that name",
            ureq::Error::Io(source) if is_of_lookup(source) => "its name cannot be looked up",
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => "the address is invalid",
            ureq::Error::InvalidProxyUrl => "the proxy's address is invalid",
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                "it does not answer"
            }
            ureq::Error::Io(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
                "nothing listens there"
            }
            _ => "",
        };
        let source = error.into_io();
        match why {
            "" => RegistryError::Broken { host, attempts: 1, source },
            why => RegistryError::Unreachable { host, why, source },
        }
    }
}

/// The standard library gives such errors no kind of their own.
fn is_of_lookup(error: &io::Error) -> bool {
    error.to_string().starts_with("failed to lookup address information")
}

fn is_tls(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => true,
        ureq::Error::Io(source) => {
            source.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
        }
        _ => false,
    }
}

fn with_attempts(error: RegistryError, attempts: u32) -> RegistryError {
    match error {
        RegistryError::Broken { host, source, .. } => {
            RegistryError::Broken { host, attempts, source }
        }
        other => other,
    }
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// In seconds; the form with a date is taken for none.
fn retry_after(answer: &Answer) -> Option<Duration> {
    answer.header(RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
}

/// `host` or `host:port`, as in the name of an image.
pub(crate) fn host_of(url: &Uri) -> String {
    let host = url.authority().map_or("", |authority| authority.as_str());
    host.rsplit('@').next().unwrap_or_default().to_owned()
}

/// Without its query, which may hold secrets.
fn shown(url: &Uri) -> String {
    format!("{}://{}{}", url.scheme_str().unwrap_or_default(), host_of(url), url.path())
}

/// What `target` means on the page `base`; only HTTP, and no user in the address.
pub(crate) fn resolve(base: &Uri, target: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = if target.contains("://") {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{scheme}:{target}")
    } else if target.starts_with('/') {
        format!("{scheme}://{authority}{target}")
    } else if target.starts_with('?') {
        format!("{scheme}://{authority}{}{target}", base.path())
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{target}")
    };
    let url: Uri = absolute.split('#').next()?.parse().ok()?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let authority = url.authority()?;
    (is_http && !authority.as_str().contains('@') && !authority.host().is_empty()).then_some(url)
}

/// A query's name or value.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_http_says() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=1".parse().unwrap();
        for (target, expected) in [
            ("https://cdn.example/z?sig=1", Some("https://cdn.example/z?sig=1")),
            ("/v2/b", Some("https://r.example:5000/v2/b")),
            ("//other/b", Some("https://other/b")),
            ("z", Some("https://r.example:5000/v2/a/blobs/z")),
            ("?q", Some("https://r.example:5000/v2/a/blobs/x?q")),
            ("http://plain/#f", Some("http://plain/")),
            ("ftp://host/x", None),
            ("file:///etc/passwd", None),
            ("https://user:secret@host/", None),
            ("http://", None),
            ("https://a b/", None),
        ] {
            let resolved = resolve(&base, target).map(|url| url.to_string());
            assert_eq!(resolved.as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(percent_encode("repository:a/b:pull,push"), "repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(percent_encode("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
