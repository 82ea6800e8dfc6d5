//! docker's resolver: on 127.0.0.11 of the pod's network namespace, where a guest's loopback does not lead.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;

use super::netns::{Netns, Pair};
use super::shows;
use crate::shell::Bundle;

const ADDRESS: (&str, u16) = ("127.0.0.11", 53);

/// Answers every question for an IPv4 address with 192.0.2.7, by UDP; whoever connects gets back what it has sent, and `by TCP`.
fn answer_in(netns: &Netns) {
    let (datagrams, connections) = netns.within(|| {
        let datagrams = UdpSocket::bind(ADDRESS).expect("a socket");
        (datagrams, TcpListener::bind(ADDRESS).expect("a socket"))
    });
    let datagrams = Arc::new(datagrams);
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, sender)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(&answer(&buffer[..length]), sender);
        }
    });
    thread::spawn(move || {
        for mut connection in connections.incoming().flatten() {
            let question = rt_proto::resolver::read_from_tcp(&mut connection).expect("a question");
            let answer = [&question[..], b" by TCP\n"].concat();
            rt_proto::resolver::write_to_tcp(&mut connection, &answer).expect("sent");
            connection.flush().expect("sent");
        }
    });
}

/// RFC 1035 §4: the question again, and behind it an address where one is asked for.
fn answer(question: &[u8]) -> Vec<u8> {
    let is_address = question.ends_with(&[0, 1, 0, 1]);
    let mut answer = question.to_vec();
    // A response, recursion available, no error.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = is_address.into();
    if is_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
    }
    answer
}

fn asking(pair: &Pair, resolv_conf: &str) -> Bundle {
    let mut bundle = pair.bundle();
    let file = bundle.file("resolv.conf", resolv_conf);
    std::fs::create_dir_all(bundle.rootfs("etc")).expect("a directory");
    std::fs::write(bundle.rootfs("etc/resolv.conf"), "").expect("a file");
    bundle.mount("/etc/resolv.conf", "bind", file.to_str().expect("a path of ours"), &["rbind", "ro"]);
    bundle
}

#[test]
fn dockers_resolver_answers_the_guest() {
    let pair = Pair::new("");
    answer_in(&pair.pod);
    let mut bundle = asking(&pair, "nameserver 127.0.0.11\noptions ndots:0\n");
    let script = "nslookup web && nslookup db && printf '\\0\\3who' | nc 127.0.0.11 53";
    shows(&bundle.sh(script), &["Name:\tweb", "Name:\tdb", "192.0.2.7", "who by TCP"]);
    pair.is_clean();
}

/// docker writes the file when it has filled the network, which may be after create.
#[test]
fn it_is_found_later_too() {
    let pair = Pair::new("");
    answer_in(&pair.pod);
    let mut bundle = asking(&pair, "nameserver 192.0.2.1\n");
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    bundle.file("resolv.conf", "nameserver 127.0.0.11\n");
    pair.connect("eth1", 1, "");
    container.start();
    let deadline = std::time::Instant::now() + crate::shell::patience(30);
    loop {
        let ended = container.sh("nslookup web 127.0.0.11");
        if ended.text().contains("192.0.2.7") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "nobody answers\n{ended}");
    }
    drop(container);
    pair.is_clean();
}

/// Without docker's address in the file, the address is the container's own.
#[test]
fn others_have_their_loopback_to_themselves() {
    let pair = Pair::new("");
    answer_in(&pair.pod);
    let mut bundle = asking(&pair, "nameserver 127.0.0.1\n");
    let script = "nc 127.0.0.11 53 </dev/null 2>/dev/null || echo nobody";
    bundle.sh(script).says(&["nobody"]);
    pair.is_clean();
}
