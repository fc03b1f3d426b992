//! Proving to a registry who one is (distribution-spec "Token Authentication", RFC 7235).
//!
//! ```text
//! 401 WWW-Authenticate: Bearer realm="https://auth…",service="…"
//!     └► GET realm?service=…&scope=repository:me/app:pull  (with the password, if any)
//!         └► { "token": "…" } ─► Authorization: Bearer …
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{HeaderMap, HeaderValue, Method, Uri};

use super::credentials::Credentials;
use super::error::{RegistryError, login_argument};
use super::http::{Answer, Call, Http, Payload, SMALL_DOCUMENT, host_of, percent_encode};
use super::options::is_loopback;

const CLIENT_ID: &str = "caisson";

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
    /// In its own words.
    Unknown(String),
}

impl Challenge {
    /// The best of what `WWW-Authenticate` offers.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let texts = headers.get_all("www-authenticate").iter().filter_map(|v| v.to_str().ok());
        let mut offers: Vec<Challenge> = texts.map(parse).collect();
        offers.sort_by_key(|offer| match offer {
            Challenge::Bearer { .. } => 0,
            Challenge::Basic => 1,
            Challenge::Unknown(_) => 2,
        });
        offers.into_iter().next()
    }
}

fn parse(text: &str) -> Challenge {
    let unknown = || Challenge::Unknown(text.chars().take(100).collect());
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Challenge::Basic;
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return unknown();
    }
    let mut parameters = parameters(rest);
    match parameters.remove("realm") {
        Some(realm) if !realm.is_empty() => Challenge::Bearer {
            realm,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        },
        _ => unknown(),
    }
}

/// `name=value` and `name="quoted value"`, separated by commas.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => after.split_once(',').map_or((after.trim().to_owned(), ""), |(value, next)| {
                (value.trim().to_owned(), next)
            }),
        };
        found.entry(name).or_insert(value);
        rest = next;
    }
    found
}

/// Up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// The `Authorization` of a registry's requests.
pub(crate) struct Authority {
    domain: String,
    credentials: Option<Credentials>,
    challenge: Mutex<Option<Challenge>>,
    /// By scope.
    tokens: Mutex<HashMap<String, HeaderValue>>,
}

