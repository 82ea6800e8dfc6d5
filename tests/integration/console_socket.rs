//! --console-socket: the upper end of the terminal goes to whoever listens.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::pty::Winsize;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, patience};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// The message's text and the terminal.
fn receive(listener: &UnixListener) -> (String, File) {
    let (stream, _) = listener.accept().unwrap();
    let mut text = [0; 4096];
    let mut space = nix::cmsg_space!([i32; 2]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut text)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
        let mut descriptors = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                descriptors.extend(received);
            }
        }
        (message.bytes, descriptors)
    };
    assert_eq!(descriptors.len(), 1);
    // SAFETY: the descriptor was just received and nothing else owns it.
    let terminal = unsafe { File::from_raw_fd(descriptors[0]) };
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "one message, then the end");
    (String::from_utf8_lossy(&text[..length]).into_owned(), terminal)
}

/// Reads until this text has come, and gives all of it.
fn shows(terminal: &mut File, text: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), [0; 1024]);
    let deadline = Instant::now() + patience(30);
    while !seen.contains(text) {
        assert!(Instant::now() < deadline, "{text:?} did not come: {seen:?}");
        let count = terminal.read(&mut buffer).unwrap_or_else(|error| panic!("{error}; {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}

#[test]
fn the_terminal_is_sent_resized_and_used() {
    let mut bundle = Bundle::new();
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    bundle.args(&[
        "/bin/sh",
        "-c",
        "stty size; trap 'stty size' WINCH; while read line; do echo \"got $line\"; done; exit 5",
    ]);
    let container = bundle.create(&["--console-socket", socket.to_str().unwrap()]);
    let (name, mut terminal) = receive(&listener);
    assert!(name.starts_with("/dev/pts/"), "{name}");
    container.start();
    shows(&mut terminal, "33 99\r\n");
    terminal.write_all(b"word\n").unwrap();
    shows(&mut terminal, "got word\r\n");
    let started = Instant::now();
    resize(&terminal, 50, 132);
    // The shell takes the signal when it reads the next line.
    std::thread::sleep(Duration::from_millis(100));
    terminal.write_all(b"again\n").unwrap();
    shows(&mut terminal, "50 132\r\n");
    assert!(started.elapsed() < patience(10));
    // Ctrl-D, by the guest's line discipline.
    terminal.write_all(b"\x04").unwrap();
    container.reaches("stopped");
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is a terminal and `size` is the structure that TIOCSWINSZ reads.
    unsafe { set_window_size(terminal.as_raw_fd(), &size) }.unwrap();
}

/// From TIOCSWINSZ on the host to SIGWINCH in the guest, and back again with what a program there says of it.
#[test]
fn a_new_size_is_there_at_once() {
    const ROUNDS: u16 = 9;
    let mut bundle = Bundle::new();
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 1000 & wait $!; done";
    bundle.args(&["/bin/sh", "-c", script]);
    let container = bundle.create(&["--console-socket", socket.to_str().unwrap()]);
    let (_, mut terminal) = receive(&listener);
    container.start();
    shows(&mut terminal, "ready\r\n");
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let begin = Instant::now();
            resize(&terminal, 20 + round, 80);
            shows(&mut terminal, &format!("{} 80\r\n", 20 + round));
            begin.elapsed()
        })
        .collect();
    times.sort();
    let median = times[times.len() / 2];
    println!("a new size of the terminal is there and back in {median:?}, of {ROUNDS}");
    // The bound of 100 ms is for a machine that is not emulated; this one forks a program within it, too.
    assert!(median < patience(1), "{times:?}");
}

/// As docker and containerd have it for `exec -it`.
#[test]
fn a_detached_exec_sends_its_terminal() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.run_detached(&[]);
    let (socket, file) = (bundle.path("console"), bundle.path("pid"));
    let listener = UnixListener::bind(&socket).unwrap();
    let flags =
        ["-d", "-t", "--console-socket", socket.to_str().unwrap(), "--pid-file", file.to_str().unwrap()];
    let script = "trap 'stty size; exit 6' WINCH; tty; read line; echo \"<$line>\"; while :; do sleep 1000 & wait $!; done";
    container.exec(&flags, &["/bin/sh", "-c", script]).says(&[]);
    let (name, mut terminal) = receive(&listener);
    assert!(name.starts_with("/dev/pts/"), "{name}");
    shows(&mut terminal, "/dev/pts/0\r\n");
    terminal.write_all(b"word\n").unwrap();
    shows(&mut terminal, "<word>\r\n");
    resize(&terminal, 44, 111);
    shows(&mut terminal, "44 111\r\n");
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(container.exit_code(pid), 6);
    // Without its monitor the process ends, too, with the container at the latest.
    container.exec(&flags, &["/bin/sleep", "1000"]).says(&[]);
    let (_, terminal) = receive(&listener);
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(container.exit_code(pid), 128 + 9);
    drop(terminal);
    // Without a socket nobody would hold it.
    container.exec(&["-d", "-t"], &["/bin/true"]).fails_with(255, &["cannot allocate tty"]);
}
