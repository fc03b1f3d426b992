//! Docker-shaped commands.

pub mod config;
pub mod format;
pub mod globals;
pub mod names;
pub mod options;
pub mod spec;

pub use globals::Globals;
