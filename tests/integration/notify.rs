//! NOTIFY_SOCKET: what the container's process tells reaches rt's service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::json;

use crate::shell::{Bundle, patience};

/// busybox has no tool that sends datagrams to a Unix socket: this small program of the host does.
fn sender(bundle: &Bundle) -> bool {
    let source = bundle.file(
        "send.c",
        r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int count, char **words) {
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    strncpy(to.sun_path, getenv("NOTIFY_SOCKET"), sizeof to.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    for (int i = 1; i < count; i++)
        if (sendto(fd, words[i], strlen(words[i]), 0, (struct sockaddr *)&to, sizeof to) < 0) return 1;
    return 0;
}
"#,
    );
    let done = std::process::Command::new("cc")
        .args(["-static", "-o", bundle.rootfs("bin/send").to_str().unwrap(), source.to_str().unwrap()])
        .status();
    done.is_ok_and(|status| status.success())
}

#[test]
fn the_process_tells_that_it_is_ready() {
    let mut bundle = Bundle::new();
    assert!(sender(&bundle), "a C compiler builds a static program");
    let socket = bundle.path("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(patience(30))).unwrap();
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let script =
        "echo $NOTIFY_SOCKET; send 'MAINPID=1' 'READY=1\nSTATUS=up' 'FDSTORE=1\nSTOPPING=1'; sleep 1000";
    bundle.args(&["/bin/sh", "-c", script]);
    let running = bundle.call().env("NOTIFY_SOCKET", &socket).start();
    let receive = || {
        let mut text = [0; 4096];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert_eq!(receive(), format!("READY=1\nMAINPID={}\nSTATUS=up", running.pid()));
    assert_eq!(receive(), "STOPPING=1");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(manager.recv(&mut [0; 10]).is_err());
    drop(running);
    bundle.rt(&["delete", "--force", &bundle.id]).says(&[]);
}

#[test]
fn without_one_there_is_no_variable() {
    let mut bundle = Bundle::new();
    bundle.sh("echo \"<$NOTIFY_SOCKET>\"; ls /run/notify 2>/dev/null; true").says(&["<>"]);
}
