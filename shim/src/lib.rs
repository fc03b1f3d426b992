//! One container's life, whoever asks.

pub mod agent_client;
pub mod assets;
pub mod cgroup;
pub mod client;
pub mod container;
pub mod containerd;
pub mod error;
pub mod events;
pub mod exit;
pub mod kind;
pub mod logger;
pub mod metrics;
pub mod network;
mod number_lease;
pub mod plan;
pub mod process;
pub mod rootfs;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod stages;
pub mod stdio;
pub mod task;
pub mod text;
pub mod time;
pub mod unix_path;
pub mod vm;
