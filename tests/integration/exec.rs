//! rt exec: another process in a container, its flags, its failures, and what it shares with the container.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::shell::{Bundle, Input, Pty, host, patience};

fn sleeping() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

#[test]
fn the_process_is_the_containers_but_for_the_flags() {
    let mut bundle = sleeping();
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    let container = bundle.run_detached(&[]);
    let here = "/bin/sh";
    container.exec(&[], &["/bin/env"]).says(&["PATH=/bin", "HOME=/root"]);
    let variables = ["-e", "A=b", "--env", "C=d e", "-e", "PATH=/bin:/sbin"];
    container.exec(&variables, &["env"]).says(&["PATH=/bin:/sbin", "HOME=/root", "A=b", "C=d e"]);
    container.exec(&["--cwd", "/tmp"], &["pwd"]).says(&["/tmp"]);
    let user = ["--user", "1000:1001", "-g", "10", "--additional-gids", "20"];
    container.exec(&user, &[here, "-c", "id -u; id -g; id -G"]).says(&["1000", "1001", "1001 10 20"]);
    container.exec(&["-u", "1000"], &[here, "-c", "id -u; id -g"]).says(&["1000", "0"]);
    for (flags, words) in [
        (["-u", "4294967295"], "uids and gids must be in range 0-2147483647"),
        (["-u", "1:2147483648"], "uids and gids must be in range 0-2147483647"),
        (["-g", "4294967295"], "uids and gids must be in range 0-2147483647"),
        (["-e", "NOVALUE"], "invalid environment variable: missing '='"),
        (["-e", "=x"], "invalid environment variable: name cannot be empty"),
    ] {
        container.exec(&flags, &["true"]).fails_with(255, &[words]);
    }
    let privileges = ["grep", "NoNewPrivs", "/proc/self/status"];
    container.exec(&[], &privileges).says(&["NoNewPrivs:\t0"]);
    container.exec(&["--no-new-privs"], &privileges).says(&["NoNewPrivs:\t1"]);
    // What the guest has no use for is taken all the same.
    container.exec(&["--process-label", "a:b:c:s0", "--apparmor", "docker-default"], &["true"]).says(&[]);
    // Options behind the command are the command's.
    container.exec(&[], &["echo", "-e", "--cwd", "x"]).says(&["--cwd x"]);
    container.exec(&[], &["--", "echo", "y"]).says(&["y"]);
    container.sh("echo out; echo err >&2; exit 3").code(3).stdout("out\n").stderr("err\n");
    container.sh("kill -9 $$").code(137).stdout("").stderr("");
    // It is in the container: its processes, root, names and cgroup.
    container.sh("cat /proc/1/comm; hostname; cat /proc/self/cgroup").says(&["sleep", "guest", "0::/"]);
}

#[test]
fn groups_stay_with_another_user() {
    let mut bundle = sleeping();
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1005, "additionalGids": [7, 8]});
    let container = bundle.run_detached(&[]);
    let id = ["/bin/sh", "-c", "id -u; id -G"];
    container.exec(&["-u", "1001"], &id).says(&["1001", "1005 7 8"]);
    container.exec(&["-u", "0", "-g", "9"], &id).says(&["0", "1005 7 8 9"]);
    container.exec(&["-u", "0:3"], &id).says(&["0", "3 7 8"]);
}

/// Whoever ends a process that was executed knows but its monitor.
#[test]
fn the_process_ends_with_its_monitor() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let alone = || {
        let deadline = Instant::now() + patience(10);
        while container.rt(&["ps", "-f", "json"]).text() != "[1]\n" {
            assert!(Instant::now() < deadline, "{}", container.rt(&["ps"]));
            thread::sleep(Duration::from_millis(50));
        }
    };
    let pid_file = bundle.path("exec.pid");
    container.exec(&["-d", "--pid-file", pid_file.to_str().unwrap()], &["sleep", "1000"]).code(0);
    assert_ne!(container.rt(&["ps", "-f", "json"]).text(), "[1]\n");
    let monitor: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    alone();
    for flag in ["--pid-file", "--pidfd-socket"] {
        container
            .exec(&["-d", flag, "/no/such/file"], &["sleep", "1000"])
            .fails_with(255, &["/no/such/file"]);
        alone();
    }
}

#[test]
fn standard_input_is_passed_to_its_end() {
    let bundle = sleeping();
    let _container = bundle.run_detached(&[]);
    let text = "x".repeat(300_000);
    let call = bundle.call().verb(&["exec", &bundle.id, "wc", "-c"]);
    call.stdin(Input::Bytes(text.into_bytes())).end().says(&["300000"]);
}

