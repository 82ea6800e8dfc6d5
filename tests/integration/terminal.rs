//! terminal: true, when rt's own streams are a terminal.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, Pty};

fn bundle(script: &str) -> Bundle {
    let mut bundle = Bundle::new();
    bundle.config["process"]["terminal"] = json!(true);
    bundle.args(&["/bin/sh", "-c", script]);
    bundle
}

#[test]
fn the_process_has_a_terminal_of_the_same_size() {
    let pty = Pty::new(37, 123);
    let mode = pty.mode();
    let bundle = bundle("test -t 0 && test -t 1 && test -t 2 && tty && stty size && echo over");
    bundle.call().terminal(&pty).end().code(0);
    pty.shows("/dev/pts/0\r\n37 123\r\nover\r\n");
    assert_eq!(pty.mode(), mode);
}

#[test]
fn the_size_follows_the_window() {
    let pty = Pty::new(24, 80);
    let bundle = bundle(
        "trap 'stty size' WINCH; trap 'exit 4' TERM; echo ready; while :; do sleep 1000 & wait $!; done",
    );
    let running = bundle.call().terminal(&pty).start();
    pty.shows("ready\r\n");
    for (rows, columns) in [(50, 132), (10, 20)] {
        pty.resize(rows, columns);
        pty.shows(&format!("{rows} {columns}\r\n"));
    }
    running.signal(Signal::SIGTERM);
    running.end().code(4);
}

#[test]
fn keys_reach_the_process() {
    let mut pty = Pty::new(24, 80);
    let bundle = bundle(
        "trap 'echo interrupted; exit 5' INT; echo ready; read line; echo \"<$line>\"; cat; echo eof; read line",
    );
    let running = bundle.call().terminal(&pty).start();
    pty.shows("ready\r\n");
    pty.types("hello\r");
    // Once by the guest's terminal, once by the script.
    pty.shows("hello\r\n<hello>\r\n");
    // End of input, which ends cat; then Ctrl-C, which is the process's and not rt's.
    pty.types("\x04");
    pty.shows("eof\r\n");
    pty.types("\x03");
    running.end().code(5);
    pty.shows("interrupted\r\n");
}

#[test]
fn the_mode_is_restored_however_it_ends() {
    let pty = Pty::new(24, 80);
    let mode = pty.mode();

    // A code of its own.
    bundle("exit 3").call().terminal(&pty).end().code(3);
    assert_eq!(pty.mode(), mode, "after an exit");

    // No process at all.
    let mut missing = bundle("");
    missing.args(&["/no/such/program"]);
    missing.call().terminal(&pty).end().code(1);
    assert_eq!(pty.mode(), mode, "after a failed start");

    // A signal to rt.
    let ended_by_signal = bundle("trap 'exit 6' HUP; echo ready1; while :; do sleep 1000 & wait $!; done");
    let running = ended_by_signal.call().terminal(&pty).start();
    pty.shows("ready1\r\n");
    assert_ne!(pty.mode(), mode, "while it runs the terminal is raw");
    running.signal(Signal::SIGHUP);
    running.end().code(6);
    assert_eq!(pty.mode(), mode, "after a signal");

    // The machine dies below it.
    let killed = bundle("echo ready2; sleep 1000");
    let running = killed.call().terminal(&pty).start();
    pty.shows("ready2\r\n");
    kill(Pid::from_raw(running.helper("vmm")), Signal::SIGKILL).unwrap();
    running.end().code(1);
    assert_eq!(pty.mode(), mode, "after the VMM was killed");
}

#[test]
fn much_output_is_whole() {
    let pty = Pty::new(24, 80);
    bundle("seq 1 20000; echo over").call().terminal(&pty).end().code(0);
    pty.shows("over\r\n");
    let expected: String = (1..=20000).map(|number| format!("{number}\r\n")).collect();
    assert!(pty.screen().contains(&expected));
}

/// As in a pipeline or under a supervisor: the guest has its terminal, and its bytes pass.
#[test]
fn without_one_of_rts_own_the_bytes_pass() {
    let ended = bundle("test -t 0 && test -t 1 && echo terminal").call().end();
    ended.code(0).stdout("terminal\r\n").stderr("");
}
