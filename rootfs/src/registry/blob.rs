//! A blob as a reader. A transfer that breaks off or barely moves is resumed where it was,
//! by a request for the rest.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::Method;
use ureq::http::header::{CONTENT_RANGE, RANGE};

use super::connection::{Access, Connection, pull_scope};
use super::error::RegistryError;
use super::http::{Answer, Call};
use crate::digest::{Digest, Hasher};
use crate::manifest::Descriptor;

/// What a transfer must bring before its failures are forgotten.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What all transfers of one image share: whether to stop, and why.
#[derive(Default)]
pub(crate) struct Transfers {
    cancelled: AtomicBool,
    failure: Mutex<Option<RegistryError>>,
}

impl Transfers {
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Why a reader failed; an `io::Error` would tell it as the image's fault.
    pub(crate) fn take_failure(&self) -> Option<RegistryError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, error: RegistryError) -> io::Error {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // The first is the cause; the others were cancelled.
        failure.get_or_insert(error);
        self.cancel();
        io::Error::other("the transfer failed")
    }
}

/// Gives a blob's bytes, as many as its descriptor says and no others. The digest is for the
/// reader's user to check.
pub(crate) struct BlobReader<'c> {
    connection: &'c Connection,
    repository: &'c str,
    descriptor: &'c Descriptor,
    transfers: &'c Transfers,
    body: Option<Box<dyn Read + Send>>,
    position: u64,
    /// Tries since there was progress, and where the last of it was.
    failures: u32,
    progress_at: u64,
    pace: Pace,
    failed: bool,
}

