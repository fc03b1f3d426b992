//! One container's life, whoever asks.

pub mod assets;
pub mod stages;
