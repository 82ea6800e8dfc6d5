//! The model `macvtap`: a device on top of the interface instead of one beside it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::{Netns, Pair, in_namespace};
use super::traffic::{self, Client};
use super::tun::tun;
use super::{serving_bundle, shows};
use crate::shell::{Bundle, skipped};

const MODEL: &str = "[network]\nmodel = \"macvtap\"\n";

fn with(mut bundle: Bundle, settings: &str) -> Bundle {
    bundle.settings = format!("{MODEL}{settings}");
    bundle
}

#[test]
fn it_carries_everything_with_vhost_net_and_without() {
    let pair = Pair::new("mtu 1400");
    let mac = pair.pod.run("cat /sys/class/net/eth0/address");
    let _peer = traffic::serve_in(&pair.peer);
    for vhost in [true, false] {
        let settings = format!("vhost = {vhost}\n[hypervisor]\nvcpus = 2\n");
        let bundle = with(serving_bundle(&pair), &settings);
        let container = bundle.run_detached(&[]);
        container.wrote("serving");
        let look = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net/eth0/queues";
        shows(&bundle.rt(&["exec", &bundle.id, "/bin/sh", "-c", look]), &[&mac, "1400", "rx-1", "tx-1"]);
        assert!(pair.pod.ip("-d link show").contains("macvtap mode passthru"), "by something else");
        pair.peer.within(|| {
            for (guest, own) in [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")] {
                let client = Client::new(guest);
                client.echo(b"hello");
                client.datagrams(50);
                client.holds_connections(50);
                client.sends(1 << 20);
                client.receives(1 << 20);
                client.asks_to_call(own);
            }
        });
        with(pair.bundle(), "").sh("true").fails(&[
            "eth0",
            "another virtual machine's",
            "macvtap device rttap",
        ]);
        drop(container);
        pair.is_clean();
    }
}

#[test]
fn what_a_killed_monitor_leaves_is_removed_by_delete() {
    let pair = Pair::new("");
    let bundle = with(serving_bundle(&pair), "");
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).expect("it is there");
    container.reaches("stopped");
    container.rt(&["delete"]).says(&[]);
    pair.is_clean();
    with(pair.bundle(), "").sh("true").code(0);
    pair.is_clean();
}

#[test]
fn an_interface_on_which_none_can_lie_is_refused() {
    let (pair, pod) = (Pair::new(""), Netns::new("macvlan"));
    if !pair.pod.can("link add link eth0 name port type macvlan mode bridge") {
        return skipped("an_interface_on_which_none_can_lie_is_refused", "the host's kernel has no macvlan");
    }
    pair.pod.ip(&format!("link set port netns {} name eth0", pod.name));
    pod.ip("link set eth0 up");
    with(in_namespace(&pod.path()), "").sh("true").fails(&[
        "eth0",
        "macvtap",
        "network.model = \"tcfilter\"",
    ]);
    assert!(!pod.ip("-br link").contains("rttap"));
}

#[test]
fn an_interface_without_ethernet_frames_is_refused() {
    let pod = Netns::new("pod");
    let _tun0 = tun(&pod, "tun0");
    pod.ip("link set tun0 up");
    with(in_namespace(&pod.path()), "").sh("true").fails(&[
        "tun0",
        "no Ethernet header",
        "network.model = \"tcfilter\"",
    ]);
    assert!(!pod.ip("-br link").contains("rttap"));
}
