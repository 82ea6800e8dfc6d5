//! Measurements (`make bench`): TCP between a pod and its peer, with rt's own VMM, with QEMU on the same TAP and vhost-net, and by a plain veth.

use std::time::Instant;

use super::netns::Pair;
use super::serving_bundle;
use super::traffic::{self, Client};
use crate::bench::{Table, median};
use crate::shell::{Bundle, Place, place};

/// Of each figure, the median is taken: now and then a round is a third faster than all others, whoever's it is.
const ROUNDS: usize = 7;
/// By so much two runs of the same differ, where software emulates the machine.
const NOISE: f64 = 0.1;
const ROUND_TRIPS: usize = 500;
const VETH: &str = "a plain veth, no VM";
const QEMU: &str = "QEMU";
const OWN: &str = "rt's VMM";

/// One whose TCP is measured.
struct Pod {
    who: &'static str,
    pair: Pair,
}

impl Pod {
    fn new(who: &'static str) -> Self {
        Self { who, pair: Pair::new("") }
    }

    fn bundle(&self, hypervisor: &str, settings: &str) -> Bundle {
        let mut bundle = serving_bundle(&self.pair);
        bundle.settings = format!("[hypervisor]\nkind = \"{hypervisor}\"\n{settings}");
        bundle
    }

    /// Seconds that `work` takes on `amount`.
    fn time(&self, work: fn(&Client, usize), amount: usize) -> f64 {
        self.pair.peer.within(|| {
            let client = Client::new("10.9.0.2");
            client.round_trips(100);
            let start = Instant::now();
            work(&client, amount);
            start.elapsed().as_secs_f64()
        })
    }
}

/// One row for each pod. They are measured in turn, so that what the host does to one it does to the others, too.
fn compare(table: &mut Table, what: &str, unit: &str, pods: &[Pod], amount: usize, work: fn(&Client, usize)) {
    let mut rounds = vec![Vec::new(); pods.len()];
    for _ in 0..ROUNDS {
        for (rounds, pod) in rounds.iter_mut().zip(pods) {
            rounds.push(amount as f64 / pod.time(work, amount));
        }
    }
    let figures: Vec<f64> = rounds.iter_mut().map(|rounds| median(rounds)).collect();
    let of = |who| pods.iter().position(|pod| pod.who == who).map(|index| figures[index]);
    for (pod, &figure) in pods.iter().zip(&figures) {
        let least = if pod.who == OWN { of(QEMU).map(|figure| figure * (1.0 - NOISE)) } else { None };
        table.row_at_least(format!("{what}, {}", pod.who), figure, unit, least);
    }
}

#[test]
#[ignore = "a measurement: make bench"]
fn network() {
    let mib: usize = std::env::var("RT_TEST_BULK_MIB").map_or(64, |text| text.parse().expect("a number"));
    println!();
    let mut table = Table::default();
    table.part("TCP", |table| {
        let mut pods = vec![Pod::new(VETH), Pod::new(QEMU)];
        let _server = traffic::serve_in(&pods[0].pair.pod);
        let mut bundles = vec![pods[1].bundle("qemu", "")];
        if place() == Place::Kvm {
            for (who, settings) in [(OWN, ""), ("rt's VMM without vhost-net", "[network]\nvhost = false\n")] {
                let pod = Pod::new(who);
                bundles.push(pod.bundle("kvm", settings));
                pods.push(pod);
            }
        }
        let containers: Vec<_> = bundles.iter().map(|bundle| bundle.run_detached(&[])).collect();
        containers.iter().for_each(|container| container.wrote("serving"));
        compare(table, "TCP to a pod", "MiB/s", &pods, mib, |client, mib| client.floods((mib as u64) << 20));
        compare(table, "TCP from a pod", "MiB/s", &pods, mib, |client, mib| {
            client.drains((mib as u64) << 20)
        });
        compare(table, "TCP round trips to a pod", "/s", &pods, ROUND_TRIPS, Client::round_trips);
    });
    table.end("network.json");
}
