//! A hundred commands at once that all want the same container.

use std::{process::Child, thread, time::Duration};

use crate::host::{Outcome, eventually, host};

const COMMANDS: usize = 100;

const KINDS: [&[&str]; 8] = [
    &["run", "-d", "--name", "one", "tools", "sleep", "1000"],
    &["run", "--rm", "--name", "one", "tools", "sh", "-c", "sleep 0.1"],
    &["exec", "one", "true"],
    &["kill", "one"],
    &["start", "one"],
    &["stop", "-t", "1", "one"],
    &["rm", "-f", "one"],
    &["ps", "-a"],
];

#[test]
fn a_hundred_mixed_commands_on_one_name_all_end_and_leave_nothing() {
    let host = host!();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut running: Vec<(&[&str], Child)> = Vec::new();
    for _ in 0..COMMANDS {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let args = KINDS[(seed % KINDS.len() as u64) as usize];
        running.push((args, host.spawn(args)));
        thread::sleep(Duration::from_millis(seed >> 8 & 15));
    }
    let mut succeeded = 0;
    for (args, child) in running {
        let outcome = Outcome::of(args, child);
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        // 125 to 127 and 1 as documented; 128 and more when another removed it meanwhile.
        assert!([0, 1, 125, 126, 127, 137, 143].contains(&outcome.code), "{outcome:?}");
        succeeded += usize::from(outcome.code == 0);
    }
    assert!(succeeded > COMMANDS / 10, "{succeeded}");
    host.caisson(&["rm", "-f", "one"]).exited_with(0);
    host.nothing_left();
    eventually("nothing is listed", || host.caisson(&["ps", "-aq"]).stdout.is_empty());
    host.caisson(&["rmi", "tools"]).exited_with(0);
}
