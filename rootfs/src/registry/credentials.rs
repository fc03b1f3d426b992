//! Docker's configuration file: who one is at which registry.
//!
//! `auths` holds credentials by registry, base64 of `user:password`; `credHelpers` and
//! `credsStore` name programs (`docker-credential-<name>`) that hold them instead. What
//! else the file holds is kept when it is written.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde_json::{Map, Value, json};
use thiserror::Error;

/// The key of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";
/// The user name that stands for a refresh token.
const TOKEN_USER: &str = "<token>";
const MAX_FILE_BYTES: u64 = 8 << 20;
const MAX_HELPER_BYTES: u64 = 64 << 10;

#[derive(Debug, Error)]
pub enum CredentialError {
    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not the JSON of a Docker configuration; correct or remove it", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{} is not the JSON of a Docker configuration: {what}", .path.display())]
    Shape { path: PathBuf, what: &'static str },
    #[error("the credentials of {registry} in {} are no base64 of user:password; log in again", .path.display())]
    Damaged { registry: String, path: PathBuf },
    #[error("the credential helper's name \"{}\" is invalid", .0.escape_debug())]
    HelperName(String),
    #[error("cannot run the credential helper {program}")]
    Helper { program: String, source: io::Error },
    #[error("the credential helper {program} failed: {}", .message.escape_debug())]
    HelperFailed { program: String, message: String },
}

/// Who one is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Token(String),
}

/// Without the secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password {{ user: {user:?} }}"),
            Credentials::Token(_) => f.write_str("Token"),
        }
    }
}

/// The file, and the programs that it names.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    path: PathBuf,
    /// Podman's variable; then the file holds credentials alone.
    read_first: Option<PathBuf>,
}

/// Where [`CredentialStore::store`] has put them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    File(PathBuf),
    Helper(String),
}

impl CredentialStore {
    /// `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub fn from_environment() -> CredentialStore {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let docker = match set("DOCKER_CONFIG") {
            Some(directory) => PathBuf::from(directory),
            None => PathBuf::from(set("HOME").unwrap_or_else(|| "/root".into())).join(".docker"),
        };
        CredentialStore {
            path: docker.join("config.json"),
            read_first: set("REGISTRY_AUTH_FILE").map(PathBuf::from),
        }
    }

    pub fn at(path: impl Into<PathBuf>) -> CredentialStore {
        CredentialStore { path: path.into(), read_first: None }
    }

    /// Where credentials are written to.
    fn file(&self) -> &Path {
        self.read_first.as_deref().unwrap_or(&self.path)
    }

    /// The credentials for a repository (`docker.io/me/app`) or a registry (`docker.io`).
    pub fn find(&self, repository: &str) -> Result<Option<Credentials>, CredentialError> {
        for path in self.read_first.iter().chain([&self.path]) {
            let config = read(path)?;
            if let Some(found) = find_in(&config, path, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps credentials for a registry, by its helper if it has one.
    pub fn store(&self, domain: &str, credentials: &Credentials) -> Result<Kept, CredentialError> {
        let path = self.file();
        let mut config = read(path)?;
        let (user, secret) = match credentials {
            Credentials::Password { user, password } => (user.as_str(), password.as_str()),
            Credentials::Token(token) => (TOKEN_USER, token.as_str()),
        };
        let key = key_of(domain);
        if let Some(helper) = helper_for(&config, domain) {
            let input = json!({ "ServerURL": key, "Username": user, "Secret": secret });
            run_helper(&helper, "store", input.to_string().as_bytes())?;
            // As Docker does: the key tells that there are some, and where.
            set_auth(&mut config, path, key, json!({}))?;
            write(path, &config)?;
            return Ok(Kept::Helper(helper));
        }
        let auth = match credentials {
            Credentials::Password { .. } => {
                json!({ "auth": STANDARD.encode(format!("{user}:{secret}")) })
            }
            Credentials::Token(token) => json!({ "auth": "", "identitytoken": token }),
        };
        set_auth(&mut config, path, key, auth)?;
        write(path, &config)?;
        Ok(Kept::File(path.to_owned()))
    }

    /// Forgets the credentials of a registry; `false` if there were none.
    pub fn erase(&self, domain: &str) -> Result<bool, CredentialError> {
        let path = self.file();
        let mut config = read(path)?;
        let key = key_of(domain);
        let mut known = false;
        if let Some(helper) = helper_for(&config, domain) {
            known |= get_from_helper(&helper, key)?.is_some();
            if known {
                run_helper(&helper, "erase", key.as_bytes())?;
            }
        }
        let auths = config.get_mut("auths").and_then(Value::as_object_mut);
        let mut changed = false;
        if let Some(auths) = auths {
            let keys: Vec<String> =
                auths.keys().filter(|found| host_of_key(found) == domain).cloned().collect();
            for key in keys {
                auths.remove(&key);
                changed = true;
            }
        }
        if changed {
            write(path, &config)?;
        }
        Ok(known || changed)
    }
}

fn find_in(
    config: &Map<String, Value>,
    path: &Path,
    repository: &str,
) -> Result<Option<Credentials>, CredentialError> {
    let domain = repository.split('/').next().unwrap_or_default();
    if let Some(helper) = helper_for(config, domain) {
        return get_from_helper(&helper, key_of(domain));
    }
    let Some(auths) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
    // Podman's keys may name a namespace; the longest that fits is meant.
    let is_namespace = |key: &str| {
        !key.contains("://")
            && repository.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'))
            && key.contains('/')
    };
    let namespace = auths.iter().filter(|(key, _)| is_namespace(key)).max_by_key(|(k, _)| k.len());
    let registry = auths
        .get_key_value(key_of(domain))
        .or_else(|| auths.iter().find(|(key, _)| host_of_key(key) == domain));
    match namespace.or(registry) {
        Some((key, entry)) => decode(entry, key, path),
        None => Ok(None),
    }
}

fn decode(
    entry: &Value,
    registry: &str,
    path: &Path,
) -> Result<Option<Credentials>, CredentialError> {
    let text = |name| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::Token(token.to_owned())));
    }
    if let (Some(user), Some(password)) = (text("username"), text("password")) {
        let (user, password) = (user.to_owned(), password.to_owned());
        return Ok(Some(Credentials::Password { user, password }));
    }
    let Some(auth) = text("auth") else { return Ok(None) };
    let lenient = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let decoded = lenient.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let damaged = || CredentialError::Damaged { registry: registry.into(), path: path.into() };
    let decoded = decoded.ok_or_else(damaged)?;
    let (user, password) = decoded.split_once(':').ok_or_else(damaged)?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials::Password { user: user.to_owned(), password }))
}

