//! Signals to rt reach the process.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::shell::{Bundle, patience};

/// `sleep` in the background, since a shell runs its traps between commands.
const TRAPS: &str = "
    for signal in HUP INT QUIT USR1 USR2 CONT WINCH; do trap \"echo got $signal\" $signal; done
    trap 'echo got TERM; exit 7' TERM
    echo ready
    while :; do sleep 1000 & wait $!; done";

#[test]
fn forwarded_signals_run_the_traps() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", TRAPS]);
    let mut running = bundle.call().start();
    running.says("ready\n");
    let all = [
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGCONT, "CONT"),
    ];
    for (signal, name) in all {
        running.signal(signal);
        running.says(&format!("got {name}\n"));
    }
    running.signal(Signal::SIGTERM);
    running
        .end()
        .code(7)
        .stdout("ready\ngot INT\ngot HUP\ngot QUIT\ngot USR1\ngot USR2\ngot CONT\ngot TERM\n");
}

/// With no PID namespace of its own the process has the default action, which is to end.
#[test]
fn a_signal_without_a_trap_ends_the_process() {
    let mut bundle = Bundle::new();
    crate::shell::without(&mut bundle.config["linux"]["namespaces"], |namespace| namespace["type"] == "pid");
    bundle.args(&["/bin/sh", "-c", "echo ready; exec sleep 1000"]);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut running = bundle.call().start();
        running.says("ready\n");
        running.signal(signal);
        running.end().code(code).stderr("");
    }
}

/// systemd ends some services so.
#[test]
fn a_real_time_signal_arrives() {
    let mut bundle = Bundle::new();
    bundle.args(&[
        "/bin/sh",
        "-c",
        "trap 'echo got it; exit 7' 37; echo ready; while :; do sleep 1000 & wait $!; done",
    ]);
    let mut running = bundle.call().start();
    running.says("ready\n");
    crate::shell::host(&format!("kill -37 {}", running.pid()));
    running.end().code(7).stdout("ready\ngot it\n").stderr("");
}

#[test]
fn many_signals_all_arrive() {
    let mut bundle = Bundle::new();
    bundle.args(&[
        "/bin/sh",
        "-c",
        "n=0; trap 'n=$((n+1)); echo got $n' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait $!; done",
    ]);
    let mut running = bundle.call().start();
    running.says("ready\n");
    for number in 1..=5 {
        running.signal(Signal::SIGUSR1);
        running.says(&format!("got {number}\n"));
    }
    running.signal(Signal::SIGTERM);
    running.end().code(9);
}

/// At any moment of the start: nothing runs on, nothing is left.
#[test]
fn an_interrupt_before_the_process_runs_ends_the_start() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "sleep 5"]);
    for wait_ms in [30, 150, 400] {
        let running = bundle.call().start();
        // rt takes signals from when the record is there.
        let deadline = std::time::Instant::now() + patience(10);
        while running.record().is_none() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(wait_ms));
        running.signal(Signal::SIGINT);
        let ended = running.end();
        // 0: it came when the process ran already, which as PID 1 does not mind.
        assert!([0, 130].contains(&ended.code), "{ended}");
    }
}
