//! Interfaces that carry IP and no Ethernet frames of use: the guest has Ethernet ones in their place.

use netlink_packet_route::link::NetkitMode;

use super::netns::{Netns, Pair, in_namespace};
use super::plugging::{becomes, has_netkit};
use super::shows;
use super::traffic::{self, Client, GUEST};
use super::tun::{Wire, tun};
use crate::shell::{Bundle, Container, host, skipped};

/// 10.9.0.2 and fd09::2 in the pod, 10.9.0.1 and fd09::1 at the peer, each with a route for all else, on interfaces that are there.
fn address(pod: &Netns, peer: &Netns, name: &str) {
    for (end, own, other) in [(pod, 2, 1), (peer, 1, 2)] {
        end.ip(&format!("addr add 10.9.0.{own} peer 10.9.0.{other} dev {name}"));
        end.ip(&format!("addr add fd09::{own}/64 dev {name} nodad"));
        end.ip(&format!("link set {name} up"));
        end.ip(&format!("route add default dev {name}"));
        end.ip(&format!("-6 route add default dev {name}"));
    }
}

fn serving(pod: &Netns) -> Bundle {
    let mut bundle = in_namespace(&pod.path());
    traffic::lay(&bundle);
    bundle.args(&GUEST);
    bundle
}

/// TCP with segments of any size, and UDP with fragments, from both ends.
fn carries_everything(peer: &Netns, ends: &[(&str, &str)]) {
    let _server = traffic::serve_in(peer);
    peer.within(|| {
        for (guest, own) in ends {
            let client = Client::new(guest);
            client.echo(b"hello");
            client.datagrams(50);
            client.sends(8 << 20);
            client.receives(8 << 20);
            client.asks_to_call(own);
        }
    });
}

