//! --preserve-fds: pipes and sockets are moved, all else is refused by name.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::shell::Bundle;

#[test]
fn pipes_are_moved() {
    let mut bundle = Bundle::new();
    let (given, taken) = (bundle.file("given", "from outside\n"), bundle.path("taken"));
    bundle.args(&["/bin/sh", "-c", "cat <&3; echo to outside >&4; cat <&5; ls /proc/self/fd | wc -l"]);
    let script = format!(
        "{{ {{ cat {} | {{ exec 9>&1; exec 4>&8; exec 8>&-; \"$@\" 3<&0 0</dev/null 5</dev/null 9>&-; }}; }} 8>&1 >&7 | cat >{}; }} 7>&1",
        given.display(),
        taken.display()
    );
    // 3 is a pipe to read, 4 one to write, 5 /dev/null; ls has four more of its own.
    let ended = bundle.call().through(&script).flags(&["--preserve-fds", "3"]).end();
    ended.code(0).stdout("from outside\n7\n").stderr("");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "to outside\n");
}

#[test]
fn a_socket_works_both_ways_and_detached_too() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "read line <&3; echo \"got $line\" >&3; cat <&3 >&3; echo over"]);
    let (mut near, far) = UnixStream::pair().unwrap();
    // For the shell that starts rt.
    let number = far.as_raw_fd();
    nix::fcntl::fcntl(&far, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let dir = bundle.dir().to_str().unwrap().to_owned();
    // Of bash, which takes numbers of several digits.
    let script =
        format!("exec bash -c 'exec \"$@\" 3<&{number} {number}<&- >{dir}/out 2>{dir}/err' bash \"$@\"");
    let line = ["run", "--detach", "--preserve-fds", "1", "-b", &dir, &bundle.id];
    bundle.rt_through(&script, &line).code(0);
    drop(far);
    near.write_all(b"hello\nrest").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got hello\nrest");
    bundle.rt(&["delete", "--force", &bundle.id]).says(&[]);
    bundle.leaves_nothing();
}

#[test]
fn exec_has_them_too() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let _container = bundle.run_detached(&[]);
    let call = bundle.call().verb(&["exec", "--preserve-fds", "1", &bundle.id, "cat", "/proc/self/fd/3"]);
    call.through("echo through | { exec \"$@\" 3<&0 0</dev/null; }").end().says(&["through"]);
}

#[test]
fn what_cannot_be_moved_is_named() {
    let bundle = Bundle::new();
    let run = |redirections: &str, count: &str| {
        let script = format!("exec \"$@\" {redirections}");
        bundle.call().through(&script).flags(&["--preserve-fds", count]).end()
    };
    run("3</etc/passwd", "1").fails(&["cannot pass descriptor 3", "a file", "mount the file"]);
    run("3</", "1").fails(&["cannot pass descriptor 3", "a directory"]);
    run("3</dev/zero", "1").fails(&["cannot pass descriptor 3", "a device"]);
    run("3</dev/null 4<&-", "2").fails(&["cannot pass descriptor 4", "not open"]);
    run("3</dev/null", "33").fails(&["cannot pass 33 more descriptors", "32 are the most"]);
}

/// sd_listen_fds(3): what systemd has accepted can be moved, what it listens on cannot.
#[test]
fn descriptors_of_a_service_manager_come_first() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4"]);
    let script = "echo one | { exec 8<&0; echo two | { exec 4<&0 3<&8 8<&- 0</dev/null; export LISTEN_FDS=1; exec \"$@\"; }; }";
    let ended = bundle.call().through(script).flags(&["--preserve-fds", "1"]).end();
    ended.code(0).stdout("1 1\none\ntwo\n").stderr("");
    let listener = std::os::unix::net::UnixListener::bind(bundle.path("socket")).unwrap();
    let number = listener.as_raw_fd();
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let script = format!("exec bash -c 'LISTEN_FDS=1 exec \"$@\" 3<&{number}' bash \"$@\"");
    bundle.call().through(&script).end().fails(&[
        "cannot pass descriptor 3",
        "a listening socket",
        "listen itself",
    ]);
}
