//! Whom to trust: the system's authorities, Docker's `certs.d`, and files that the caller
//! names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::error::RegistryError;
use super::options::RegistryOptions;

/// More is no certificate.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// For connections to `host`.
pub(super) fn config(options: &RegistryOptions, host: &str) -> Result<TlsConfig, RegistryError> {
    let builder = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .disable_verification(options.is_insecure(host));
    let directory = options.certs_dir.join(host);
    let mut roots = system_roots().to_vec();
    for path in options.ca_files.iter().chain(&files(&directory, "crt")?) {
        roots.extend(certificates(path)?);
    }
    let client = client_certificate(&directory)?;
    Ok(builder.root_certs(RootCerts::from(roots)).client_cert(client).build())
}

/// Read once; a host without any still reaches registries whose authority is named.
fn system_roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "some of the system's certificates cannot be read");
        }
        found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
    })
}

/// The files of a directory with this extension, in order; no directory has none.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, RegistryError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RegistryError::Read { path: directory.into(), source }),
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    Ok(found)
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let pem = read(path)?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(RegistryError::NoCertificate { path: path.into() }),
        false => Ok(found),
    }
}

/// `client.cert` with `client.key`: the first `*.cert` whose key is there.
fn client_certificate(directory: &Path) -> Result<Option<ClientCert>, RegistryError> {
    for path in files(directory, "cert")? {
        let key_path = path.with_extension("key");
        if !key_path.exists() {
            continue;
        }
        let chain = certificates(&path)?;
        let key = PrivateKey::from_pem(&read(&key_path)?)
            .map_err(|_| RegistryError::NoCertificate { path: key_path })?;
        return Ok(Some(ClientCert::new_with_certs(&chain, key)));
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    use std::io::Read;
    let failed = |source| RegistryError::Read { path: path.into(), source };
    let mut data = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_PEM_BYTES).read_to_end(&mut data).map_err(failed)?;
    Ok(data)
}
