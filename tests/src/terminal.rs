//! A user at a terminal: a pseudo-terminal with `caisson` on its other side.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use nix::pty::{OpenptyResult, Winsize, openpty};

pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    user_side: OwnedFd,
}

impl Terminal {
    /// Starts `command` with all three streams on a new terminal of this size.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a pseudo-terminal");
        let stdio = || slave.try_clone().expect("duplicate a descriptor");
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid and ioctl are async-signal-safe, and touch only the child.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("start the command on a terminal");
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().expect("duplicate a descriptor");
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end is EIO once the other side is closed.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new(), user_side: slave }
    }

    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("type");
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is a terminal and `size` is a valid winsize.
        let result = unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(result, 0, "resize the terminal");
    }

    /// Waits until the screen shows `text`, and returns everything seen so far.
    #[track_caller]
    pub fn shows(&mut self, text: &str, seconds: u64) -> &str {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} on the screen ({error}):\n{}", self.seen),
            }
        }
        &self.seen
    }

    /// Forgets what was seen, so that the next `shows` waits for new output.
    pub fn clear(&mut self) {
        self.seen.clear();
    }

    /// Waits for the command's end and returns its exit code.
    pub fn exit_code(mut self, seconds: u64) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the command") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            while let Ok(bytes) = self.screen.try_recv() {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            assert!(Instant::now() < deadline, "still runs; the screen:\n{}", self.seen);
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the terminal is back in its usual (canonical, echoing) mode.
    pub fn is_cooked(&self) -> bool {
        use nix::sys::termios::{LocalFlags, tcgetattr};
        let modes = tcgetattr(&self.user_side).expect("a terminal has modes").local_flags;
        modes.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }
}
