//! Pods on a bridge as the CNI bridge plugin makes it (Debian's containernetworking-plugins), with NAT to the outside.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::netns::{Netns, in_namespace};
use super::plugging::becomes;
use super::traffic::{self, Client, GUEST};
use crate::shell::{Bundle, skipped};

const PLUGINS: &str = "/usr/lib/cni";

/// A node: a namespace in which the plugin makes its bridge, and a wire to the outside, 203.0.113.0/24.
struct Node {
    netns: Netns,
    outside: Netns,
    dir: tempfile::TempDir,
    /// What host-local has to give.
    range: Value,
}

impl Node {
    fn new() -> Self {
        let node = Self {
            netns: Netns::new("node"),
            outside: Netns::new("out"),
            dir: tempfile::tempdir().unwrap(),
            range: json!({"subnet": "10.88.0.0/24"}),
        };
        node.netns.ip(&format!("link add wire type veth peer name wire netns {}", node.outside.name));
        for (end, last) in [(&node.netns, 1), (&node.outside, 2)] {
            end.ip(&format!("addr add 203.0.113.{last}/24 dev wire"));
            end.ip("link set wire up");
        }
        node
    }

    /// Calls the plugin for a pod: `ADD` or `DEL`.
    fn cni(&self, command: &str, pod: &Netns) -> Result<Value, String> {
        let config = json!({
            "cniVersion": "0.4.0", "name": "rtnet", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "ipMasq": self.range["rangeEnd"].is_null(), "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": self.dir.path(), "ranges": [[self.range]],
                     "routes": [{"dst": "0.0.0.0/0"}]},
        });
        let mut plugin = Command::new("ip")
            .args(["netns", "exec", &self.netns.name, &format!("{PLUGINS}/bridge")])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.name)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        plugin.stdin.take().expect("piped").write_all(config.to_string().as_bytes()).expect("it reads");
        let output = plugin.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(serde_json::from_str(&text).unwrap_or_default()),
            false => Err(text + &String::from_utf8_lossy(&output.stderr)),
        }
    }
}

fn pod_bundle(pod: &Netns) -> Bundle {
    let mut bundle = in_namespace(&pod.path());
    traffic::lay(&bundle);
    bundle.args(&GUEST);
    bundle
}

fn address(result: &Value) -> String {
    let text = result["ips"][0]["address"].as_str().expect("an address");
    text.split('/').next().expect("a word").to_owned()
}

#[test]
fn two_pods_on_a_bridge_and_nat_outward() {
    const NAME: &str = "two_pods_on_a_bridge_and_nat_outward";
    if !Path::new(PLUGINS).join("bridge").exists() {
        return skipped(NAME, "containernetworking-plugins is not installed");
    }
    let node = Node::new();
    let pods = [Netns::new("a"), Netns::new("b")];
    let added: Result<Vec<Value>, String> = pods.iter().map(|pod| node.cni("ADD", pod)).collect();
    let added = match added {
        Ok(added) => added,
        // The KVM machine's kernel comes without the modules for NAT.
        Err(error) if error.contains("iptables") => return skipped(NAME, &error),
        Err(error) => panic!("{error}"),
    };
    let addresses: Vec<String> = added.iter().map(address).collect();
    let bundles: Vec<Bundle> = pods.iter().map(pod_bundle).collect();
    let containers: Vec<_> = bundles.iter().map(|bundle| bundle.run_detached(&[])).collect();
    containers.iter().for_each(|container| container.wrote("serving"));

    // The node to each pod, and each pod to the other.
    node.netns.within(|| {
        for (own, other) in [(0, 1), (1, 0)] {
            let client = Client::new(&addresses[own]);
            client.echo(b"hello");
            client.asks_to_call(&addresses[other]);
        }
    });
    // Outward: the outside knows no way to the pods, so what arrives has the node's address.
    let outside = traffic::serve_in(&node.outside);
    node.netns.within(|| Client::new(&addresses[0]).asks_to_call("203.0.113.2"));
    drop(outside);
    drop(containers);
    for pod in &pods {
        node.cni("DEL", pod).expect("the plugin takes the pod away");
    }
}

/// No address is left in the subnet: the plugin fails before rt is called, and rt is told of an empty namespace. When there is one again, and the plugin is called
/// again, the container that runs has it.
#[test]
fn a_pod_without_an_address_has_only_the_loopback() {
    let pods = [Netns::new("a"), Netns::new("b")];
    in_namespace(&pods[1].path()).sh("ls /sys/class/net").says(&["lo"]);
    if !Path::new(PLUGINS).join("bridge").exists() {
        let why = "containernetworking-plugins is not installed";
        return skipped("a_pod_without_an_address_has_only_the_loopback", why);
    }
    let mut node = Node::new();
    node.range = json!({"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.2", "rangeEnd": "10.88.0.2"});
    node.cni("ADD", &pods[0]).expect("the first has the address");
    let error = node.cni("ADD", &pods[1]).expect_err("there is one address");
    assert!(error.contains("no IP addresses available"), "{error}");
    // What it has made by then stays, down.
    let bundle = pod_bundle(&pods[1]);
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    container.sh("ls /sys/class/net").says(&["lo"]);
    for pod in &pods {
        node.cni("DEL", pod).expect("the first gives it back, the second what is half made");
    }
    let added = node.cni("ADD", &pods[1]).expect("it is free");
    becomes(&container, "ip addr show dev eth0; ip route", "default via 10.88.0.1", true);
    node.netns.within(|| Client::new(&address(&added)).echo(b"hello"));
    drop(container);
    node.cni("DEL", &pods[1]).expect("the plugin takes the pod away");
}