const BOTH: [(&str, &str); 2] = [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")];

/// What the guest has is Ethernet that asks nobody.
fn looks_like_ethernet(container: &Container<'_>, name: &str) {
    let look = format!("ip link show dev {name}; ip addr show dev {name}; ip route; ip -6 route");
    shows(
        &container.sh(&look),
        &[
            "NOARP",
            "link/ether 02:72:",
            "inet 10.9.0.2 peer 10.9.0.1/32",
            "inet6 fd09::2/64",
            &format!("default dev {name}"),
        ],
    );
}

/// Bytes a packet, as they went through an interface.
fn size_of_packets(netns: &Netns, name: &str, direction: &str) -> u64 {
    let number = |what: &str| -> u64 {
        let path = format!("/sys/class/net/{name}/statistics/{direction}_{what}");
        netns.run(&format!("cat {path}")).trim().parse().expect("a number")
    };
    number("bytes") / number("packets").max(1)
}

#[test]
fn a_tun_device_carries_everything() {
    let (pod, peer) = (Netns::new("pod"), Netns::new("peer"));
    let wire = Wire::between(tun(&pod, "tun0"), tun(&peer, "tun0"));
    address(&pod, &peer, "tun0");
    let link_local = pod.run("ip -6 -o addr show dev tun0 scope link | awk '{ print $4 }'");
    let bundle = serving(&pod);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    looks_like_ethernet(&container, "tun0");
    // The namespace's, and none besides.
    let seen = container.sh("ip -6 -o addr show dev tun0 scope link | awk '{ print $4 }'");
    assert_eq!(seen.text().trim(), link_local.trim());
    carries_everything(&peer, &BOTH);
    for direction in ["rx", "tx"] {
        let size = size_of_packets(&pod, "tun0", direction);
        assert!(size > 1500, "{direction}: {size} bytes a packet: segments are cut on the way");
    }
    drop(container);
    drop(wire);
    let left = pod.ip("-br link");
    assert!(!left.contains("rttap"), "{left}");
}

/// Between Ethernet interfaces, and one after the other on the same device of the machine.
#[test]
fn a_tun_device_comes_and_goes() {
    let pair = Pair::new("");
    let bundle = super::serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    for round in 1..=2 {
        let (one, other) = (tun(&pair.pod, "tun0"), tun(&pair.peer, "tun0"));
        for (end, last) in [(&pair.pod, 2), (&pair.peer, 1)] {
            end.ip(&format!("addr add 10.8.{round}.{last}/24 dev tun0"));
            end.ip("link set tun0 up");
        }
        let wire = Wire::between(one, other);
        becomes(&container, "ip addr show dev tun0", &format!("10.8.{round}.2/24"), true);
        pair.peer.within(|| Client::new(&format!("10.8.{round}.2")).echo(b"hello"));
        drop(wire);
        becomes(&container, "ip link show", "tun0", false);
        pair.connect("eth1", round, "");
        becomes(&container, "ip addr show dev eth1", &format!("10.9.{round}.2/24"), true);
        pair.peer.within(|| Client::new(&format!("10.9.{round}.2")).echo(b"hello"));
        pair.peer.within(|| Client::new(&format!("fd09:{round}::2")).echo(b"hello"));
        pair.peer.ip("link del eth1");
        becomes(&container, "ip link show", "eth1", false);
    }
    let slots: Vec<_> = container.record()["network"]["links"].as_array().expect("links").clone();
    assert_eq!(slots.len(), 2, "{slots:?}");
    drop(container);
    pair.is_clean();
}

#[test]
fn a_netkit_device_in_layer_3_mode_carries_everything() {
    const NAME: &str = "a_netkit_device_in_layer_3_mode_carries_everything";
    let (pod, peer) = (Netns::new("pod"), Netns::new("peer"));
    if !has_netkit(&pod, NetkitMode::L3) {
        return skipped(NAME, "the host's kernel has no netkit");
    }
    pod.ip(&format!("link set nk0 netns {} name eth0", peer.name));
    address(&pod, &peer, "eth0");
    let bundle = serving(&pod);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    looks_like_ethernet(&container, "eth0");
    carries_everything(&peer, &BOTH);
    drop(container);
    let left = pod.run("ip -br link; tc qdisc show");
    assert!(!left.contains("rttap") && !left.contains("ingress"), "{left}");
}

/// The namespace of a host, in which the far sides of the pod's and the peer's tunnel are: they are made there and moved.
struct Hosts {
    wire: Pair,
    pod: Netns,
    peer: Netns,
}

impl Hosts {
    fn new() -> Self {
        Self { wire: Pair::new(""), pod: Netns::new("inner"), peer: Netns::new("outer") }
    }

    /// A tunnel between the two; false where the host's kernel has none of this kind. `ends` are the addresses of the hosts.
    fn has_tunnel(&self, kind: &str, ends: [&str; 2]) -> bool {
        let [near, far] = ends;
        let sides = [(&self.wire.pod, &self.pod, near, far), (&self.wire.peer, &self.peer, far, near)];
        sides.into_iter().all(|(host, inside, local, remote)| {
            host.can(&format!("link add wan0 type {kind} local {local} remote {remote}"))
                && host.can(&format!("link set wan0 netns {}", inside.name))
        })
    }

    fn serves(&self, ends: &[(&str, &str)]) {
        let bundle = serving(&self.pod);
        let container = bundle.run_detached(&[]);
        container.wrote("serving");
        carries_everything(&self.peer, ends);
        drop(container);
        let left = self.pod.run("ip -br link; tc qdisc show");
        assert!(!left.contains("rttap") && !left.contains("ingress"), "{left}");
    }
}

#[test]
fn tunnels_carry_what_they_can() {
    let (v4, v6) = (["10.9.0.2", "10.9.0.1"], ["fd09::2", "fd09::1"]);
    for (kind, hosts_of, ends) in [
        ("ipip", v4, &BOTH[..1]),
        ("sit", v4, &BOTH[1..]),
        ("gre", v4, &BOTH),
        ("ip6tnl", v6, &BOTH),
        ("ip6gre", v6, &BOTH),
    ] {
        let hosts = Hosts::new();
        if !hosts.has_tunnel(kind, hosts_of) {
            skipped("tunnels_carry_what_they_can", &format!("the host's kernel has no {kind}"));
            continue;
        }
        eprintln!("{kind}");
        for (end, last) in [(&hosts.pod, 2), (&hosts.peer, 1)] {
            end.ip("link set wan0 up");
            if ends.contains(&BOTH[0]) {
                end.ip(&format!("addr add 10.9.0.{last}/24 dev wan0"));
            }
            if ends.contains(&BOTH[1]) {
                end.ip(&format!("addr add fd09::{last}/64 dev wan0 nodad"));
            }
        }
        hosts.serves(ends);
    }
}

#[test]
fn wireguard_carries_everything() {
    const NAME: &str = "wireguard_carries_everything";
    let hosts = Hosts::new();
    if !hosts.wire.pod.can("link add wan0 type wireguard") {
        return skipped(NAME, "the host's kernel has no wireguard");
    }
    if std::process::Command::new("wg").arg("--version").output().is_err() {
        return skipped(NAME, "wg is not here (wireguard-tools)");
    }
    hosts.wire.peer.ip("link add wan0 type wireguard");
    let keys = ["genkey", "genkey"].map(|how| host(&format!("wg {how}")).trim().to_owned());
    let public = keys.each_ref().map(|key| host(&format!("echo {key} | wg pubkey")).trim().to_owned());
    let sides = [
        (&hosts.wire.pod, &hosts.pod, &keys[0], &public[1], "10.9.0.1"),
        (&hosts.wire.peer, &hosts.peer, &keys[1], &public[0], "10.9.0.2"),
    ];
    for (host, inside, key, other, endpoint) in sides {
        host.run(&format!(
            "echo {key} >/tmp/{0}.key; wg set wan0 private-key /tmp/{0}.key listen-port 51820 peer {other} \
             allowed-ips 0.0.0.0/0,::/0 endpoint {endpoint}:51820; rm /tmp/{0}.key; ip link set wan0 netns {1}",
            host.name, inside.name
        ));
    }
    address(&hosts.pod, &hosts.peer, "wan0");
    hosts.serves(&BOTH);
}

/// Such an interface is Ethernet to the guest as it is, but finds its neighbours by routes.
#[test]
fn ipvlan_in_layer_3_mode_carries_everything() {
    let (pair, pod) = (Pair::new(""), Netns::new("pod"));
    if !pair.pod.can("link add link eth0 name port type ipvlan mode l3") {
        return skipped("ipvlan_in_layer_3_mode_carries_everything", "the host's kernel has no ipvlan");
    }
    pair.pod.ip(&format!("link set port netns {} name eth0", pod.name));
    pod.run(
        "ip addr add 10.7.0.3/32 dev eth0; ip addr add fd07::3/128 dev eth0 nodad; ip link set eth0 up; \
         ip route add default dev eth0; ip -6 route add default dev eth0",
    );
    pair.peer.run("ip route add 10.7.0.0/16 via 10.9.0.2; ip -6 route add fd07::/64 via fd09::2");
    let bundle = serving(&pod);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    carries_everything(&pair.peer, &[("10.7.0.3", "10.9.0.1"), ("fd07::3", "fd09::1")]);
}

/// What comes for it never meets a qdisc of its.
#[test]
fn ipvlan_in_mode_l3s_is_refused() {
    let (pair, pod) = (Pair::new(""), Netns::new("pod"));
    if !pair.pod.can("link add link eth0 name port type ipvlan mode l3s") {
        return skipped("ipvlan_in_mode_l3s_is_refused", "the host's kernel has no ipvlan");
    }
    pair.pod.ip(&format!("link set port netns {} name eth0", pod.name));
    pod.ip("link set eth0 up");
    in_namespace(&pod.path()).sh("true").fails(&["eth0", "l3s", "mode l3"]);
}
