//! Starts a process as the first, and only, one of a pid namespace of its own.
//!
//! Its end is the namespace's: nothing that it might have started outlives it. It sees no
//! other process, and as the namespace's init it is killed by SIGKILL from outside and by
//! the kernel's own signals (a fault, a forbidden system call), not by others that it does
//! not handle.

use std::{
    io,
    process::{Child, Command},
    thread,
};

/// Spawns `command` in a new pid namespace; the pid of the child is the caller's view.
///
/// The child's parent is a thread that ends here, so a child that asks to die with its
/// parent's thread (PR_SET_PDEATHSIG) cannot be started this way.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    thread::scope(|scope| {
        // `unshare` is about the children of one thread: a thread of its own keeps the
        // caller's other children where they belong.
        let starter = thread::Builder::new().name("starter".to_owned());
        let started = starter.spawn_scoped(scope, || {
            // SAFETY: changes the namespace of this thread's children, which are one.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } == -1 {
                return Err(io::Error::last_os_error());
            }
            command.spawn()
        })?;
        started.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
    })
}

/// Whether this process is the first of its pid namespace.
pub fn is_first() -> bool {
    std::process::id() == 1
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Stdio};

    use super::*;

    #[test]
    fn the_child_is_the_first_process_and_the_parents_children_are_as_before() {
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIP: a pid namespace needs root");
            return;
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$; read line"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = spawn(&mut shell).unwrap();
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        assert_ne!(namespace(child.id()), namespace(std::process::id()));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"1\n");
        let usual = Command::new("sh").args(["-c", "test $$ != 1"]).status().unwrap();
        assert!(usual.success());
    }
}
