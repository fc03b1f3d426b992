//! `push`: an image's blobs as they came, and at the end its manifest, byte for byte.
//!
//! ```text
//! HEAD blob ─ there? ─► done
//!    └► POST uploads/?mount=…&from=… ─ mounted? ─► done
//!           └► PATCH the bytes ─ broken? ─► GET how far ─► PATCH the rest
//!                  └► PUT ?digest=…
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Mutex;

use ureq::http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use ureq::http::{Method, Uri};

use super::client::RegistryClient;
use super::connection::{Access, Connection, pull_scope};
use super::error::{Detail, RegistryError};
use super::http::{Answer, Call, Payload, percent_encode};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::progress::{Progress, Step};
use crate::reference::Reference;
use crate::store::{Store, StoreError, StoredImage};

/// What [`Store::push`] did.
#[derive(Clone, Debug)]
pub struct Pushed {
    pub digest: Digest,
    /// Of the manifest.
    pub bytes: u64,
}

/// Push tells its progress as pull does, with these outcomes.
pub struct PushProgress;

impl PushProgress {
    pub const PUSHED: &str = "pushed";
    pub const THERE: &str = "already there";
    /// Followed by the repository.
    pub const MOUNTED: &str = "mounted from ";
}

/// Where a blob lies, if it does.
type FileOf<'a> = &'a dyn Fn(&Digest) -> PathBuf;
/// Repositories of the registry that may have a blob.
type Others<'a> = &'a dyn Fn(&Digest) -> Result<Vec<String>, StoreError>;

struct Push<'a> {
    connection: &'a Connection,
    repository: &'a str,
    file_of: FileOf<'a>,
    progress: &'a dyn Progress,
}

impl Store {
    /// Pushes the image that has this name.
    pub fn push(
        &self,
        client: &RegistryClient,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pushed, RegistryError> {
        let reference = reference.clone().with_default_tag();
        if reference.digest().is_some() {
            return Err(RegistryError::PushDigest(reference.familiar()));
        }
        let image = self.stored_image(&reference.to_string())?;
        let connection = client.registry_of(&reference)?;
        // Nothing of it may be collected meanwhile.
        let _held = self.lock_to_add()?;
        let file_of = |digest: &Digest| self.blob_file(digest);
        let others = |digest: &Digest| self.repositories_with(digest, reference.domain());
        let pushed = push_blobs(&connection, &reference, &image, &file_of, &others, progress)?;
        let by_digest = reference.with_digest(image.manifest.0.clone());
        self.add_repo_digest(&image.id, &by_digest)?;
        Ok(pushed)
    }
}

/// Layers, configuration, and at last the manifest.
pub(super) fn push_blobs(
    connection: &Connection,
    reference: &Reference,
    image: &StoredImage,
    file_of: FileOf<'_>,
    others: Others<'_>,
    progress: &dyn Progress,
) -> Result<Pushed, RegistryError> {
    let repository = reference.path();
    let push = Push { connection, repository, file_of, progress };
    let mut sent: Vec<&Digest> = Vec::new();
    for layer in &image.layers {
        if !sent.contains(&&layer.digest) {
            push.layer(layer, others(&layer.digest)?, image)?;
            sent.push(&layer.digest);
        }
    }
    push.blob(&image.config, &[], None)?;
    push.manifest(image, reference.tag().unwrap_or("latest"))?;
    Ok(Pushed { digest: image.manifest.0.clone(), bytes: image.manifest.1.len() as u64 })
}

enum Outcome {
    There,
    Mounted(String),
    Pushed,
}

impl Push<'_> {
    fn host(&self) -> String {
        self.connection.domain.clone()
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull,push", self.repository)
    }

    fn layer(
        &self,
        layer: &Descriptor,
        mut others: Vec<String>,
        image: &StoredImage,
    ) -> Result<(), RegistryError> {
        if !(self.file_of)(&layer.digest).is_file() {
            let image = image.id.short().to_owned();
            return Err(RegistryError::NoBlob { digest: layer.digest.clone(), image });
        }
        others.retain(|other| other != self.repository);
        let name = format!("layer {}", layer.digest.short());
        let step = self.progress.step(&name, Some(layer.size));
        self.blob(layer, &others, Some(step))
    }

