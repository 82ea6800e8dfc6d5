//! Interfaces that appear, change and go while the virtual machine is there.

use std::time::Instant;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoNetkit, LinkAttribute, LinkInfo, LinkMessage, NetkitMode,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::{Bundle, Container, host, patience, skipped};

use super::netns::{Netns, Pair, in_namespace};
use super::traffic::{self, Client, GUEST};
use super::{serving_bundle, shows};

/// As docker 20.10 does it: by a prestart hook that finds the namespace by the monitor's PID.
#[test]
fn a_hook_fills_the_namespace() {
    let peer = Netns::new("peer");
    let mut bundle = Bundle::new();
    let script = format!(
        "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); ip -n {0} link add eth0 type veth peer name eth0 netns $pid && \
         ip -n {0} addr add 10.9.0.1/24 dev eth0 && ip -n {0} link set eth0 up && \
         nsenter -t $pid -n sh -c 'ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.0.1'",
        peer.name
    );
    let hook = bundle.file("hook", format!("#!/bin/sh\n{script}\n"));
    host(&format!("chmod +x {}", hook.display()));
    bundle.config["hooks"] =
        serde_json::json!({"prestart": [{"path": hook, "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}]});
    bundle.capabilities(&["CAP_NET_RAW"]);
    shows(&bundle.sh("ip route && ping -c 1 -W 5 10.9.0.1"), &["default via 10.9.0.1", "0% packet loss"]);
}

/// As docker 26 does it.
#[test]
fn a_caller_fills_the_namespace_between_create_and_start() {
    let peer = Netns::new("peer");
    let mut bundle = Bundle::new();
    traffic::lay(&bundle);
    bundle.args(&GUEST);
    let container = bundle.create(&[]);
    let pid = container.pid();
    peer.ip(&format!("link add eth0 type veth peer name eth0 netns {pid}"));
    peer.ip("addr add 10.9.0.1/24 dev eth0");
    peer.ip("link set eth0 up");
    host(&format!("nsenter -t {pid} -n sh -c 'ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up'"));
    container.start();
    // It is there as soon as the process runs.
    let seen = bundle.rt(&["exec", &bundle.id, "/bin/ip", "-4", "addr", "show", "dev", "eth0"]);
    shows(&seen, &["10.9.0.2/24"]);
    container.wrote("serving");
    peer.within(|| Client::new("10.9.0.2").echo(b"hello"));
}

#[test]
fn what_changes_in_the_namespace_changes_in_the_guest() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let becomes = |script: &str, word: &str, there: bool| becomes(&container, script, word, there);
    pair.connect("eth1", 1, "mtu 1300");
    becomes("ip addr show dev eth1", "fd09:1::2/64", true);
    becomes("cat /sys/class/net/eth1/mtu", "1300", true);
    pair.peer.within(|| Client::new("10.9.1.2").echo(b"hello"));
    pair.pod.ip("route add 192.0.2.0/24 via 10.9.1.1");
    becomes("ip route", "192.0.2.0/24 via 10.9.1.1 dev eth1", true);
    pair.pod.ip("route del 192.0.2.0/24 via 10.9.1.1");
    becomes("ip route", "192.0.2.0/24", false);
    pair.pod.ip("addr add 10.9.1.9/24 dev eth1");
    becomes("ip addr show dev eth1", "10.9.1.9", true);
    pair.pod.ip("addr del 10.9.1.9/24 dev eth1");
    becomes("ip addr show dev eth1", "10.9.1.9", false);
    pair.peer.ip("link del eth1");
    becomes("ip link show dev eth1", "UP", false);
    pair.peer.within(|| Client::new("10.9.0.2").echo(b"still here"));
    drop(container);
    pair.is_clean();
}

/// Waits until what a script in the container writes has the word, or no longer has it.
#[track_caller]
pub fn becomes(container: &Container<'_>, script: &str, word: &str, there: bool) {
    let deadline = Instant::now() + patience(30);
    loop {
        let ended = container.sh(script);
        if ended.text().contains(word) == there {
            return;
        }
        assert!(Instant::now() < deadline, "{word:?} there: {}\n{ended}", !there);
    }
}

/// A neighbour alone is news, when it is entered and when it is deleted.
#[test]
fn what_changes_of_neighbours_changes_in_the_guest() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    for family in ["10.9.0.77", "fd09::77"] {
        let becomes =
            |word: &str, there| becomes(&container, &format!("ip neigh show {family}"), word, there);
        pair.pod.ip(&format!("neigh replace {family} lladdr 02:00:00:00:00:77 dev eth0 nud permanent"));
        becomes("02:00:00:00:00:77", true);
        pair.pod.ip(&format!("neigh replace {family} lladdr 02:00:00:00:00:78 dev eth0 nud permanent"));
        becomes("02:00:00:00:00:78", true);
        pair.pod.ip(&format!("neigh del {family} dev eth0"));
        becomes("PERM", false);
    }
    pair.peer.within(|| Client::new("10.9.0.2").echo(b"still here"));
    drop(container);
    pair.is_clean();
}

/// As `docker network connect` and `disconnect` do, oftener than the machine has slots: by a name of its own each time, and by the same one.
#[test]
fn interfaces_come_and_go_as_often_as_they_like() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    for net in 1..=10 {
        let name = if net > 5 { "again".into() } else { format!("eth{net}") };
        pair.connect(&name, net, if net % 2 == 0 { "mtu 1400" } else { "" });
        becomes(&container, &format!("ip addr show dev {name}"), &format!("fd09:{net}::2/64"), true);
        let mac = pair.pod.run(&format!("cat /sys/class/net/{name}/address /sys/class/net/{name}/mtu"));
        let seen = container.sh(&format!("cat /sys/class/net/{name}/address /sys/class/net/{name}/mtu"));
        assert_eq!(seen.text().trim(), mac.trim());
        pair.peer.within(|| {
            Client::new(&format!("10.9.{net}.2")).sends(1 << 20);
            Client::new(&format!("fd09:{net}::2")).echo(b"hello");
        });
        pair.peer.ip(&format!("link del {name}"));
        becomes(&container, "ip link show", &name, false);
    }
    // Without a rest between, of all but one.
    for net in 1..=7 {
        pair.connect(&format!("eth{net}"), net, "");
    }
    becomes(&container, "ip addr show dev eth7", "fd09:7::2/64", true);
    pair.pod.run("for net in 1 2 3 4 5 6; do ip link del eth$net; done");
    for net in 11..=16 {
        pair.connect(&format!("eth{}", net - 10), net, "");
    }
    for net in 11..=16 {
        let name = format!("eth{}", net - 10);
        becomes(&container, &format!("ip addr show dev {name}"), &format!("fd09:{net}::2/64"), true);
        // These and the kernel's own, and none of the former interface.
        becomes(&container, &format!("ip addr show dev {name} | grep -c inet"), "3", true);
        pair.peer.within(|| Client::new(&format!("10.9.{net}.2")).echo(b"hello"));
    }
    let links = container.sh("ip link show").text();
    assert!(!links.contains("DOWN"), "{links}");
    pair.peer.within(|| Client::new("10.9.0.2").echo(b"still here"));
    // Of those that came later nothing is left either.
    kill(Pid::from_raw(container.pid()), Signal::SIGKILL).expect("it is there");
    container.reaches("stopped");
    container.rt(&["delete"]).says(&[]);
    pair.is_clean();
}

/// The guest's kernel drops routes, IPv6 addresses and neighbours with a link that is taken down for its new name.
#[test]
fn a_renamed_interface_keeps_what_it_has() {
    const NAME: &str = "a_renamed_interface_keeps_what_it_has";
    let pair = Pair::new("");
    pair.pod.ip("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let has_all = |name: &str, neighbour: bool| {
        // By the last thing that the guest is given.
        let last = if neighbour { "ip neigh" } else { "ip -6 route" };
        let word = if neighbour {
            format!("10.9.0.77 dev {name}")
        } else {
            format!("default via fd09::1 dev {name}")
        };
        becomes(&container, last, &word, true);
        let routes = [format!("default via 10.9.0.1 dev {name}"), format!("default via fd09::1 dev {name}")];
        let addresses = ["inet 10.9.0.2/24", "inet6 fd09::2/64"];
        let words: Vec<&str> = routes.iter().map(String::as_str).chain(addresses).collect();
        shows(&container.sh(&format!("ip route; ip -6 route; ip addr show dev {name}")), &words);
        pair.peer.within(|| {
            Client::new("10.9.0.2").echo(b"hello");
            Client::new("fd09::2").echo(b"hello");
        });
    };
    // At once, so that rt sees a new name and the same routes.
    pair.pod.run(
        "ip link set eth0 down; ip link set eth0 name net1; ip link set net1 up; ip route add default via 10.9.0.1; \
         ip addr add fd09::2/64 dev net1 nodad; ip -6 route add default via fd09::1",
    );
    has_all("net1", false);
    pair.pod.ip("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:77 dev net1 nud permanent");
    if pair.pod.can("link set net1 name net2") {
        has_all("net2", true);
    } else {
        skipped(NAME, "the host's kernel renames no interface that is up");
    }
    drop(container);
    pair.is_clean();
}

/// With an interface's last IPv4 address its routes go, too.
#[test]
fn a_changed_address_keeps_the_routes() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.pod.run(
        "ip addr del 10.9.0.2/24 dev eth0; ip addr add 10.9.0.3/24 dev eth0; ip route add default via 10.9.0.1",
    );
    becomes(&container, "ip addr show dev eth0", "10.9.0.2/24", false);
    becomes(&container, "ip route", "default via 10.9.0.1 dev eth0", true);
    pair.peer.within(|| Client::new("10.9.0.3").echo(b"hello"));
    drop(container);
    pair.is_clean();
}

