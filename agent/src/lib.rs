//! PID 1 in the guest: mounts, processes, streams.
//!
//! Read [`server`] for the loop, [`calls`] for what the shim can ask, [`container`] for
//! how one begins and ends, and [`child`] for what happens between fork and `execve`.

pub mod boot;
pub mod calls;
pub mod cgroup;
pub mod channel;
pub mod child;
pub mod command;
pub mod container;
pub mod copy_up;
pub mod credentials;
pub mod device_filter;
pub mod devices;
pub mod disk;
pub mod error;
pub mod kernel_settings;
pub mod lifecycle;
pub mod log;
pub mod machine;
pub mod mounts;
pub mod network;
pub mod overlays;
pub mod path;
pub mod process;
pub mod reaper;
pub mod relay;
pub mod report;
pub mod rootfs;
pub mod runtime;
pub mod server;
pub mod shares;
pub mod stamp;
pub mod stats;
pub mod stdio;
pub mod sys;
pub mod terminal;
pub mod tool;
pub mod transport;
pub mod user;
pub mod validate;
pub mod watch;