/// The key under which a registry's credentials are kept.
fn key_of(domain: &str) -> &str {
    if domain == HUB { HUB_KEY } else { domain }
}

/// The registry that a key means: it may be an address with a path.
fn host_of_key(key: &str) -> &str {
    if key == HUB_KEY {
        return HUB;
    }
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = match key.contains("://") {
        true => rest.split('/').next().unwrap_or_default(),
        false => rest.trim_end_matches('/'),
    };
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { HUB } else { host }
}

fn helper_for(config: &Map<String, Value>, domain: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(Value::as_object);
    let own = own.and_then(|helpers| helpers.get(key_of(domain)).or(helpers.get(domain)));
    let name = own.or(config.get("credsStore")).and_then(Value::as_str)?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn get_from_helper(helper: &str, key: &str) -> Result<Option<Credentials>, CredentialError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Found {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let output = match run_helper(helper, "get", key.as_bytes()) {
        Ok(output) => output,
        Err(CredentialError::HelperFailed { message, .. })
            if message.contains("credentials not found") =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let Found { username, secret } =
        serde_json::from_slice(&output).map_err(|_| CredentialError::HelperFailed {
            program: program_of(helper),
            message: "it did not answer in JSON".into(),
        })?;
    Ok(match username.as_str() {
        "" => None,
        TOKEN_USER => Some(Credentials::Token(secret)),
        _ => Some(Credentials::Password { user: username, password: secret }),
    })
}

fn program_of(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

fn run_helper(helper: &str, verb: &str, input: &[u8]) -> Result<Vec<u8>, CredentialError> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !helper.bytes().all(is_word) {
        return Err(CredentialError::HelperName(helper.chars().take(100).collect()));
    }
    let program = program_of(helper);
    let failed = |source| CredentialError::Helper { program: program.clone(), source };
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    let talked = talk(&mut child, input);
    let status = child.wait().map_err(failed)?;
    let output = talked.map_err(failed)?;
    if !status.success() {
        // Helpers tell errors on their standard output.
        let message = String::from_utf8_lossy(&output).trim().chars().take(300).collect();
        return Err(CredentialError::HelperFailed { program, message });
    }
    Ok(output)
}

/// Its input is far smaller than a pipe, so nobody waits for the other.
fn talk(child: &mut Child, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut stdin = child.stdin.take().expect("it was asked for");
    match stdin.write_all(input) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    let mut output = Vec::new();
    let stdout = child.stdout.take().expect("it was asked for");
    stdout.take(MAX_HELPER_BYTES).read_to_end(&mut output)?;
    Ok(output)
}

/// The configuration; no file is an empty one.
fn read(path: &Path) -> Result<Map<String, Value>, CredentialError> {
    let io_error = |source| CredentialError::Io { action: "read", path: path.into(), source };
    let mut data = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_FILE_BYTES).read_to_end(&mut data).map_err(io_error)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(io_error(source)),
    };
    if data.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&data) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(CredentialError::Shape { path: path.into(), what: "it is no object" }),
        Err(source) => Err(CredentialError::Json { path: path.into(), source }),
    }
}

