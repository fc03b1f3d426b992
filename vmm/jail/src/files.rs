//! Closes what the vmm was not meant to have.

use std::os::fd::RawFd;

use super::{JailError, check};

/// Closes every file but those in `keep` and the standard streams. Standard input and
/// output become /dev/null unless they are kept; standard error stays what the parent
/// made it, for the last words of a panic.
pub fn keep_only(keep: &[RawFd]) -> Result<(), JailError> {
    replace_standard_streams(keep)?;
    for (first, last) in gaps(keep) {
        // SAFETY: no object owns a file in a gap: the process has just begun, and owns
        // only what its configuration names.
        check("close the other files", unsafe { libc::close_range(first, last, 0) })?;
    }
    Ok(())
}

fn replace_standard_streams(keep: &[RawFd]) -> Result<(), JailError> {
    const STEP: &str = "replace the standard streams";
    // SAFETY: opens a file by a constant path; the duplicate replaces a stream that std
    // treats as always open, and it stays open.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        check(STEP, null)?;
        for stream in [0, 1] {
            if !keep.contains(&stream) && null != stream {
                check(STEP, libc::dup2(null, stream))?;
            }
        }
    }
    Ok(())
}

/// The ranges of numbers above the standard streams that `keep` leaves, bounds included.
fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    kept.extend([0, 1, 2]);
    kept.sort_unstable();
    kept.dedup();
    let ends = kept.iter().skip(1).map(|&next| next - 1).chain([u32::MAX]);
    kept.iter().map(|&fd| fd + 1).zip(ends).filter(|(first, last)| first <= last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_between_and_behind_the_kept_files_is_closed() {
        assert_eq!(gaps(&[]), [(3, u32::MAX)]);
        assert_eq!(gaps(&[5, 3, 9, 2]), [(4, 4), (6, 8), (10, u32::MAX)]);
        assert_eq!(gaps(&[3, 4, 5]), [(6, u32::MAX)]);
    }
}