/// Names that the guest's kernel gives in the order of plugging are not the namespace's.
#[test]
fn names_are_the_namespaces_whatever_their_order() {
    let pair = Pair::new("");
    for (name, net) in [("net7", 7), ("eth2", 2), ("eth1", 1)] {
        pair.connect(name, net, "");
    }
    let script = "for i in eth0 eth1 eth2 net7; do ip -4 -o addr show dev $i | awk '{ print $2, $4 }'; done";
    let ended = pair.bundle().sh(script);
    ended.says(&["eth0 10.9.0.2/24", "eth1 10.9.1.2/24", "eth2 10.9.2.2/24", "net7 10.9.7.2/24"]);
    pair.is_clean();
}

/// Other kinds of interface than veth, as far as the host's kernel has them.
#[test]
fn other_kinds_of_interface_work() {
    const NAME: &str = "other_kinds_of_interface_work";
    for (kind, mode) in [("macvlan", "bridge"), ("ipvlan", "l2")] {
        // A wire between two hosts; the pod's interface lies on one host's end of it.
        let (pair, pod) = (Pair::new(""), Netns::new(kind));
        if !pair.pod.can(&format!("link add link eth0 name port type {kind} mode {mode}")) {
            skipped(NAME, &format!("the host's kernel has no {kind}"));
            continue;
        }
        pair.pod.ip(&format!("link set port netns {} name eth0", pod.name));
        pod.ip("addr add 10.9.0.3/24 dev eth0");
        pod.ip("link set eth0 up");
        let mut bundle = in_namespace(&pod.path());
        bundle.capabilities(&["CAP_NET_RAW"]);
        shows(&bundle.sh("ping -c 2 -i 0.2 -W 5 10.9.0.1"), &[" 0% packet loss"]);
    }
    let pod = Netns::new("others");
    let kinds = [("tap0", "tuntap add dev tap0 mode tap"), ("idle", "link add idle type dummy")];
    for (name, _) in kinds.into_iter().filter(|(_, how)| pod.can(how)) {
        pod.ip(&format!("addr add 10.9.0.3/24 dev {name}"));
        pod.ip(&format!("link set {name} up"));
        shows(&in_namespace(&pod.path()).sh(&format!("ip addr show dev {name}")), &["10.9.0.3/24"]);
        pod.ip(&format!("link set {name} down"));
    }
}

