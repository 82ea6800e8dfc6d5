//! What goes wrong with networks: an error that names it, and nothing left.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::{Netns, Pair, in_namespace};
use super::plugging::becomes;
use super::tun::ppp;
use super::{serving_bundle, shows};
use crate::shell::{Bundle, host, patience};

#[test]
fn a_namespace_that_vanished_is_named() {
    let path = {
        let netns = Netns::new("gone");
        netns.path()
    };
    in_namespace(&path).sh("true").fails(&["cannot use the network namespace", &path, "No such file"]);
    let bundle = Bundle::new();
    let file = bundle.file("no-namespace", "");
    let path = file.to_str().expect("a path of ours");
    in_namespace(path).sh("true").fails(&[
        "cannot use the network namespace",
        path,
        "not a network namespace",
    ]);
    bundle.leaves_nothing();
}

/// Its name is gone, but the container still lives in it.
#[test]
fn a_namespace_that_vanishes_meanwhile_does_no_harm() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    host(&format!("ip netns del {}", pair.pod.name));
    pair.peer.within(|| super::Client::new("10.9.0.2").echo(b"still here"));
}

#[test]
fn an_interface_without_carrier_waits_for_it() {
    let pair = Pair::new("");
    pair.peer.ip("link set eth0 down");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.ip("link set eth0 up");
    pair.peer.within(|| super::Client::new("10.9.0.2").echo(b"hello"));
    drop(container);
    pair.is_clean();
}

#[test]
fn an_interface_that_no_machine_has_is_refused() {
    let pair = Pair::new("");
    let _ppp0 = ppp(&pair.pod, "ppp0");
    // Down it is of no account.
    pair.bundle().sh("true").code(0);
    pair.pod.ip("link set ppp0 up");
    pair.bundle().sh("true").fails(&["ppp0", "its link layer is PPP"]);
    pair.is_clean();
}

/// Until the container is started it is an error, though the machine runs.
#[test]
fn an_interface_that_no_machine_has_is_refused_at_start() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.create(&[]);
    let _ppp0 = ppp(&pair.pod, "ppp0");
    pair.pod.ip("link set ppp0 up");
    warns_once(&bundle, "ppp0 to the virtual machine: its link layer is PPP");
    container.rt(&["start"]).fails(&["ppp0", "its link layer is PPP"]);
    pair.pod.ip("link del ppp0");
    container.start();
    container.wrote("serving");
    drop(container);
    pair.is_clean();
}

/// Waits for a warning with these words, which is there once.
#[track_caller]
fn warns_once(bundle: &Bundle, words: &str) {
    let deadline = Instant::now() + patience(30);
    loop {
        let log = fs::read_to_string(bundle.path("log")).expect("a log");
        let is_it = |line: &&str| line.contains("level=warning") && line.contains(words);
        match log.lines().filter(is_it).count() {
            1 => return,
            0 if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            number => panic!("{number} warnings of {words:?}\n{log}"),
        }
    }
}

#[test]
fn a_later_interface_that_no_machine_has_is_left_out() {
    let words = "ppp0 to the virtual machine: its link layer is PPP";
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let _ppp0 = ppp(&pair.pod, "ppp0");
    pair.pod
        .run("ip addr add 10.8.0.2/24 dev ppp0; ip link set ppp0 up; ip route add 198.51.100.0/24 dev ppp0");
    warns_once(&bundle, words);
    pair.pod.ip("route add 192.0.2.0/24 via 10.9.0.1");
    becomes(&container, "ip route", "192.0.2.0/24 via 10.9.0.1 dev eth0", true);
    pair.connect("eth1", 1, "");
    becomes(&container, "ip addr show dev eth1", "inet6 fd09:1::2/64", true);
    pair.peer.within(|| super::Client::new("10.9.1.2").echo(b"hello"));
    pair.pod.ip("addr add 10.9.1.9/24 dev eth1");
    becomes(&container, "ip addr show dev eth1", "10.9.1.9", true);
    pair.pod.ip("link del ppp0");
    pair.pod.ip("addr del 10.9.1.9/24 dev eth1");
    becomes(&container, "ip addr show dev eth1", "10.9.1.9", false);
    let routes = container.sh("ip route").text();
    assert!(routes.contains("192.0.2.0/24") && !routes.contains("198.51.100.0"), "{routes}");
    warns_once(&bundle, words);
    drop(container);
    pair.is_clean();
}