#[test]
fn capabilities_go_to_the_sets_that_runc_adds_them_to() {
    let mut bundle = sleeping();
    bundle.config["process"]["capabilities"] = json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"]});
    let container = bundle.run_detached(&[]);
    let sets = ["grep", "Cap", "/proc/self/status"];
    let shown = |inheritable: &str, others: &str, ambient: &str| {
        let line = |set: &str, mask: &str| format!("Cap{set}:\t{mask:0>16}");
        [("Inh", inheritable), ("Prm", others), ("Eff", others), ("Bnd", others), ("Amb", ambient)]
            .map(|(set, mask)| line(set, mask))
            .join("\n")
            + "\n"
    };
    container.exec(&[], &sets).code(0).stdout(shown("0", "20", "0"));
    let flags = ["--cap", "CAP_NET_ADMIN", "-c", "CAP_SYSLOG"];
    container.exec(&flags, &sets).code(0).stdout(shown("0", "400001020", "0"));
    drop(container);
    bundle.config["process"]["capabilities"] = json!({"bounding": ["CAP_SYSLOG"], "permitted": ["CAP_SYSLOG"],
        "inheritable": ["CAP_SYSLOG"]});
    let container = bundle.run_detached(&[]);
    // What is not inheritable cannot be ambient.
    container.exec(&flags, &sets).code(0).stdout(shown("400000000", "400001000", "400000000"));
}

#[test]
fn the_seccomp_filter_applies() {
    let mut bundle = sleeping();
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    for no_new_privileges in [true, false] {
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let container = bundle.run_detached(&[]);
        let script = "grep -h Seccomp: /proc/1/status /proc/self/status; mkdir /tmp/x 2>&1";
        container.sh(script).code(1).stdout(
            "Seccomp:\t2\nSeccomp:\t2\nmkdir: can't create directory '/tmp/x': Operation not permitted\n",
        );
    }
}

#[test]
fn a_process_file_is_taken_whole() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let process = json!({
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [5]},
        "args": ["/bin/sh", "-c", "id -u; id -G; pwd; echo $A; ulimit -n; exit 4"],
        "env": ["A=b"], "cwd": "/tmp",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
        "apparmorProfile": "docker-default", "selinuxLabel": "",
    });
    let file = bundle.file("process.json", process.to_string());
    let exec = |file: &str| bundle.rt(&["exec", "--process", file, &bundle.id]);
    exec(file.to_str().unwrap()).code(4).stdout("1000\n1001 5\n/tmp\nb\n77\n").stderr("");
    exec("/no/such/file").fails_with(255, &["exec failed: ", "/no/such/file"]);
    let file = bundle.file("broken.json", "{\"args\": 3}");
    exec(file.to_str().unwrap()).fails_with(255, &["broken.json"]);
    drop(container);
}

#[test]
fn a_missing_program_has_runcs_words() {
    let bundle = sleeping();
    fs::write(bundle.rootfs("tmp/data"), "").unwrap();
    let container = bundle.run_detached(&[]);
    for (command, words) in [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
        ("/tmp/data", "exec: \"/tmp/data\": permission denied"),
        ("/tmp", "exec: \"/tmp\": is a directory"),
    ] {
        // The log's form of text escapes quotation marks.
        container.exec(&[], &[command]).fails_with(255, &["exec failed: ", &words.replace('"', "\\\"")]);
    }
    container.exec(&["--cwd", "/no"], &["true"]).fails_with(255, &["chdir to cwd (", "no such file"]);
    container.exec(&[], &[]).fails_with(255, &["exec needs a command"]);
    container
        .exec(&["--tty", "--detach"], &["true"])
        .fails_with(255, &["cannot allocate tty if runc will detach without setting console socket"]);
    container
        .exec(&["--console-socket", "/s"], &["true"])
        .fails_with(255, &["cannot use console socket if runc will not detach or allocate tty"]);
    bundle.rt(&["exec", "nothing", "true"]).fails_with(255, &["container does not exist"]);
}

#[test]
fn only_a_container_that_has_not_stopped_takes_one() {
    let bundle = Bundle::new();
    let container = bundle.create(&[]);
    container.exec(&[], &["echo", "before the start"]).says(&["before the start"]);
    container.start();
    container.reaches("stopped");
    container.exec(&[], &["true"]).fails_with(255, &["cannot exec in a stopped container"]);
}

#[test]
fn a_group_below_the_containers() {
    let mut bundle = sleeping();
    crate::shell::without(&mut bundle.config["mounts"], |mount| mount["type"] == "cgroup");
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev"]);
    let container = bundle.run_detached(&[]);
    container.exec(&[], &["mkdir", "/sys/fs/cgroup/below"]).says(&[]);
    for name in ["below", "/below"] {
        container.exec(&["--cgroup", name], &["cat", "/proc/self/cgroup"]).says(&["0::/below"]);
    }
    for name in ["nosuch", "../x"] {
        container.exec(&["--cgroup", name], &["true"]).fails_with(255, &["cgroup", name]);
    }
}

