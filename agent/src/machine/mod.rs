//! PID 1 of the machine: the emulated host in which Caisson runs where KVM cannot.
//!
//! ```text
//!   boot.rs ──► modules, mounts ──► supervisor.rs ──┬─ control port: query, shutdown
//!                                    (PID 1)        └─ session port: fork ─► session.rs
//!                                                                             │ handshake
//!                                                       child.rs ◄────────────┤
//!                                                       relay.rs ◄────────────┘
//! ```
//!
//! PID 1 stays single-threaded and small: it reaps, answers the control port, and forks one
//! process for each session, so that whatever happens to a session leaves it and the
//! others alone. The messages are those of [`caisson_agent_protocol::machine`].

mod boot;
mod channel;
mod child;
mod kvm;
mod modules;
mod mounts;
mod power;
mod relay;
mod session;
mod supervisor;
#[cfg(test)]
mod tests;
mod workdir;

pub use boot::main;
