//! Measurements with recorded budgets.
//!
//! `benches/budgets.json` holds what may be spent. A bench prints what it measured beside
//! the budget and fails when one is exceeded, so a regression is a failed command and
//! never a flaky test.

pub mod bench;
pub mod boot;
pub mod budgets;
pub mod initramfs;
pub mod isolation;
pub mod machine;
pub mod memory;
pub mod process;
