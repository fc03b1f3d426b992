//! Images to and from Debian's `docker-registry`, with `skopeo` as a second opinion.

mod access;
#[path = "../lifecycle/host.rs"]
#[allow(dead_code, unused_macros, unused_imports)]
mod host;
mod images;
mod server;