fn set_auth(
    config: &mut Map<String, Value>,
    path: &Path,
    key: &str,
    auth: Value,
) -> Result<(), CredentialError> {
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    let shape = CredentialError::Shape { path: path.into(), what: "`auths` is no object" };
    auths.as_object_mut().ok_or(shape)?.insert(key.to_owned(), auth);
    Ok(())
}

/// Whole or not at all, and for the owner alone.
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), CredentialError> {
    // A file that is a link stays one.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let io_error = |source| CredentialError::Io { action: "write", path: path.into(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error)?;
    let mut file = tempfile::Builder::new()
        .prefix(".config-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(io_error)?;
    let mut text = serde_json::to_vec_pretty(config).expect("a map of JSON values is JSON");
    text.push(b'\n');
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(io_error)?;
    file.persist(path).map_err(|error| io_error(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn what_is_stored_is_found_private_and_beside_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/config.json");
        let store = CredentialStore::at(&path);
        assert_eq!(store.find("docker.io/me/app").unwrap(), None);
        store.store("docker.io", &password("me", "pass:word")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut config = read(&path).unwrap();
        config.insert("psFormat".into(), "table".into());
        fs::write(&path, Value::Object(config).to_string()).unwrap();
        store.store("localhost:5000", &Credentials::Token("t".into())).unwrap();
        assert_eq!(store.find("docker.io/me/app").unwrap(), Some(password("me", "pass:word")));
        assert_eq!(store.find("localhost:5000/x").unwrap(), Some(Credentials::Token("t".into())));
        let config = read(&path).unwrap();
        assert_eq!(config["psFormat"], "table");
        assert!(config["auths"].get(HUB_KEY).is_some(), "Docker's own key");
        assert!(store.erase("docker.io").unwrap());
        assert!(!store.erase("docker.io").unwrap());
        assert_eq!(store.find("docker.io/me/app").unwrap(), None);
        assert_eq!(read(&path).unwrap()["psFormat"], "table");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn keys_are_read_as_others_write_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let auth = |text: &str| json!({ "auth": STANDARD.encode(text) });
        let auths = json!({
            "https://old.example/v1/": auth("old:1"),
            "quay.io": auth("quay:2"),
            "quay.io/team": auth("team:3"),
            "index.docker.io": auth("hub:4"),
        });
        fs::write(&path, json!({ "auths": auths }).to_string()).unwrap();
        let store = CredentialStore::at(&path);
        for (repository, user, secret) in [
            ("old.example/x", "old", "1"),
            ("quay.io/other/x", "quay", "2"),
            ("quay.io/team/x", "team", "3"),
            ("quay.io/teams/x", "quay", "2"),
            ("docker.io/library/debian", "hub", "4"),
        ] {
            assert_eq!(
                store.find(repository).unwrap(),
                Some(password(user, secret)),
                "{repository}"
            );
        }
        assert_eq!(store.find("example/x").unwrap(), None);
    }

    #[test]
    fn damage_is_told_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let store = CredentialStore::at(&path);
        for (text, part) in [
            ("[]", "no object"),
            ("{", "not the JSON"),
            (r#"{"auths":{"a.b":{"auth":"!!"}}}"#, "base64"),
            (r#"{"auths":{"a.b":{"auth":"bm9jb2xvbg=="}}}"#, "base64"),
            (r#"{"credsStore":"../../bin/sh"}"#, "invalid"),
            (r#"{"credsStore":"caisson-no-such"}"#, "docker-credential-caisson-no-such"),
        ] {
            fs::write(&path, text).unwrap();
            let error = store.find("a.b/x").unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(format!("{:?}", password("u", "secret")), "Password { user: \"u\" }");
    }
}