impl Authority {
    pub(crate) fn new(
        domain: &str,
        credentials: Option<Credentials>,
        challenge: Option<Challenge>,
    ) -> Authority {
        Authority {
            domain: domain.to_owned(),
            credentials,
            challenge: Mutex::new(challenge),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    /// After a refusal: what was believed about `scope` holds no longer.
    pub(crate) fn challenged(&self, scope: &str, answer: &Answer) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
        if let Some(challenge) = Challenge::of(&answer.headers) {
            *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
        }
    }

    /// What to send for `scope` (several, separated by spaces), if anything.
    pub(crate) fn header(
        &self,
        http: &Http,
        base: &Uri,
        scope: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match challenge {
            None => Ok(None),
            Some(Challenge::Unknown(challenge)) => {
                Err(RegistryError::Challenge { host: self.domain.clone(), challenge })
            }
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Password { user, password }) => Ok(Some(basic(user, password))),
                _ => Ok(None),
            },
            Some(Challenge::Bearer { realm, service, scope: asked }) => {
                // One at a time: layers that come in parallel share one token.
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(token) = tokens.get(scope) {
                    return Ok(Some(token.clone()));
                }
                let realm = self.realm(http, base, &realm)?;
                let scope_asked = if scope.is_empty() { asked.as_deref() } else { Some(scope) };
                let token = self.token(http, &realm, service.as_deref(), scope_asked)?;
                tokens.insert(scope.to_owned(), token.clone());
                Ok(Some(token))
            }
        }
    }

    /// The password goes there, so it must be over TLS, or where the registry itself is
    /// known to be without.
    fn realm(&self, http: &Http, base: &Uri, realm: &str) -> Result<Uri, RegistryError> {
        let refused = || RegistryError::Realm {
            host: self.domain.clone(),
            realm: realm.chars().take(300).collect(),
        };
        let url = super::http::resolve(base, realm).ok_or_else(refused)?;
        let host = host_of(&url);
        let plain_is_fine = is_loopback(&host)
            || http.options.is_insecure(&host)
            || (base.scheme_str() == Some("http") && host == host_of(base));
        if url.scheme_str() == Some("https") || plain_is_fine { Ok(url) } else { Err(refused()) }
    }

    fn token(
        &self,
        http: &Http,
        realm: &Uri,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<HeaderValue, RegistryError> {
        let scopes =
            scope.into_iter().flat_map(|scopes| scopes.split(' ')).filter(|s| !s.is_empty());
        let mut fields: Vec<(&str, &str)> = Vec::new();
        fields.extend(service.map(|service| ("service", service)));
        let form;
        let mut call = match &self.credentials {
            Some(Credentials::Token(refresh)) => {
                let scope = scope.unwrap_or_default();
                fields.extend([("grant_type", "refresh_token"), ("client_id", CLIENT_ID)]);
                fields.extend([("scope", scope), ("refresh_token", refresh)]);
                form = encode(&fields);
                let mut call = Call::new(Method::POST, realm.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                call.payload = Payload::Bytes(form.as_bytes());
                call
            }
            credentials => {
                fields.extend(scopes.map(|scope| ("scope", scope)));
                let mut url = realm.to_string();
                url.push(if realm.query().is_some() { '&' } else { '?' });
                if let Some(Credentials::Password { user, .. }) = credentials {
                    fields.push(("account", user));
                }
                url.push_str(&encode(&fields));
                let url = url.parse().map_err(|_| RegistryError::Realm {
                    host: self.domain.clone(),
                    realm: realm.to_string(),
                })?;
                let mut call = Call::new(Method::GET, url);
                if let Some(Credentials::Password { user, password }) = credentials {
                    call.headers.insert(AUTHORIZATION, basic(user, password));
                }
                call
            }
        };
        call.whole = Some(http.options.patience.document);
        let judge = |answer| self.judge_token(answer, scope.unwrap_or("a token"));
        let (_, data) = http.document(&call, "a token", SMALL_DOCUMENT, None, judge)?;
        self.parse_token(&data)
    }

    fn judge_token(&self, answer: Answer, what: &str) -> Result<Answer, RegistryError> {
        let status = answer.status.as_u16();
        let (host, login) = (self.domain.clone(), login_argument(&self.domain));
        match status {
            200 => Ok(answer),
            400 | 401 | 403 => {
                let what = what.split(':').nth(1).unwrap_or("it").to_owned();
                Err(RegistryError::Unauthorized { host, what, login, detail: answer.detail() })
            }
            429 => Err(RegistryError::TooManyRequests { host, login, detail: answer.detail() }),
            _ => {
                let (action, detail) = ("give a token".to_owned(), answer.detail());
                Err(RegistryError::Status { host, action, status, detail })
            }
        }
    }

    fn parse_token(&self, data: &[u8]) -> Result<HeaderValue, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
        }
        let host = || self.domain.clone();
        let parsed: Token = serde_json::from_slice(data).map_err(|source| RegistryError::Json {
            host: host(),
            what: "token",
            source,
        })?;
        let token = parsed.token.filter(|token| !token.is_empty()).or(parsed.access_token);
        let header = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let mut header = header.ok_or_else(|| {
            let source = serde::de::Error::custom("there is no token in it");
            RegistryError::Json { host: host(), what: "token", source }
        })?;
        header.set_sensitive(true);
        Ok(header)
    }
}

fn encode(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{name}={}", percent_encode(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let mut header = HeaderValue::from_str(&text).expect("base64 is a header's value");
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (text, expected) in [
            ("Basic realm=\"x\"", Challenge::Basic),
            ("basic", Challenge::Basic),
            (
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\"",
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), None),
            ),
            (
                "bearer realm=\"https://a/t\", scope=\"repository:a/b:pull,push\", error=x",
                bearer("https://a/t", None, Some("repository:a/b:pull,push")),
            ),
            ("Bearer realm=\"a\\\"b\"", bearer("a\"b", None, None)),
            ("Bearer service=x", Challenge::Unknown("Bearer service=x".into())),
            ("Negotiate", Challenge::Unknown("Negotiate".into())),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        headers.append("www-authenticate", HeaderValue::from_static("Basic realm=x"));
        headers.append("www-authenticate", HeaderValue::from_static("Bearer realm=\"https://a\""));
        assert!(matches!(Challenge::of(&headers), Some(Challenge::Bearer { .. })));
        assert_eq!(Challenge::of(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn no_challenge_panics(text in ".{0,80}") {
            parse(&format!("Bearer {text}"));
            parse(&text);
        }
    }
}
