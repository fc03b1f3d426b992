//! PID 1 in the guest: mounts, processes, streams.
