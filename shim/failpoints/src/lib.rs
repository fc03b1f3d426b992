//! Named steps at which tests make a program fail, as disks, processes and hosts do.
//!
//! Code calls [`hit`] where a real operation may fail, with a step of the table
//! ([`steps`]), and [`pass`] where nothing can fail but the process may die:
//!
//! ```
//! use caisson_failpoints::{hit, steps};
//!
//! fn write_journal() -> std::io::Result<()> {
//!     hit(&steps::SHIM_VM_JOURNAL_WRITE)?;
//!     // … the write itself
//!     Ok(())
//! }
//! # write_journal().unwrap();
//! ```
//!
//! Without the feature `active` both are empty and inline: no code, no environment
//! variable, no name in the program. The crates of the workspace enable it by a
//! dev-dependency, so that their tests and what those start have it and nothing else does.
//!
//! | variable | meaning |
//! |---|---|
//! | `CAISSON_FAIL=STEP=ACTION[:NTH]` | do this when the process comes to the step the NTH time (first: 1) |
//! | `CAISSON_FAIL_LOG=FILE` | append the name of every step passed, with `!` where the action was taken |
//!
//! The actions: `eio`, `enospc`, `emfile`, `enomem`, `eacces` (an I/O error), `panic`,
//! `kill` (SIGKILL to itself), `pause` (until it is killed from outside).

#[cfg(feature = "active")]
mod active;
#[cfg(feature = "active")]
pub mod cases;
pub mod steps;

#[cfg(feature = "active")]
pub use active::{hit, pass};
pub use steps::{Outcome, Step};

/// A step that may fail: the injected error, if this is the one.
#[cfg(not(feature = "active"))]
#[inline(always)]
pub const fn hit(_: &Step) -> std::io::Result<()> {
    Ok(())
}

/// A step that cannot fail, but at which the process may die.
#[cfg(not(feature = "active"))]
#[inline(always)]
pub const fn pass(_: &Step) {}

/// Whether this build has fail points.
pub const ACTIVE: bool = cfg!(feature = "active");
