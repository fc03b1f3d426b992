//! Foreign data is parsed by confined processes; this process only passes bytes on.
//!
//! ```text
//!           this process                 caisson-unpack            caisson-unpack
//! blob ─► count, digest ────────────────► decompress ─┐
//!            bounds, diff id ◄────────────────────────┘
//!               └───────────────────────────────────────────────► tar ─► layers/….erofs
//! ```
//!
//! Whom to believe: the digest, the diff id and the bounds are computed here, from the bytes
//! that pass. A decompressor that is taken over can only emit other bytes, which then have
//! another diff id. A converter that is taken over can only spoil the image of the layer it
//! was given: the layer that took it over, under that layer's own diff id.

mod error;
mod expand;
mod job;
mod layer;
mod process;
mod stream;
#[cfg(test)]
mod tests;
mod tree;
pub mod worker;

use std::path::{Path, PathBuf};

pub use self::error::{End, UnpackError};
pub(crate) use self::expand::expand;
pub(crate) use self::layer::unpack_layer;
pub(crate) use self::tree::unpack_tree;

/// The program that confines itself.
const PROGRAM: &str = "caisson-unpack";

/// Where the work is done.
#[derive(Clone, Debug)]
pub struct Unpacker(Place);

#[derive(Clone, Debug)]
enum Place {
    /// By the program of that name beside this one.
    #[cfg_attr(test, allow(dead_code, reason = "unit tests have no program beside them"))]
    Beside,
    Program(PathBuf),
    /// In a thread of this process, for tests of what is done rather than where.
    #[cfg(any(test, feature = "testing"))]
    Thread,
}

impl Unpacker {
    pub fn at(program: impl Into<PathBuf>) -> Unpacker {
        Unpacker(Place::Program(program.into()))
    }

    /// Without a process of its own, and so without confinement.
    #[cfg(any(test, feature = "testing"))]
    pub fn in_this_process() -> Unpacker {
        Unpacker(Place::Thread)
    }

    /// The program; `None`: a thread.
    fn program(&self) -> Result<Option<PathBuf>, UnpackError> {
        let path = match &self.0 {
            Place::Program(path) => path.clone(),
            Place::Beside => beside_this_program()
                .ok_or_else(|| UnpackError::Missing { path: PathBuf::from(PROGRAM) })?,
            #[cfg(any(test, feature = "testing"))]
            Place::Thread => return Ok(None),
        };
        if path.is_file() { Ok(Some(path)) } else { Err(UnpackError::Missing { path }) }
    }
}

impl Default for Unpacker {
    fn default() -> Unpacker {
        #[cfg(test)]
        return Unpacker(Place::Thread);
        #[cfg(not(test))]
        Unpacker(Place::Beside)
    }
}

fn beside_this_program() -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    let mut directory = this.parent()?;
    // Cargo puts tests one directory further down than programs.
    if directory.ends_with("deps") || directory.ends_with("examples") {
        directory = directory.parent().unwrap_or(Path::new("/"));
    }
    Some(directory.join(PROGRAM))
}
