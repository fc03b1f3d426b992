//! The guest kernel's command line. The vmm appends the devices.

/// The environment variable that asks for the kernel's own messages on the console.
const CONSOLE_VARIABLE: &str = "CAISSON_GUEST_CONSOLE";

/// What every boot has, each with its reason.
const ALWAYS: [&str; 9] = [
    // Panics and early failures have a way out; quiet boots write nothing to it.
    "console=ttyS0",
    // A panic ends the VM at once, by the i8042 that the vmm emulates.
    "panic=-1",
    "reboot=k",
    // That i8042 has no keyboard and no mouse: probing for them takes a second.
    "i8042.noaux",
    "i8042.nokbd",
    // KVM's clock and time stamp counter are good; calibrating them again takes long.
    "tsc=reliable",
    "no_timer_check",
    // The pool is seeded by RDRAND and virtio-rng; early users need not wait.
    "random.trust_cpu=on",
    // Nothing is ever loaded into this kernel.
    "nomodule",
];

/// Each line on the console is an exit for every few bytes; errors still come through.
const QUIET: [&str; 2] = ["quiet", "loglevel=3"];

/// The command line, as verbose as the environment asks.
pub(super) fn command_line() -> String {
    let verbose = std::env::var(CONSOLE_VARIABLE).is_ok_and(|value| value == "verbose");
    let level: &[&str] = if verbose { &["loglevel=7"] } else { &QUIET };
    [&ALWAYS, level].concat().join(" ")
}
