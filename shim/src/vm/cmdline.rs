//! The guest kernel's command line. The vmm appends the devices.

/// The environment variable that asks for the kernel's own messages on the console.
const CONSOLE_VARIABLE: &str = "CAISSON_GUEST_CONSOLE";

/// What every boot has, each with its reason.
const ALWAYS: [&str; 6] = [
    // Panics and early failures have a way out.
    "console=ttyS0",
    // A panic ends the VM at once, by the i8042 that the vmm emulates.
    "panic=-1",
    "reboot=k",
    // KVM's clock and time stamp counter are good; watching and calibrating them is not
    // needed.
    "tsc=reliable",
    "no_timer_check",
    // The pool is seeded by RDRAND and virtio-rng; early users need not wait.
    "random.trust_cpu=on",
];

/// Every character on the console is an exit; errors still come through.
const QUIET: [&str; 1] = ["quiet"];

const VERBOSE: [&str; 2] = ["earlyprintk=ttyS0", "loglevel=7"];

/// The command line, as verbose as the environment asks.
pub(super) fn command_line() -> String {
    let verbose = std::env::var(CONSOLE_VARIABLE).is_ok_and(|value| value == "verbose");
    let level: &[&str] = if verbose { &VERBOSE } else { &QUIET };
    [&ALWAYS, level].concat().join(" ")
}
