//! The confined process: one order, one answer, nothing else.
//!
//! `caisson-unpack` confines itself before it reads the first foreign byte. It owns three
//! files and is given a scratch file; whatever the foreign data makes of it, it can write to
//! those and end.

mod confine;
mod filter;

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use self::confine::confine;
use super::job::{Answer, Confinement, Job, MAX_LINE_BYTES, Order, Report, chain, tamed};
use crate::compress::Compression;
use crate::erofs::ErofsError;
use crate::layer::{LayerError, read_layer};
use crate::limits::Limits;
use crate::tar::TarError;
use crate::tree_walk::{WalkError, walk_tree};

/// What the process is given.
pub struct Files {
    /// Foreign data, or a directory.
    pub input: File,
    pub output: File,
    /// A socket, which is read and written as any file is.
    pub control: File,
}

/// Takes an order, carries it out and answers.
pub fn serve(files: Files) -> ExitCode {
    let Files { input, output, mut control } = files;
    let (order, scratch) = match receive(&control) {
        Ok(received) => received,
        // Whoever started this is gone, or is not who should.
        Err(_) => return ExitCode::from(2),
    };
    let input = match confine(&order, input, scratch.as_ref()) {
        Ok(input) => input,
        Err(error) => return reply(&mut control, &Answer::Unconfined(chain(&error))),
    };
    let answer = match work(order.job, input, output, scratch, &mut control) {
        Ok(report) => Answer::Done(report),
        Err(Failure::Unasked) => return ExitCode::SUCCESS,
        Err(Failure::Refused(message)) => Answer::Refused(tamed(&message)),
        Err(Failure::Disk(error)) => Answer::Disk(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    reply(&mut control, &answer)
}

fn reply(control: &mut File, answer: &Answer) -> ExitCode {
    let mut line = serde_json::to_vec(answer).expect("an answer is plain data");
    line.push(b'\n');
    match control.write_all(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The order and the scratch file that comes with it.
fn receive(control: &File) -> io::Result<(Order, Option<File>)> {
    let mut line = vec![0; MAX_LINE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut filled = {
        let mut buffers = [IoSliceMut::new(&mut line)];
        recvmsg(control, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes
    };
    let mut scratch = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message {
            scratch = files.next().map(File::from);
        }
    }
    while filled > 0 && filled < line.len() && line[filled - 1] != b'\n' {
        match (&mut &*control).read(&mut line[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok((serde_json::from_slice(&line[..filled])?, scratch))
}

enum Failure {
    /// The other side has hung up: there is nobody to tell.
    Unasked,
    Refused(String),
    Disk(io::Error),
}

fn work(
    job: Job,
    input: File,
    output: File,
    scratch: Option<File>,
    control: &mut File,
) -> Result<Report, Failure> {
    let scratch = scratch.ok_or(Failure::Unasked);
    match job {
        Job::Decompress { compression, window_log } => {
            decompress(compression, window_log, input, output)
        }
        Job::Layer { limits } => convert_layer(input, &output, scratch?, control, &limits),
        Job::Tree { limits, uuid } => {
            let walked = walk_tree(OwnedFd::from(input), &output, scratch?, uuid, &limits)?;
            let (inodes, file_bytes) = (walked.inodes, walked.file_bytes);
            Ok(Report { inodes, file_bytes, ..Report::default() })
        }
    }
}

fn decompress(
    compression: Compression,
    window_log: u32,
    input: File,
    mut output: File,
) -> Result<Report, Failure> {
    let refused =
        |error: io::Error| Failure::Refused(format!("it cannot be decompressed: {error}"));
    let mut decoder = compression.decoder(input, window_log).map_err(refused)?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => return Ok(Report::default()),
            Ok(count) => output.write_all(&buffer[..count]).map_err(|_| Failure::Unasked)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(error)),
        }
    }
}

fn convert_layer(
    input: File,
    output: &File,
    scratch: File,
    control: &mut File,
    limits: &Limits,
) -> Result<Report, Failure> {
    let contents = read_layer(input, output, scratch, limits)?;
    let opaque = contents.opaque;
    // Without this the input has ended, but was not whole.
    let mut uuid = [0; 16];
    control.read_exact(&mut uuid).map_err(|_| Failure::Unasked)?;
    let info = contents.write(uuid).map_err(LayerError::from)?;
    Ok(Report { opaque, inodes: info.inodes, file_bytes: 0 })
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Failure {
        match error {
            LayerError::Erofs(error) => error.into(),
            // The other side's end of the pipe.
            LayerError::Tar(TarError::Io(error)) => Failure::Refused(error.to_string()),
            error => Failure::Refused(chain(&error)),
        }
    }
}

impl From<WalkError> for Failure {
    fn from(error: WalkError) -> Failure {
        match error {
            WalkError::Erofs(error) => error.into(),
            error => Failure::Refused(chain(&error)),
        }
    }
}

impl From<ErofsError> for Failure {
    fn from(error: ErofsError) -> Failure {
        match error {
            ErofsError::Write(error) => Failure::Disk(error),
            error => Failure::Refused(chain(&error)),
        }
    }
}

/// Whether the files that the process was started with are what an order needs: people who
/// start it by hand are told what it is.
pub fn is_started_by_caisson(control: impl AsFd) -> bool {
    rustix::net::sockopt::socket_domain(control)
        .is_ok_and(|domain| domain == rustix::net::AddressFamily::UNIX)
}

/// For orders that a thread carries out.
fn is_unconfined(order: &Order) -> bool {
    order.confinement == Confinement::None
}
