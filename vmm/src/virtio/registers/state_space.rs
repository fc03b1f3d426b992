//! Every state that writes can bring the registers into, whatever their order: from each,
//! every write of an alphabet is tried and its outcome compared with the rules.
//!
//! The alphabet is small, but has for each register a value of every kind (good, bad, at
//! the edge), so the states are few and a sequence may be of any length.

use std::collections::{HashSet, VecDeque};

use super::*;

const FEATURE: u32 = 1 << 5;
const MAX: u16 = 4;

const TAKEN: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const ALL: u32 = TAKEN | DRIVER_OK;

const ALPHABET: [(u64, u32); 41] = [
    (offset::STATUS, 0),
    (offset::STATUS, ACKNOWLEDGE),
    (offset::STATUS, DRIVER),
    (offset::STATUS, ACKNOWLEDGE | DRIVER),
    (offset::STATUS, DRIVER_OK),
    (offset::STATUS, FEATURES_OK),
    (offset::STATUS, TAKEN),
    (offset::STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK),
    (offset::STATUS, ALL),
    (offset::STATUS, FAILED),
    (offset::STATUS, ALL | FAILED),
    (offset::STATUS, NEEDS_RESET),
    (offset::STATUS, TAKEN | NEEDS_RESET),
    (offset::STATUS, ALL | 0x10),
    (offset::STATUS, u32::MAX),
    (offset::DRIVER_FEATURES_SELECT, 0),
    (offset::DRIVER_FEATURES_SELECT, 1),
    (offset::DRIVER_FEATURES_SELECT, 2),
    (offset::DRIVER_FEATURES, 0),
    (offset::DRIVER_FEATURES, 1),
    (offset::DRIVER_FEATURES, FEATURE),
    (offset::DRIVER_FEATURES, u32::MAX),
    (offset::QUEUE_SELECT, 0),
    (offset::QUEUE_SELECT, 1),
    (offset::QUEUE_SIZE, 0),
    (offset::QUEUE_SIZE, 3),
    (offset::QUEUE_SIZE, MAX as u32),
    (offset::QUEUE_SIZE, 8),
    (offset::QUEUE_SIZE, 0x1_0004),
    (offset::QUEUE_DESC_LOW, 8),
    (offset::QUEUE_DESC_LOW, 16),
    (offset::QUEUE_AVAIL_LOW, 1),
    (offset::QUEUE_AVAIL_LOW, 2),
    (offset::QUEUE_USED_LOW, 2),
    (offset::QUEUE_USED_LOW, 4),
    (offset::QUEUE_READY, 0),
    (offset::QUEUE_READY, 1),
    (offset::QUEUE_READY, 2),
    (offset::QUEUE_NOTIFY, 0),
    (offset::MAGIC, 1),
    (offset::INTERRUPT_ACK, 3),
];

fn identity() -> Identity {
    Identity { device_id: 2, features: FEATURE.into(), queue_max_sizes: vec![MAX] }
}

/// What must be true of any state.
fn check_state(registers: &Registers) {
    let steps = registers.status & !FAILED;
    let in_order = [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, TAKEN, ALL];
    assert!(in_order.contains(&steps), "a step was skipped: {registers:?}");
    if steps & FEATURES_OK != 0 {
        let features = registers.driver_features;
        let offered = u64::from(FEATURE) | VERSION_1;
        assert!(features & !offered == 0 && features & VERSION_1 != 0, "{registers:?}");
    }
    for queue in &registers.queues {
        assert!([0, 1, 2, 4].contains(&queue.size), "{registers:?}");
        if queue.ready {
            assert!(steps & FEATURES_OK != 0 && queue.size != 0, "{registers:?}");
            assert_eq!(queue.desc_table % 16 + queue.avail_ring % 2 + queue.used_ring % 4, 0);
        }
    }
}

/// What must be true of a write in the state `before`.
fn check_write(before: &Registers, (at, value): (u64, u32), effect: Effect, after: &Registers) {
    let context = || format!("{value:#x} to {at:#x}: {effect:?}\n{before:?}\n{after:?}");
    // The one way to an activation.
    let activates =
        before.status == TAKEN && at == offset::STATUS && value & FAILED == 0 && value & ALL == ALL;
    assert_eq!(effect == Effect::Activate, activates, "{}", context());
    assert_eq!(!before.is_driver_ok() && after.is_driver_ok(), activates, "{}", context());

    let resets = at == offset::STATUS && value == 0;
    assert_eq!(effect == Effect::Reset, resets, "{}", context());
    if resets {
        assert_eq!(*after, Registers::new(1));
        return;
    }
    if effect == Effect::Refused && at != offset::STATUS {
        assert_eq!(before, after, "a refused write changed something: {}", context());
    }
    assert_eq!(before.status & !after.status, 0, "a bit was cleared: {}", context());
    // A driver that failed can only reset.
    if before.status & FAILED != 0 {
        assert_eq!(before.status, after.status, "{}", context());
    }
    // Features are the driver's between DRIVER and FEATURES_OK, queues from there to
    // DRIVER_OK, and their addresses and sizes until they are ready.
    if before.status != ACKNOWLEDGE | DRIVER {
        assert_eq!(before.driver_features, after.driver_features, "{}", context());
    }
    for (queue, now) in before.queues.iter().zip(&after.queues) {
        if before.status != TAKEN {
            assert_eq!(queue, now, "{}", context());
        }
        if queue.ready {
            assert_eq!(QueueRegisters { ready: true, ..now.clone() }, *queue, "{}", context());
        }
    }
}

#[test]
fn no_order_of_writes_breaks_the_rules() {
    let identity = identity();
    let start = Registers::new(1);
    let mut seen = HashSet::from([start.clone()]);
    let mut waiting = VecDeque::from([start]);
    let mut activations = 0;
    while let Some(before) = waiting.pop_front() {
        for write in ALPHABET {
            let mut after = before.clone();
            let effect = after.write(write.0, write.1, &identity);
            check_state(&after);
            check_write(&before, write, effect, &after);
            activations += usize::from(effect == Effect::Activate);
            if seen.insert(after.clone()) {
                waiting.push_back(after);
            }
        }
    }
    // The space was walked, and not only its first states.
    assert!(seen.len() > 1000 && activations > 100, "{} {activations}", seen.len());
}
