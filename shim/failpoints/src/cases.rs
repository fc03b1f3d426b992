//! Every step of a table failing once, for the tests that go through it.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::steps::{Outcome, Step};

/// One failure to inject; it displays as the value of `CAISSON_FAIL`.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub step: &'static Step,
    pub action: &'static str,
    /// Which pass of the step fails, from 1 on.
    pub nth: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.step.name, self.action, self.nth)
    }
}

/// Each step with a kill, and with an error if it can fail, at each of the `times` that it
/// is passed.
pub fn of(steps: impl Iterator<Item = &'static Step>, times: impl Fn(&Step) -> usize) -> Vec<Case> {
    let of_step = |step: &'static Step| {
        let actions: &[&str] = match step.outcome {
            Outcome::OnlyDies => &["kill"],
            Outcome::Fails | Outcome::Tolerated => &["enospc", "kill"],
        };
        (1..=times(step))
            .flat_map(move |nth| actions.iter().map(move |&action| Case { step, action, nth }))
    };
    steps.flat_map(of_step).collect()
}

/// Tries every case, `at_once` at a time: most of a life is spent waiting. Panics at the
/// end with the cases that did.
pub fn try_all(cases: &[Case], at_once: usize, try_case: fn(Case)) {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(&case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if thread::spawn(move || try_case(case)).join().is_err() {
                        failures.lock().expect("nobody panics with it").push(case.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panics with it");
    assert!(failures.is_empty(), "{failures:?}; their panics are above");
}
