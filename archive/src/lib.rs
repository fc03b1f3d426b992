//! Tar archives: read strictly, written in one way, and carried out of and into directory
//! trees without ever leaving them.
//!
//! ```text
//!   tree ── pack ──► tar::Writer ──► bytes ──► tar::Reader ── unpack ──► tree
//! ```

pub mod compare;
mod directory;
pub mod name;
pub mod pack;
pub mod placing;
pub mod tar;
pub mod unpack;