/// A network card, moved into the pod's namespace; the wire's other end is the peer's card.
#[test]
fn a_physical_interface_works() {
    if std::env::var_os("KVM_MACHINE").is_none() {
        return skipped(
            "a_physical_interface_works",
            "the host's cards are its own; the KVM machine has two to play with",
        );
    }
    let (pod, peer) = (Netns::new("pod"), Netns::new("peer"));
    for (card, end, last) in [("eth0", &pod, 2), ("eth1", &peer, 1)] {
        host(&format!("ip link set {card} netns {} name eth0", end.name));
        end.ip(&format!("addr add 10.9.0.{last}/24 dev eth0"));
        end.ip(&format!("addr add fd09::{last}/64 dev eth0 nodad"));
        end.ip("link set eth0 up");
    }
    let mut bundle = in_namespace(&pod.path());
    traffic::lay(&bundle);
    bundle.args(&GUEST);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let _server = traffic::serve_in(&peer);
    peer.within(|| {
        for (guest, own) in [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")] {
            let client = Client::new(guest);
            client.sends(1 << 20);
            client.receives(1 << 20);
            client.asks_to_call(own);
        }
    });
    drop(container);
    // They go home by their names there.
    for (card, end) in [("eth0", &pod), ("eth1", &peer)] {
        end.ip(&format!("link set eth0 down name {card} netns 1"));
    }
}

/// A netkit pair of this mode (Linux 6.7), eth0 here and nk0 beside it; false where the host's kernel has none. ip(8) of Debian 12 knows no mode.
pub fn has_netkit(netns: &Netns, mode: NetkitMode) -> bool {
    let kind =
        [LinkInfo::Kind(InfoKind::Netkit), LinkInfo::Data(InfoData::Netkit(vec![InfoNetkit::Mode(mode)]))];
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::LinkInfo(kind.into())];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::NewLink(link)));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let answer = netns.within(|| {
        let socket = Socket::new(NETLINK_ROUTE).expect("a socket");
        socket.send(&bytes, 0).expect("sent");
        socket.recv_from_full().expect("answered").0
    });
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).expect("an answer");
    matches!(answer.payload, NetlinkPayload::Error(error) if error.code.is_none())
}

#[test]
fn netkit_in_layer_2_mode_works() {
    const NAME: &str = "netkit_in_layer_2_mode_works";
    let (pod, peer) = (Netns::new("pod"), Netns::new("peer"));
    if !has_netkit(&pod, NetkitMode::L2) {
        return skipped(NAME, "the host's kernel has no netkit");
    }
    pod.ip(&format!("link set nk0 netns {} name eth0", peer.name));
    for (end, last) in [(&peer, 1), (&pod, 2)] {
        end.ip(&format!("addr add 10.9.0.{last}/24 dev eth0"));
        end.ip("link set eth0 up");
    }
    let mut bundle = in_namespace(&pod.path());
    bundle.capabilities(&["CAP_NET_RAW"]);
    shows(&bundle.sh("ping -c 2 -i 0.2 -W 5 10.9.0.1"), &[" 0% packet loss"]);
}
