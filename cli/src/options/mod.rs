//! From the flags of `run` and `create` to a [`crate::config::ContainerConfig`].

pub mod capabilities;
pub mod environment;
pub mod flags;
pub mod logging;
pub mod mounts;
pub mod network;
pub mod rates;
pub mod refused;
pub mod resolve;
pub mod signal;
pub mod values;

pub use flags::ContainerFlags;
pub use resolve::{OptionError, resolve};
