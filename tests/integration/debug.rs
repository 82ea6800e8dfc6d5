//! rt debug: a shell in the guest itself.

use crate::shell::{Bundle, Pty};

fn sleeping() -> Bundle {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\ndebug_console = true\n".into();
    bundle.args(&["/bin/sleep", "1000"]);
    bundle
}

#[test]
fn it_is_the_guests_own_and_not_the_containers() {
    let bundle = sleeping();
    let container = bundle.run_detached(&[]);
    let debug = |command: &[&str]| bundle.rt(&[&["debug", &bundle.id], command].concat());
    // PID 1 is the agent, the root is the initramfs, the rights are all.
    debug(&["readlink", "/proc/1/exe"]).says(&["/init"]);
    debug(&["sh", "-c", "ls -d /init; ls /proc/1/root/run/rt/containers"]).says(&["/init", &bundle.id]);
    debug(&["cat", "/proc/self/cgroup"]).says(&["0::/"]);
    let capabilities = debug(&["sh", "-c", "grep -h CapEff /proc/self/status /proc/1/status | uniq | wc -l"]);
    capabilities.says(&["1"]);
    let processes = debug(&["ps", "-o", "args"]).text();
    assert!(processes.contains("/bin/sleep 1000") && processes.contains("/init"), "{processes}");
    assert!(debug(&["dmesg"]).text().contains("Linux version"));
    // Its streams, exit code and signals are rt's; arguments are not the shell's to split.
    debug(&["sh", "-c", "echo out; echo err >&2; exit 3"]).code(3).stdout("out\n").stderr("err\n");
    debug(&["sh", "-c", "kill -9 $$"]).code(137);
    debug(&["echo", "a  b", "$HOME"]).says(&["a  b $HOME"]);
    bundle.rt_through("echo 'echo $((6 * 7))' | \"$@\"", &["debug", &bundle.id]).says(&["42"]);
    // A paused container is no obstacle, since it is not the guest that is paused.
    container.rt(&["pause"]).code(0);
    debug(&["true"]).says(&[]);
    container.rt(&["resume"]).code(0);
    // Kata's way.
    let kata = "rt=$1; shift; exec bash -c 'exec -a kata-runtime \"$0\" \"$@\"' \"$rt\" \"$@\" </dev/null";
    bundle.rt_through(kata, &["exec", &bundle.id]).says(&[]);
    container.sh("true").says(&[]);
}

#[test]
fn a_person_gets_a_terminal() {
    let bundle = sleeping();
    let _container = bundle.run_detached(&[]);
    let mut pty = Pty::new(40, 132);
    let mode = pty.mode();
    let running = bundle.call().verb(&["debug", &bundle.id]).terminal(&pty).start();
    pty.shows(&format!("guest of {}:/# ", bundle.id));
    pty.types("stty size\r");
    pty.shows("40 132\r\n");
    pty.types("\x03");
    pty.types("exit 7\r");
    running.end().code(7);
    assert_eq!(pty.mode(), mode);
}

#[test]
fn it_is_refused_where_nobody_switched_it_on() {
    let bundle = sleeping();
    let _container = bundle.run_detached(&[]);
    bundle.rt(&["debug", "nobody"]).fails(&["container does not exist"]);
    let debug = |settings: &str| {
        let config = bundle.file("other.toml", settings);
        let script = format!("RT_CONFIG={} exec \"$@\"", config.display());
        bundle.rt_through(&script, &["debug", &bundle.id, "true"])
    };
    debug("[hypervisor]\ndebug_console = true\ndebug_shell = '/bin/sh'\n").fails(&[
        "cannot lend the guest /bin/sh",
        "other.toml:3",
        "linked dynamically",
    ]);
    debug("[hypervisor]\ndebug_console = false\n").fails(&[
        "the debug console is off",
        "hypervisor.debug_console is false",
        "other.toml:2",
    ]);
    debug("").fails(&["hypervisor.debug_console is false (default)"]);
}
