//! Archives that are right in most places: read to the end or refused, never past a cap.

#![no_main]

#[path = "support/archive.rs"]
mod archive;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: archive::Archive| {
    caisson_rootfs::fuzzing::read_tar(&archive.bytes());
});