/// It is the guest's when the cause is mended.
#[test]
fn a_later_interface_of_somebody_elses_is_left_out() {
    let words = "eth1 to the virtual machine: it has an ingress qdisc already";
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.ip(&format!("link add eth1 type veth peer name eth1 netns {}", pair.pod.name));
    pair.peer.ip("addr add 10.9.1.1/24 dev eth1");
    pair.peer.ip("link set eth1 up");
    pair.pod.run("tc qdisc add dev eth1 ingress; ip addr add 10.9.1.2/24 dev eth1; ip link set eth1 up");
    warns_once(&bundle, words);
    pair.pod.ip("route add 192.0.2.0/24 via 10.9.0.1");
    becomes(&container, "ip route", "192.0.2.0/24 via 10.9.0.1 dev eth0", true);
    pair.pod.run("tc qdisc del dev eth1 ingress; ip link set eth1 down");
    let left_out = || container.record()["network"]["left_out"] != serde_json::json!([]);
    let deadline = Instant::now() + patience(30);
    while left_out() {
        assert!(Instant::now() < deadline, "{}", container.record());
        thread::sleep(Duration::from_millis(20));
    }
    pair.pod.ip("link set eth1 up");
    becomes(&container, "ip addr show dev eth1", "10.9.1.2/24", true);
    pair.peer.within(|| super::Client::new("10.9.1.2").echo(b"hello"));
    warns_once(&bundle, words);
    drop(container);
    pair.is_clean();
}

#[test]
fn an_interface_of_somebody_elses_is_left_alone() {
    let pair = Pair::new("");
    pair.pod.run("tc qdisc add dev eth0 ingress");
    pair.bundle().sh("true").fails(&["eth0", "ingress qdisc already"]);
    assert!(pair.pod.run("tc qdisc show dev eth0").contains("ingress"));
    assert!(!pair.pod.ip("-br link").contains("rttap"));
}

#[test]
fn two_machines_do_not_share_an_interface() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.bundle().sh("true").fails(&["eth0", "ingress qdisc already"]);
    pair.peer.within(|| super::Client::new("10.9.0.2").echo(b"still mine"));
    drop(container);
    pair.is_clean();
}

#[test]
fn more_interfaces_than_a_machine_has_are_refused() {
    let pair = Pair::new("");
    for net in 1..=7 {
        pair.connect(&format!("eth{net}"), net, "");
    }
    shows(&pair.bundle().sh("ls /sys/class/net"), &["eth0", "eth7"]);
    pair.connect("eth8", 8, "");
    pair.bundle().sh("true").fails(&["8 network interfaces already"]);
    pair.is_clean();
}

#[test]
fn a_later_interface_is_left_out_when_the_machine_is_full() {
    let words = "8 network interfaces already";
    let pair = Pair::new("");
    for net in 1..=7 {
        pair.connect(&format!("eth{net}"), net, "");
    }
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.connect("eth8", 8, "");
    warns_once(&bundle, words);
    pair.pod.ip("addr add 10.9.7.9/24 dev eth7");
    becomes(&container, "ip addr show dev eth7", "10.9.7.9", true);
    pair.peer.ip("link del eth8");
    pair.pod.ip("route add 192.0.2.0/24 via 10.9.0.1");
    becomes(&container, "ip route", "192.0.2.0/24 via 10.9.0.1 dev eth0", true);
    warns_once(&bundle, words);
    drop(container);
    pair.is_clean();
}

#[test]
fn what_a_killed_monitor_leaves_is_removed_by_delete() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).expect("it is there");
    container.reaches("stopped");
    container.rt(&["delete"]).says(&[]);
    pair.is_clean();
    // The interface is free for the next.
    pair.bundle().sh("true").code(0);
    pair.is_clean();
}

/// The namespace is another's by now: its redirection is in use, and stays.
#[test]
fn delete_removes_nothing_of_the_next_container() {
    let pair = Pair::new("");
    let (first, second) = (serving_bundle(&pair), serving_bundle(&pair));
    let old = first.run_detached(&[]);
    old.wrote("serving");
    kill(Pid::from_raw(old.pid()), Signal::SIGKILL).expect("it is there");
    old.reaches("stopped");
    host(&format!(
        "until ip netns exec {0} tc qdisc del dev eth0 ingress; do sleep 0.1; done",
        pair.pod.name
    ));
    let new = second.run_detached(&[]);
    new.wrote("serving");
    drop(old);
    pair.peer.within(|| super::Client::new("10.9.0.2").echo(b"still here"));
    drop(new);
    pair.is_clean();
}

/// A failure after the network was made takes it away again.
#[test]
fn a_failed_create_leaves_no_network() {
    let pair = Pair::new("");
    let mut bundle = pair.bundle();
    bundle.run(&["/no/such/program"]).fails(&["/no/such/program"]);
    pair.is_clean();
}
