//! Network namespaces of the tests.

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::shell::{Bundle, host};

/// A named network namespace; dropped, it is gone.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("rtnet-{}-{number}-{role}", std::process::id()) };
        host(&format!("ip netns add {0} && ip -n {0} link set lo up", netns.name));
        netns
    }

    /// ip(8) in it.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        host(&format!("ip -n {} {words}", self.name))
    }

    /// Whether ip(8) can do this here: not every kernel has every kind of interface.
    pub fn can(&self, words: &str) -> bool {
        let ip = std::process::Command::new("ip").args(["-n", &self.name]).args(words.split(' ')).output();
        ip.is_ok_and(|output| output.status.success())
    }

    /// A line of shell in it, and its output.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        host(&format!("ip netns exec {} sh -ec {}", self.name, quoted(script)))
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Does something in it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there");
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                enter(&namespace);
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A test may have done so.
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Moves this thread into a network namespace.
pub fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("a network namespace");
}

/// For a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A pod's namespace with 10.9.0.2 and fd09::2 on eth0, and a peer's with 10.9.0.1 and fd09::1 at the other end.
pub struct Pair {
    pub pod: Netns,
    pub peer: Netns,
}

impl Pair {
    /// `options` are those of both ends: `mtu 9000`.
    pub fn new(options: &str) -> Self {
        let pair = Self { pod: Netns::new("pod"), peer: Netns::new("peer") };
        pair.connect("eth0", 0, options);
        pair.pod.ip("route add default via 10.9.0.1");
        pair.pod.ip("-6 route add default via fd09::1");
        pair
    }

    /// Another veth: 10.9.NET.2 and fd09:NET::2 in the pod.
    pub fn connect(&self, name: &str, net: u8, options: &str) {
        let (pod, peer) = (&self.pod, &self.peer);
        let net6 = if net == 0 { String::new() } else { format!(":{net}") };
        peer.ip(&format!(
            "link add {name} {options} type veth peer name {name} netns {} {options}",
            pod.name
        ));
        for (end, last) in [(peer, 1), (pod, 2)] {
            end.ip(&format!("addr add 10.9.{net}.{last}/24 dev {name}"));
            end.ip(&format!("addr add fd09{net6}::{last}/64 dev {name} nodad"));
            end.ip(&format!("link set {name} up"));
        }
    }

    /// A bundle in the pod's namespace.
    pub fn bundle(&self) -> Bundle {
        in_namespace(&self.pod.path())
    }

    /// Nothing of rt is left in the pod's namespace.
    #[track_caller]
    pub fn is_clean(&self) {
        let (links, qdiscs) = (self.pod.ip("-br link"), self.pod.run("tc qdisc show"));
        assert!(!links.contains("rttap"), "{links}");
        assert!(!qdiscs.contains("ingress"), "{qdiscs}");
    }
}

/// A bundle in the network namespace at this path.
pub fn in_namespace(path: &str) -> Bundle {
    let mut bundle = Bundle::new();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("an array");
    for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
        namespace["path"] = json!(path);
    }
    bundle
}
