//! One container's life, whoever asks.

pub mod assets;
pub mod client;
pub mod exit;
pub mod kind;
pub mod logger;
pub mod metrics;
pub mod stages;
pub mod text;
pub mod time;
pub mod unix_path;
