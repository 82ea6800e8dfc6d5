//! A terminal and the person before it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

use super::patience;
use super::running::duplicate;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// A pseudo-terminal; what is shown on it is collected.
pub struct Pty {
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (sink, mut screen) = (Arc::clone(&shown), File::from(duplicate(&pty.master)));
        // Ends with the test program: the terminal is held open here.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { master: pty.master.into(), slave: pty.slave, shown }
    }

    pub(super) fn slave(&self) -> OwnedFd {
        duplicate(&self.slave)
    }

    /// The terminal's mode.
    pub fn mode(&self) -> Termios {
        tcgetattr(self.slave.as_fd()).expect("a terminal has a mode")
    }

    /// Presses keys.
    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// The window gets another size; the foreground processes are told.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is a terminal and `size` is the structure that TIOCSWINSZ reads.
        unsafe { set_window_size(self.master.as_raw_fd(), &size) }.expect("the window can be resized");
    }

    /// Waits until this text is on the screen.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let deadline = Instant::now() + patience(60);
        while !self.screen().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} is not on the screen: {:?}", self.screen());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that was shown.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }
}
