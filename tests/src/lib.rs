//! End-to-end tests in plain verbs.
