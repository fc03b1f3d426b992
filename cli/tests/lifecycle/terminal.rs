//! A user at a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    sync::{Arc, Mutex},
    thread,
};

use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

use crate::host::{Host, eventually, host};

/// A pseudo-terminal with a command on its other side.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    slave: OwnedFd,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: 37, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let slave = || pty.slave.try_clone().unwrap();
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(pty.master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut reader, shown) = (keyboard.try_clone().unwrap(), screen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, keyboard, screen, slave: pty.slave }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        eventually(&format!("{text:?} on the screen"), || {
            self.screen.lock().unwrap().contains(text)
        });
    }

    fn clear(&self) {
        self.screen.lock().unwrap().clear();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize.
        unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    }

    fn is_cooked(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }
}

fn shell(host: &Host, flags: &[&str]) -> Terminal {
    Terminal::start(host.command(&[&["run", "-it"], flags, &["tools", "sh"]].concat()))
}

#[test]
fn a_terminal_has_a_size_and_is_given_back() {
    let host = host!();
    let mut terminal = shell(&host, &["--rm"]);
    terminal.shows("# ");
    assert!(!terminal.is_cooked());
    terminal.type_in("stty size\n");
    terminal.shows("37 101");
    terminal.resize(80, 24);
    terminal.type_in("sleep 0.5; stty size\n");
    terminal.shows("24 80");
    terminal.clear();
    // What the terminal echoes may not have been executed yet.
    terminal.type_in("sh -c 'echo on-$((1+1)); exec sleep 1000'\n");
    terminal.shows("on-2");
    terminal.type_in("\u{3}");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(5));
    assert!(terminal.is_cooked());
    host.nothing_left();
}

#[test]
fn keys_detach_and_the_container_goes_on() {
    let host = host!();
    let mut terminal = shell(&host, &["--name", "left"]);
    terminal.shows("# ");
    terminal.type_in("\u{10}\u{11}");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(terminal.is_cooked());
    host.caisson(&["ps"]).succeeded().showed("left");
    let mut attached = Terminal::start(host.command(&["attach", "left"]));
    thread::sleep(std::time::Duration::from_millis(500));
    attached.type_in("echo again-$((1+1)); exit 6\n");
    attached.shows("again-2");
    assert_eq!(attached.child.wait().unwrap().code(), Some(6));
    assert!(attached.is_cooked());
    host.caisson(&["logs", "left"]).succeeded().showed("again-2");
    host.caisson(&["rm", "left"]).succeeded();
    host.nothing_left();
}

#[test]
fn an_exec_has_a_terminal_too() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "web", "tools", "sleep", "1000"]).succeeded();
    let mut terminal = Terminal::start(host.command(&["exec", "-it", "web", "sh"]));
    terminal.shows("# ");
    terminal.type_in("stty size; exit 3\n");
    terminal.shows("37 101");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(3));
    assert!(terminal.is_cooked());
    host.caisson(&["rm", "-f", "web"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_terminal_that_hangs_up_leaves_the_container_running() {
    let host = host!();
    let mut terminal = shell(&host, &["--rm", "--name", "left"]);
    // The prompt may come before the command has seen the start's end; input goes on after.
    terminal.type_in("echo on-$((1+1))\n");
    terminal.shows("on-2");
    let pid = nix::unistd::Pid::from_raw(terminal.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    assert_eq!(terminal.child.wait().unwrap().code(), Some(129));
    assert!(terminal.is_cooked());
    host.caisson(&["ps"]).succeeded().showed("left");
    host.caisson(&["stop", "-t", "0", "left"]).succeeded();
    host.nothing_left();
}