#[test]
fn detached_it_has_a_monitor_of_its_own() {
    let mut bundle = sleeping();
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", bundle.id));
    let container = bundle.run_detached(&[]);
    let file = bundle.path("pid");
    let flags = ["--detach", "--pid-file", file.to_str().unwrap()];
    container.exec(&flags, &["/bin/sleep", "1000"]).says(&[]);
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    let parent = host(&format!("awk '{{ print $4 }}' /proc/{pid}/stat"));
    assert_eq!(parent, std::process::id().to_string(), "this process is the nearest subreaper");
    let groups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(groups(pid), groups(container.pid()), "it counts as the container's");
    // Its end with the process's code is conmon's to see; here, that it ends.
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    ends(pid);
    // Killing the monitor leaves no process behind: one more ends with the container.
    container.exec(&flags, &["sleep", "1000"]).says(&[]);
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).unwrap();
    container.reaches("stopped");
    ends(pid);
}

#[track_caller]
fn ends(pid: i32) {
    let deadline = Instant::now() + patience(30);
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')).unwrap_or(true)
    };
    while !state() {
        assert!(Instant::now() < deadline, "{pid} runs on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_terminal_of_its_own() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let mut pty = Pty::new(40, 100);
    let mode = pty.mode();
    let line = ["exec", "-t", &bundle.id, "/bin/sh", "-i"];
    let running = bundle.call().verb(&line).terminal(&pty).start();
    pty.types("PS1=; stty size; echo no''w\r");
    pty.shows("40 100\r\nnow\r\n");
    pty.resize(50, 120);
    pty.types("sleep 0.2; stty size\r");
    pty.shows("50 120\r\n");
    // Ctrl-C ends what runs in the foreground, and not the shell; job control works.
    pty.types("echo slee''ping; sleep 1000\r");
    pty.shows("sleeping\r\n");
    thread::sleep(Duration::from_millis(300));
    pty.types("\x03");
    pty.types("echo interr''upted $?\r");
    pty.shows("interrupted 130\r\n");
    pty.types("echo slee''ping2; sleep 1001\r");
    pty.shows("sleeping2\r\n");
    thread::sleep(Duration::from_millis(300));
    pty.types("\x1a");
    pty.types("jobs; echo stop''ped; fg\r");
    pty.shows("stopped\r\n");
    thread::sleep(Duration::from_millis(300));
    pty.types("\x03");
    pty.types("exit 7\r");
    running.end().code(7);
    assert_eq!(pty.mode(), mode);
    // Without one of rt's own the bytes pass.
    container.exec(&["-t"], &["/bin/sh", "-c", "test -t 1 && tty"]).code(0).stdout("/dev/pts/0\r\n");
}

/// Its output ends with the process, whoever else holds it.
#[test]
fn what_it_leaves_behind_does_not_hold_it() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    container.sh("sleep 1000 & echo here").says(&["here"]);
    container.exec(&["-t"], &["/bin/sh", "-c", "sleep 1000 & echo here"]).code(0).stdout("here\r\n");
    container.sh("grep -l sleep /proc/[0-9]*/comm").code(0);
}

#[test]
fn it_ends_with_the_container() {
    let bundle = sleeping();
    for ender in ["container", "machine"] {
        let container = bundle.run_detached(&[]);
        let call = bundle.call().verb(&["exec", &bundle.id, "/bin/sh", "-c", "echo ready; sleep 1000"]);
        let mut running = call.start();
        running.says("ready\n");
        match ender {
            "container" => drop(bundle.rt(&["kill", &bundle.id, "KILL"])),
            _ => {
                let pid = container.record()["vm"]["pid"].as_i64().unwrap();
                kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
            }
        }
        running.end().code(137).stdout("ready\n").stderr("");
    }
}

#[test]
fn signals_to_rt_are_its_own() {
    let bundle = sleeping();
    let _container = bundle.run_detached(&[]);
    let script = "trap 'echo got it; exit 8' TERM; echo ready; while :; do sleep 0.1; done";
    let mut running = bundle.call().verb(&["exec", &bundle.id, "/bin/sh", "-c", script]).start();
    running.says("ready\n");
    running.signal(Signal::SIGTERM);
    running.end().code(8).stdout("ready\ngot it\n");
}

#[test]
fn a_hundred_at_once() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    thread::scope(|scope| {
        for number in 0..100 {
            let container = &container;
            scope.spawn(move || {
                let script = format!("read x; echo {number}; echo e >&2; exit {}", number % 7);
                let ended = container.sh(&script);
                ended.code(number % 7).stdout(format!("{number}\n")).stderr("e\n");
            });
        }
    });
    container.exec(&[], &["true"]).says(&[]);
}
