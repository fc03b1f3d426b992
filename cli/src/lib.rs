//! Docker-shaped commands.

pub mod globals;

pub use globals::Globals;
