//! The host's directories and files, served by virtio-fs: one filesystem for the VM, whose
//! root holds each by its index.
//!
//! It is mounted in the container's staging area, which the container leaves behind when it
//! changes to its own root; what is bound from it stays.

use std::{fs, os::fd::OwnedFd};

use caisson_agent_protocol::{ErrorKind, SHARES_TAG};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use crate::{
    error::{At, Kind, OsError},
    path::Root,
    sys,
};

/// In the staging area, which is the current directory.
const PLACE: &str = "shares";

#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("{index:?} is no index of a directory of the host")]
    Index { index: String },
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for ShareError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Index { .. } => ErrorKind::InvalidArgument,
            Self::Os(error) => error.kind(),
        }
    }
}

/// The mounted filesystem.
pub struct Shares(Root);

impl Shares {
    pub fn mount() -> Result<Self, ShareError> {
        fs::create_dir(PLACE).at(|| "make a place for the host's directories")?;
        // What is bound from it has its flags, until its own are set.
        sys::mount(SHARES_TAG, PLACE, "virtiofs", libc::MS_NODEV, "")
            .at(|| "mount the host's directories")?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(PLACE, flags, Mode::empty()).at(|| "open the host's directories")?;
        Ok(Self(Root::new(root)))
    }

    /// The one with this index.
    pub fn open(&self, index: &str) -> Result<OwnedFd, ShareError> {
        if index.is_empty() || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ShareError::Index { index: index.to_owned() });
        }
        let opened = self.0.open_no_links(index, OFlag::O_PATH);
        Ok(opened.at(|| format!("open the host's directory with index {index}"))?)
    }
}
