//! `caisson-unpack`: a confined process that parses foreign data.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::process::ExitCode;

use caisson_rootfs::worker::{Files, is_started_by_caisson, serve};

const USAGE: &str = "\
caisson-unpack: unpacks image layers in a process without rights. Started by caisson and
containerd-shim-caisson-v2 with a socket as standard error; of no use by hand.";

fn main() -> ExitCode {
    if !is_started_by_caisson(std::io::stderr()) {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    // SAFETY: the three streams are open, as std sees to before main, and nothing here uses
    // them as streams; a panic's message on standard error becomes the last words that the
    // parent reports.
    let files = unsafe {
        Files {
            input: File::from_raw_fd(0),
            output: File::from_raw_fd(1),
            control: File::from_raw_fd(2),
        }
    };
    serve(files)
}
