//! Measurements (`make bench`): TCP between a pod and its peer, with rt's own VMM, with QEMU on the same TAP and vhost-net, and by a plain veth.

use std::time::Instant;

use super::netns::Pair;
use super::serving_bundle;
use super::traffic::{self, Client};
use crate::bench::Table;
use crate::shell::{Place, place};

/// Of each figure, the best is taken: what else runs on the machine only ever takes away.
const ROUNDS: usize = 3;
const ROUND_TRIPS: usize = 2000;

/// MiB/s to the pod and from it, and round trips a second.
type Figures = [f64; 3];

fn measure(pair: &Pair, mib: u64) -> Figures {
    pair.peer.within(|| {
        let client = Client::new("10.9.0.2");
        client.round_trips(100);
        let per_second = |amount: f64, work: &dyn Fn()| {
            let best = (0..ROUNDS).map(|_| {
                let start = Instant::now();
                work();
                amount / start.elapsed().as_secs_f64()
            });
            best.fold(0.0, f64::max)
        };
        [
            per_second(mib as f64, &|| client.floods(mib << 20)),
            per_second(mib as f64, &|| client.drains(mib << 20)),
            per_second(ROUND_TRIPS as f64, &|| client.round_trips(ROUND_TRIPS)),
        ]
    })
}

fn in_a_vm(hypervisor: &str, settings: &str, mib: u64) -> Figures {
    let pair = Pair::new("");
    let mut bundle = serving_bundle(&pair);
    bundle.settings = format!("[hypervisor]\nkind = \"{hypervisor}\"\n{settings}");
    let container = bundle.run_detached(&[]);
    container.wrote("serving");
    measure(&pair, mib)
}

/// What to beat: the figures of QEMU.
fn tell(table: &mut Table, who: &str, [to, from, trips]: Figures, least: Option<Figures>) {
    let bound = |index: usize| least.map(|least| least[index]);
    table.row_at_least(format!("TCP to a pod, {who}"), to, "MiB/s", bound(0));
    table.row_at_least(format!("TCP from a pod, {who}"), from, "MiB/s", bound(1));
    table.row_at_least(format!("TCP round trips to a pod, {who}"), trips, "/s", bound(2));
}

#[test]
#[ignore = "a measurement: make bench"]
fn network() {
    let mib: u64 = std::env::var("RT_TEST_BULK_MIB").map_or(64, |text| text.parse().expect("a number"));
    println!();
    let mut table = Table::default();
    table.part("TCP by a plain veth", |table| {
        let veth = Pair::new("");
        let _server = traffic::serve_in(&veth.pod);
        tell(table, "a plain veth, no VM", measure(&veth, mib), None);
    });
    let mut qemu = None;
    table.part("TCP, QEMU", |table| {
        let figures = in_a_vm("qemu", "", mib);
        tell(table, "QEMU", figures, None);
        qemu = Some(figures);
    });
    if place() == Place::Kvm {
        table.part("TCP, rt's VMM", |table| {
            tell(table, "rt's VMM", in_a_vm("kvm", "", mib), qemu);
        });
        table.part("TCP, rt's VMM without vhost-net", |table| {
            let figures = in_a_vm("kvm", "[network]\nvhost = false\n", mib);
            tell(table, "rt's VMM without vhost-net", figures, None);
        });
    }
    table.end("network.json");
}
