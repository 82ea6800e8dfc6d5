//! What goes wrong with networks: an error that names it, and nothing left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::{Netns, Pair, in_namespace};
use super::{serving_bundle, shows};
use crate::shell::{Bundle, host};

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
fn an_interface_that_is_not_ethernet_is_refused() {
    let pair = Pair::new("");
    pair.pod.ip("tuntap add dev tun0 mode tun");
    // Down it is of no account.
    pair.bundle().sh("true").code(0);
    pair.pod.ip("link set tun0 up");
    pair.bundle().sh("true").fails(&["tun0", "no Ethernet interface"]);
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
