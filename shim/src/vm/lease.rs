//! A user id of its own for each VM.

use std::{io, path::Path};

use caisson_failpoints::{hit, steps};

use crate::number_lease::NumberLease;

/// The first id, and how many there are. No distribution assigns them.
const FIRST_UID: u32 = 1_000_000;
const COUNT: u32 = 65_536;

const FILE: &str = "uids.lock";

/// A user id that no other VM of this state directory has, until it is dropped.
#[derive(Debug)]
pub(super) struct UidLease {
    pub(super) uid: u32,
    _lease: NumberLease,
}

impl UidLease {
    pub(super) fn take(state: &Path, vm: &str) -> io::Result<Self> {
        hit(&steps::SHIM_VM_LEASE)?;
        let lease = NumberLease::take(&state.join(FILE), COUNT, vm)?;
        let in_use = io::ErrorKind::ResourceBusy;
        let lease =
            lease.ok_or_else(|| io::Error::new(in_use, "every user id for VMs is in use"))?;
        Ok(Self { uid: FIRST_UID + lease.number, _lease: lease })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_free_again() {
        let state = tempfile::tempdir().unwrap();
        let first = UidLease::take(state.path(), "vm").unwrap();
        let second = UidLease::take(state.path(), "vm").unwrap();
        assert_ne!(first.uid, second.uid);
        assert!((FIRST_UID..FIRST_UID + COUNT).contains(&first.uid));
        let uid = first.uid;
        drop(first);
        assert_eq!(UidLease::take(state.path(), "vm").unwrap().uid, uid);
    }
}