    fn blob(
        &self,
        blob: &Descriptor,
        mount_from: &[String],
        step: Option<Box<dyn Step>>,
    ) -> Result<(), RegistryError> {
        let step = Mutex::new(step);
        let outcome = self.send_blob(blob, mount_from, &step)?;
        if let Some(step) = step.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            match outcome {
                Outcome::There => step.done(PushProgress::THERE),
                Outcome::Pushed => step.done(PushProgress::PUSHED),
                Outcome::Mounted(from) => step.done(&format!("{}{from}", PushProgress::MOUNTED)),
            }
        }
        Ok(())
    }

    fn send_blob(
        &self,
        blob: &Descriptor,
        mount_from: &[String],
        step: &Mutex<Option<Box<dyn Step>>>,
    ) -> Result<Outcome, RegistryError> {
        if self.is_there(blob)? {
            return Ok(Outcome::There);
        }
        // A few guesses; each that fails costs a request.
        for from in mount_from.iter().take(3) {
            if self.mount(blob, from)? {
                return Ok(Outcome::Mounted(from.clone()));
            }
        }
        self.upload(blob, step)?;
        Ok(Outcome::Pushed)
    }

    fn is_there(&self, blob: &Descriptor) -> Result<bool, RegistryError> {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "look for a blob" };
        let url = self.connection.url(&format!("/v2/{}/blobs/{}", self.repository, blob.digest))?;
        let answer = self.connection.call(Call::new(Method::HEAD, url), access)?;
        match answer.status.as_u16() {
            404 => Ok(false),
            200 => Ok(answer.content_length().is_none_or(|length| length == blob.size)),
            _ => self.connection.judge(answer, access).map(|_| true),
        }
    }

    fn what(&self) -> String {
        format!("{}/{}", self.connection.domain, self.repository)
    }

    /// Whether the registry takes the blob from another repository of its own.
    fn mount(&self, blob: &Descriptor, from: &str) -> Result<bool, RegistryError> {
        let scope = format!("{} {}", self.scope(), pull_scope(from));
        let what = self.what();
        let access = Access { scope: &scope, what: &what, action: "mount a blob" };
        let url = format!(
            "/v2/{}/blobs/uploads/?mount={}&from={}",
            self.repository,
            percent_encode(&blob.digest.to_string()),
            percent_encode(from)
        );
        let mut call = Call::new(Method::POST, self.connection.url(&url)?);
        call.payload = Payload::Bytes(b"");
        // One who may not read the other repository may still upload the blob.
        let answer = match self.connection.call(call, access) {
            Ok(answer) => answer,
            Err(RegistryError::Unauthorized { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        if answer.status.as_u16() == 202 {
            self.abandon(&answer);
        }
        Ok(answer.status.as_u16() == 201)
    }

    /// An upload that was begun in place of a mount; what becomes of it does not matter.
    fn abandon(&self, answer: &Answer) {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "give an upload up" };
        if let Ok(url) = self.location(answer) {
            let _ = self.connection.call_once(Call::new(Method::DELETE, url), access);
        }
    }

    fn upload(
        &self,
        blob: &Descriptor,
        step: &Mutex<Option<Box<dyn Step>>>,
    ) -> Result<(), RegistryError> {
        let patience = &self.connection.http.options.patience;
        let mut failures = 0;
        let mut session = Session { url: self.begin()?, offset: 0 };
        while session.offset < blob.size {
            let before = session.offset;
            let error = match self.patch(blob, &mut session, step) {
                Ok(()) => continue,
                Err(error) => error,
            };
            let pause = match &error {
                RegistryError::Broken { .. } => None,
                RegistryError::Status { status: 500.., .. } => None,
                RegistryError::TooManyRequests { .. } => None,
                RegistryError::Busy { .. } => return Err(error),
                // The session is gone: from the start.
                RegistryError::NotFound { .. } if before > 0 => {
                    session = Session { url: self.begin()?, offset: 0 };
                    None
                }
                _ => return Err(error),
            };
            failures = if session.offset > before { 0 } else { failures + 1 };
            if failures >= patience.attempts {
                return Err(error);
            }
            std::thread::sleep(pause.unwrap_or_else(|| patience.pause(failures.max(1))));
            self.catch_up(&mut session, blob)?;
        }
        self.commit(&session, blob)
    }

    /// Begins an upload; its address.
    fn begin(&self) -> Result<Uri, RegistryError> {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "take an upload" };
        let url = self.connection.url(&format!("/v2/{}/blobs/uploads/", self.repository))?;
        let mut call = Call::new(Method::POST, url);
        call.payload = Payload::Bytes(b"");
        let answer = self.connection.judge(self.connection.call(call, access)?, access)?;
        self.location(&answer)
    }

    fn location(&self, answer: &Answer) -> Result<Uri, RegistryError> {
        let target = answer.header(LOCATION.as_str()).unwrap_or_default();
        let url = super::http::resolve(&answer.url, target);
        let leaves_tls = |url: &Uri| {
            answer.url.scheme_str() == Some("https") && url.scheme_str() == Some("http")
        };
        url.filter(|url| !leaves_tls(url)).ok_or_else(|| RegistryError::Redirect {
            host: self.host(),
            to: target.chars().take(300).collect(),
            why: "which is no address for an upload",
        })
    }

    /// Sends what is left from the session's offset on.
    fn patch(
        &self,
        blob: &Descriptor,
        session: &mut Session,
        step: &Mutex<Option<Box<dyn Step>>>,
    ) -> Result<(), RegistryError> {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "take a blob" };
        let path = (self.file_of)(&blob.digest);
        let offset = session.offset;
        let open = || -> io::Result<Box<dyn Read + '_>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(Box::new(Counted { inner: file.take(blob.size - offset), step }))
        };
        let mut call = Call::new(Method::PATCH, session.url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, &format!("{offset}-{}", blob.size - 1));
        call.payload = Payload::Stream { bytes: blob.size - offset, open: &open };
        let answer = self.connection.judge(self.connection.call_once(call, access)?, access)?;
        session.url = self.location(&answer)?;
        session.offset = match received(&answer) {
            Some(received) if received <= blob.size => received,
            Some(_) => return Err(self.nonsense(&answer)),
            None => blob.size,
        };
        Ok(())
    }

    /// Asks how far an upload that broke off has come.
    fn catch_up(&self, session: &mut Session, blob: &Descriptor) -> Result<(), RegistryError> {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "tell how far an upload is" };
        let answer = self.connection.call(Call::new(Method::GET, session.url.clone()), access)?;
        match answer.status.as_u16() {
            404 => *session = Session { url: self.begin()?, offset: 0 },
            _ => {
                let answer = self.connection.judge(answer, access)?;
                if answer.header(LOCATION.as_str()).is_some() {
                    session.url = self.location(&answer)?;
                }
                let offset = received(&answer).unwrap_or(0);
                if offset > blob.size {
                    return Err(self.nonsense(&answer));
                }
                session.offset = offset;
            }
        }
        Ok(())
    }

    fn nonsense(&self, answer: &Answer) -> RegistryError {
        RegistryError::Status {
            host: self.host(),
            action: "tell how far an upload is".into(),
            status: answer.status.as_u16(),
            detail: Detail(answer.header(RANGE.as_str()).unwrap_or_default().to_owned()),
        }
    }

    fn commit(&self, session: &Session, blob: &Descriptor) -> Result<(), RegistryError> {
        let (scope, what) = (self.scope(), self.what());
        let access = Access { scope: &scope, what: &what, action: "keep a blob" };
        let separator = if session.url.query().is_some() { '&' } else { '?' };
        let digest = percent_encode(&blob.digest.to_string());
        let url = format!("{}{separator}digest={digest}", session.url)
            .parse()
            .map_err(|_| RegistryError::Host(self.host()))?;
        let mut call = Call::new(Method::PUT, url);
        call.payload = Payload::Bytes(b"");
        self.connection.judge(self.connection.call(call, access)?, access).map(drop)
    }

    fn manifest(&self, image: &StoredImage, tag: &str) -> Result<(), RegistryError> {
        let (scope, what) = (self.scope(), format!("{}:{tag}", self.what()));
        let access = Access { scope: &scope, what: &what, action: "take a manifest" };
        let url = self.connection.url(&format!("/v2/{}/manifests/{tag}", self.repository))?;
        let kind = if image.media_type.is_empty() { OCI_MANIFEST } else { &image.media_type };
        let mut call = Call::new(Method::PUT, url).header(CONTENT_TYPE, kind);
        call.payload = Payload::Bytes(&image.manifest.1);
        let answer = self.connection.judge(self.connection.call(call, access)?, access)?;
        let digest = answer.header("docker-content-digest");
        match digest.map(str::parse::<Digest>) {
            Some(Ok(actual)) if actual != image.manifest.0 => {
                let (host, what) = (self.host(), "manifest".to_owned());
                let expected = image.manifest.0.clone();
                Err(RegistryError::Mismatch { host, what, expected, actual })
            }
            _ => Ok(()),
        }
    }
}

/// An upload under way.
struct Session {
    url: Uri,
    offset: u64,
}

/// Bytes that the registry has, by `Range: 0-<last>`. An upload without any shows `0-0`,
/// which is not told from one byte: that one is sent again.
fn received(answer: &Answer) -> Option<u64> {
    let range = answer.header(RANGE.as_str())?;
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

struct Counted<'a, R> {
    inner: R,
    step: &'a Mutex<Option<Box<dyn Step>>>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Ok(mut step) = self.step.lock()
            && let Some(step) = step.as_mut()
        {
            step.advance(count as u64);
        }
        Ok(count)
    }
}
