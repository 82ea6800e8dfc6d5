//! A pod's loopback from the host: as containerd's and CRI-O's port-forward connects to it, in the pod's network namespace.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::json;

use super::netns::Pair;
use super::serving_bundle;
use super::traffic::Client;
use crate::shell::Bundle;

fn sandbox(mut bundle: Bundle) -> Bundle {
    bundle.config["annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": bundle.id,
    });
    bundle
}

/// What the server sends, until its end.
fn fetch(port: u16, request: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("somebody takes it");
    let mut all = Vec::new();
    // One on which nobody listens ends while this is written.
    let _ = connection.write_all(request).and_then(|()| connection.read_to_end(&mut all));
    all
}

#[test]
fn a_port_of_the_loopback_is_the_guests() {
    let pair = Pair::new("");
    let bundle = sandbox(serving_bundle(&pair));
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    container
        .sh("echo here >/tmp/file; httpd -p 127.0.0.1:8080 -h /tmp; httpd -p '[::1]:8081' -h /tmp")
        .code(0);
    pair.pod.within(|| {
        let client = Client::new("127.0.0.1");
        client.echo(b"hello");
        client.sends(4 << 20);
        client.receives(4 << 20);
        client.holds_connections(50);
        for port in [8080, 8081] {
            let answer = fetch(port, b"GET /file HTTP/1.0\r\n\r\n");
            assert!(answer.ends_with(b"\r\n\r\nhere\n"), "{}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(fetch(8082, b"hello"), b"", "nobody listens there");
        // docker's resolver, and whoever else: not ours.
        TcpStream::connect(("127.0.0.11", 8080)).expect_err("nobody takes it");
        // One end that goes away in the middle disturbs nobody.
        let gone = TcpStream::connect(("127.0.0.1", 7000)).expect("somebody takes it");
        (&gone).write_all(&[b'r', 0, 0, 0, 64, 0, 0, 0, 0]).expect("sent");
        (&gone).read_exact(&mut [0; 1000]).expect("some of it");
        gone.shutdown(Shutdown::Both).expect("closed");
        drop(gone);
        client.echo(b"still here");
    });
    container.rt(&["delete", "--force"]).says(&[]);
    pair.pod.within(|| TcpStream::connect(("127.0.0.1", 7000)).expect_err("it is gone"));
    pair.is_clean();
}

/// Only pods have their ports forwarded: elsewhere the namespace's loopback is the namespace's.
#[test]
fn a_container_alone_leaves_the_loopback_alone() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.pod.within(|| TcpStream::connect(("127.0.0.1", 7000)).expect_err("nobody takes it"));
}