/// How fast it goes, by the time that is spent waiting for the registry alone.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl<'c> BlobReader<'c> {
    pub(crate) fn new(
        connection: &'c Connection,
        repository: &'c str,
        descriptor: &'c Descriptor,
        transfers: &'c Transfers,
    ) -> BlobReader<'c> {
        BlobReader {
            connection,
            repository,
            descriptor,
            transfers,
            body: None,
            position: 0,
            failures: 0,
            progress_at: 0,
            pace: Pace::default(),
            failed: false,
        }
    }

    fn host(&self) -> String {
        self.connection.domain.clone()
    }

    fn what(&self) -> String {
        format!("blob {}", self.descriptor.digest.short())
    }

    /// A body that continues at the position.
    fn open(&self) -> Result<Box<dyn Read + Send>, RegistryError> {
        let (digest, size) = (&self.descriptor.digest, self.descriptor.size);
        let scope = pull_scope(self.repository);
        let what = format!("blob {digest} of {}/{}", self.connection.domain, self.repository);
        let access = Access { scope: &scope, what: &what, action: "send a blob" };
        let url = self.connection.url(&format!("/v2/{}/blobs/{digest}", self.repository))?;
        let mut call = Call::new(Method::GET, url);
        if self.position > 0 {
            call = call.header(RANGE, &format!("bytes={}-", self.position));
        }
        let answer = self.connection.judge(self.connection.call(call, access)?, access)?;
        let (begins_at, length) = self.extent(&answer)?;
        if let Some(length) = length
            && begins_at.checked_add(length) != Some(size)
        {
            let (host, what) = (self.host(), self.what());
            let actual = begins_at.saturating_add(length);
            return Err(RegistryError::Size { host, what, expected: size, actual });
        }
        let mut body = answer.body;
        // A registry that does not know ranges sends all of it again.
        let skip = self.position - begins_at;
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == skip => Ok(body),
            Ok(_) => Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Where the answer's body begins in the blob, and how long it is.
    fn extent(&self, answer: &Answer) -> Result<(u64, Option<u64>), RegistryError> {
        if answer.status.as_u16() != 206 {
            return Ok((0, answer.content_length()));
        }
        let range = answer.header(CONTENT_RANGE.as_str()).and_then(|range| {
            let (first, rest) = range.strip_prefix("bytes ")?.split_once('-')?;
            Some((first.parse::<u64>().ok()?, rest.split('/').next()?.parse::<u64>().ok()?))
        });
        match range {
            Some((first, last)) if first == self.position && last >= first => {
                Ok((first, (last - first).checked_add(1)))
            }
            // No other stretch of it was asked for.
            _ => Err(RegistryError::Status {
                host: self.host(),
                action: format!("continue {} at byte {}", self.what(), self.position),
                status: 206,
                detail: super::error::Detail::default(),
            }),
        }
    }

    fn broken(&self, source: io::Error) -> RegistryError {
        RegistryError::Broken { host: self.host(), attempts: self.failures, source }
    }

    /// Counts a failure; too many without progress between them are the end.
    fn note_failure(&mut self, source: io::Error) -> Result<(), RegistryError> {
        self.body = None;
        self.pace = Pace::default();
        if self.position - self.progress_at >= PROGRESS_BYTES {
            self.failures = 0;
        }
        self.progress_at = self.position;
        self.failures += 1;
        let patience = &self.connection.http.options.patience;
        if self.failures >= patience.attempts {
            return Err(self.broken(source));
        }
        tracing::info!(digest = self.descriptor.digest.short(), at = self.position, %source, "resuming");
        std::thread::sleep(patience.pause(self.failures));
        Ok(())
    }

    /// Some bytes, or `None` after a failure that leaves hope.
    fn try_read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, RegistryError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => match self.open() {
                Ok(body) => self.body.insert(body),
                Err(RegistryError::Broken { source, .. }) => {
                    return self.note_failure(source).map(|()| None);
                }
                Err(error) => return Err(error),
            },
        };
        let begun = Instant::now();
        let count = match body.read(buffer) {
            Ok(0) => return self.note_failure(io::ErrorKind::UnexpectedEof.into()).map(|()| None),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return self.note_failure(error).map(|()| None),
        };
        self.position += count as u64;
        self.pace.waited += begun.elapsed();
        self.pace.bytes += count as u64;
        let patience = &self.connection.http.options.patience;
        if self.pace.waited >= patience.stall {
            if self.pace.bytes < patience.stall_bytes && self.position < self.descriptor.size {
                let slow = io::Error::new(io::ErrorKind::TimedOut, "it sends next to nothing");
                self.note_failure(slow)?;
            } else {
                self.pace = Pace::default();
            }
        }
        Ok(Some(count))
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.descriptor.size - self.position;
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        loop {
            if self.failed || self.transfers.is_cancelled() {
                return Err(io::Error::other("the transfer was given up"));
            }
            match self.try_read(&mut buffer[..want]) {
                Ok(Some(count)) => return Ok(count),
                Ok(None) => {}
                Err(error) => {
                    self.failed = true;
                    return Err(self.transfers.fail(error));
                }
            }
        }
    }
}

/// A whole small blob, checked.
pub(crate) fn small_blob(
    connection: &Connection,
    repository: &str,
    descriptor: &Descriptor,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, RegistryError> {
    let host = || connection.domain.clone();
    if descriptor.size > limit {
        return Err(RegistryError::TooLarge { host: host(), what: what.into(), limit });
    }
    let transfers = Transfers::default();
    let mut data = Vec::new();
    let mut reader = BlobReader::new(connection, repository, descriptor, &transfers);
    if let Err(error) = reader.read_to_end(&mut data) {
        return Err(transfers.take_failure().unwrap_or_else(|| reader.broken(error)));
    }
    check(connection, descriptor, what, &data)?;
    Ok(data)
}

fn check(
    connection: &Connection,
    descriptor: &Descriptor,
    what: &str,
    data: &[u8],
) -> Result<(), RegistryError> {
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    hasher.update(data);
    let actual: Digest = hasher.finish();
    if actual != descriptor.digest {
        let (host, what) = (connection.domain.clone(), what.to_owned());
        let expected = descriptor.digest.clone();
        return Err(RegistryError::Mismatch { host, what, expected, actual });
    }
    Ok(())
}
