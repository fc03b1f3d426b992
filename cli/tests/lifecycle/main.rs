//! The commands end to end, with containers that are processes of this host.
//!
//! Each test has a state of its own and runs `caisson` in a mount namespace in which it
//! believes to be the machine, so that it does not go to another.

mod errors;
mod fault_steps;
mod faults;
mod faults_parallel;
mod faults_state;
mod host;
mod images;
mod life;
mod streams;
mod system;
mod terminal;
mod volumes;
