//! Networks: what is in a container's network namespace is in its virtual machine.
//!
//! Everything happens in network namespaces that the tests make, and remove. A [`Pair`] is a pod's namespace and a peer's with a
//! veth between them; the peer is this process, on threads of its own ([`Netns::within`]).

mod bench;
mod cni;
mod faults;
mod layer3;
mod macvtap;
mod names;
pub mod netns;
mod plugging;
mod ports;
pub mod traffic;
mod tun;

use crate::shell::{Bundle, Ended, host};
use netns::Pair;
use traffic::{Client, GUEST};

/// It worked, and its output has all these words.
#[track_caller]
pub fn shows(ended: &Ended, words: &[&str]) {
    ended.code(0);
    let text = ended.text();
    for word in words {
        assert!(text.contains(word), "it does not show {word:?}\n{ended}");
    }
}

/// A bundle in a pod's namespace that serves [`traffic`] when it is started.
pub fn serving_bundle(pair: &Pair) -> Bundle {
    let mut bundle = pair.bundle();
    traffic::lay(&bundle);
    bundle.args(&GUEST);
    bundle
}

#[test]
fn the_guest_has_what_is_in_the_namespace() {
    let pair = Pair::new("mtu 1400");
    pair.pod.ip("route add 192.0.2.0/24 via 10.9.0.1 metric 7 mtu 1300");
    pair.pod.ip("route add 198.51.100.7/32 dev eth0");
    pair.pod.ip("route add unreachable 203.0.113.0/24");
    pair.pod.ip("route add default via 10.9.0.1 dev eth0 table 100");
    pair.pod.ip("rule add from 10.9.1.5 lookup 100 priority 500");
    pair.pod.ip("-6 route add 2001:db8:1::/48 via fd09::1");
    pair.pod.ip("neigh add 10.9.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    pair.pod.ip("addr add 10.9.1.5/32 dev eth0");
    let mac = pair.pod.run("cat /sys/class/net/eth0/address");
    let script = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip addr show dev eth0; ip route; \
                  ip -6 route; ip neigh; ip rule; ip route show table 100 | sed 's/^/table 100: /'";
    shows(
        &pair.bundle().sh(script),
        &[
            &mac,
            "1400",
            "inet 10.9.0.2/24",
            "inet 10.9.1.5/32",
            "inet6 fd09::2/64",
            "default via 10.9.0.1 dev eth0",
            "192.0.2.0/24 via 10.9.0.1 dev eth0",
            "198.51.100.7 dev eth0",
            "unreachable 203.0.113.0/24",
            "2001:db8:1::/48 via fd09::1 dev eth0",
            "default via fd09::1 dev eth0",
            "10.9.0.77",
            "02:00:00:00:00:77",
            "500:\tfrom 10.9.1.5 lookup 100",
            "table 100: default via 10.9.0.1 dev eth0",
        ],
    );
    pair.is_clean();
}

/// The distribution's kernel finds its devices by modules.
#[test]
fn the_quick_guest_has_it_too() {
    let pair = Pair::new("");
    let mut bundle = serving_bundle(&pair);
    let file = |name| crate::shell::guest_file("quick", name).display().to_string();
    bundle.settings = format!(
        "[hypervisor]\nkernel = \"{}\"\ninitramfs = \"{}\"\n",
        file("vmlinux"),
        file("initramfs.cpio")
    );
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.within(|| Client::new("10.9.0.2").sends(1 << 20));
    drop(container);
    pair.is_clean();
}

#[test]
fn ping_works_both_ways_with_both_protocols() {
    let pair = Pair::new("");
    let mut bundle = pair.bundle();
    bundle.capabilities(&["CAP_NET_RAW"]);
    let script = "ping -c 3 -i 0.2 -W 5 10.9.0.1 && ping -6 -c 3 -i 0.2 -W 5 fd09::1 && echo ready; while :; do sleep 0.1; done";
    bundle.args(&["/bin/sh", "-c", script]);
    let container = bundle.run_detached(&[]);
    container.wrote("ready");
    pair.peer.run("busybox ping -c 3 -i 0.2 -W 5 10.9.0.2 && busybox ping -6 -c 3 -i 0.2 -W 5 fd09::2");
    drop(container);
    pair.is_clean();
}

#[test]
fn tcp_and_udp_work_both_ways_with_both_protocols() {
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let peer = traffic::serve_in(&pair.peer);
    pair.peer.within(|| {
        for (guest, own) in [("10.9.0.2", "10.9.0.1"), ("fd09::2", "fd09::1")] {
            let client = Client::new(guest);
            client.echo(b"hello");
            client.datagrams(50);
            client.sends(1 << 20);
            client.receives(1 << 20);
            client.asks_to_call(own);
        }
    });
    drop(peer);
    drop(container);
    pair.is_clean();
}

#[test]
fn jumbo_frames_pass_whole() {
    let pair = Pair::new("mtu 9000");
    let mut bundle = pair.bundle();
    bundle.capabilities(&["CAP_NET_RAW"]);
    // Fragments are counted: there are none.
    let script = "ping -c 2 -i 0.2 -W 5 -s 8900 10.9.0.1 && cat /proc/net/snmp | grep ^Ip: | tail -n 1 | awk '{ print \"fragments\", $19, $17 }'";
    shows(&bundle.sh(script), &["8908 bytes from 10.9.0.1", "fragments 0 0"]);
    let mut small = pair.bundle();
    pair.pod.ip("link set eth0 mtu 1500");
    small.capabilities(&["CAP_NET_RAW"]);
    small.sh("cat /sys/class/net/eth0/mtu").says(&["1500"]);
    pair.is_clean();
}

#[test]
fn a_thousand_connections_at_once() {
    let pair = Pair::new("");
    let mut bundle = serving_bundle(&pair);
    bundle.config["process"]["rlimits"] =
        serde_json::json!([{"type": "RLIMIT_NOFILE", "hard": 8192, "soft": 8192}]);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.within(|| Client::new("10.9.0.2").holds_connections(1000));
    drop(container);
    pair.is_clean();
}

/// `RT_TEST_BULK_MIB` is how much; a gigabyte takes minutes where the guest is emulated.
#[test]
fn bulk_data_arrives_whole_both_ways() {
    let mib: u64 = std::env::var("RT_TEST_BULK_MIB").map_or(64, |text| text.parse().expect("a number"));
    let pair = Pair::new("");
    let bundle = serving_bundle(&pair);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.within(|| {
        let client = Client::new("10.9.0.2");
        client.sends(mib << 20);
        client.receives(mib << 20);
        client.both_at_once(mib << 18);
    });
    drop(container);
    pair.is_clean();
}

#[test]
fn several_processors_have_several_queues() {
    let pair = Pair::new("");
    let mut bundle = serving_bundle(&pair);
    bundle.settings = "[hypervisor]\nvcpus = 2\n".into();
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    let queues = bundle.rt(&["exec", &bundle.id, "/bin/sh", "-c", "ls /sys/class/net/eth0/queues"]);
    queues.says(&["rx-0", "rx-1", "tx-0", "tx-1"]);
    pair.peer.within(|| {
        let client = Client::new("10.9.0.2");
        client.holds_connections(50);
        client.sends(4 << 20);
        client.receives(4 << 20);
    });
    drop(container);
    pair.is_clean();
}

/// As where the host has no vhost-net: frames larger than the wire's in both directions, and more than the queues hold.
#[test]
fn without_vhost_net_the_machine_moves_the_frames_itself() {
    let pair = Pair::new("");
    let mut bundle = serving_bundle(&pair);
    bundle.settings = "[hypervisor]\nvcpus = 2\n[network]\nvhost = false\n".into();
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    pair.peer.within(|| {
        let client = Client::new("10.9.0.2");
        client.datagrams(20);
        client.holds_connections(50);
        client.sends(4 << 20);
        client.receives(4 << 20);
        client.both_at_once(1 << 20);
    });
    drop(container);
    pair.is_clean();
}

/// virtio 1.2 §5.1.3: what driver and device have agreed upon, as bits from the lowest on.
#[test]
fn checksums_and_segments_are_left_to_the_last() {
    const OFFLOADS: [(&str, usize); 7] = [
        ("CSUM", 0),
        ("GUEST_CSUM", 1),
        ("GUEST_TSO4", 7),
        ("GUEST_TSO6", 8),
        ("HOST_TSO4", 11),
        ("HOST_TSO6", 12),
        ("MRG_RXBUF", 15),
    ];
    let pair = Pair::new("");
    let ended = pair.bundle().sh("cat /sys/class/net/eth0/device/features");
    let (features, mut off) = (ended.text(), Vec::new());
    for (name, bit) in OFFLOADS {
        if features.as_bytes().get(bit) != Some(&b'1') {
            off.push(name);
        }
    }
    assert!(off.is_empty(), "off: {off:?}\n{ended}");
    pair.is_clean();
}

#[test]
fn the_hosts_network_is_refused_or_replaced_by_an_empty_one() {
    let mut bundle = Bundle::new();
    let namespaces = &mut bundle.config["linux"]["namespaces"];
    crate::shell::without(namespaces, |namespace| namespace["type"] == "network");
    bundle.sh("true").fails(&["cannot give the container the host's network", "network.host = \"empty\""]);
    bundle.settings = "[network]\nhost = \"empty\"\n".into();
    bundle.sh("ls /sys/class/net").says(&["lo"]);
    let own = serde_json::json!({"type": "network", "path": "/proc/self/ns/net"});
    bundle.config["linux"]["namespaces"].as_array_mut().expect("an array").push(own);
    bundle.settings.clear();
    bundle.sh("true").fails(&["cannot give the container the host's network"]);
}

#[test]
fn without_a_model_there_is_only_the_loopback() {
    let pair = Pair::new("");
    let mut bundle = pair.bundle();
    bundle.settings = "[network]\nmodel = \"none\"\n".into();
    bundle.sh("ls /sys/class/net; cat /sys/class/net/lo/flags").says(&["lo", "0x9"]);
    bundle.settings = "[network]\nmodel = \"bridged\"\n".into();
    bundle.sh("true").fails(&["network.model is \"bridged\"", "tcfilter"]);
    pair.is_clean();
}

/// The namespace that the bundle asks rt for is the monitor's, for whoever looks there.
#[test]
fn a_new_namespace_is_the_monitors() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    let pid = container.pid();
    let own = host("readlink /proc/self/ns/net");
    assert_ne!(host(&format!("readlink /proc/{pid}/ns/net")), own);
    assert_eq!(host(&format!("nsenter -t {pid} -n ip -br link | cut -d ' ' -f 1")), "lo");
}
