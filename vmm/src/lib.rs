//! Builds and runs one microVM from a validated [`spec::VmSpec`].

pub mod config;
pub mod control;
pub mod spec;
pub mod virtio;
