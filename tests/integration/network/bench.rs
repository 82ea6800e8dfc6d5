//! Measurements (`make bench`): TCP between a pod and its peer, with rt's own VMM, with QEMU on the same TAP and vhost-net, and by a plain veth.

use std::time::Instant;

use super::netns::Pair;
use super::serving_bundle;
use super::traffic::{self, Client};
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
            per_second(mib as f64, &|| client.sends(mib << 20)),
            per_second(mib as f64, &|| client.receives(mib << 20)),
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

#[test]
#[ignore = "a measurement: make bench"]
fn network() {
    let mib: u64 = std::env::var("RT_TEST_BULK_MIB").map_or(64, |text| text.parse().expect("a number"));
    let mut rows = Vec::new();
    let veth = Pair::new("");
    let server = traffic::serve_in(&veth.pod);
    rows.push(("veth, no VM", measure(&veth, mib)));
    drop(server);
    if place() == Place::Kvm {
        rows.push(("rt's VMM, vhost-net", in_a_vm("kvm", "", mib)));
        rows.push(("rt's VMM, without vhost-net", in_a_vm("kvm", "[network]\nvhost = false\n", mib)));
    }
    rows.push(("QEMU", in_a_vm("qemu", "", mib)));
    println!(
        "\n{:<30} {:>12} {:>12} {:>14}",
        "TCP, pod and peer", "to, MiB/s", "from, MiB/s", "round trips/s"
    );
    for (what, [to, from, trips]) in &rows {
        println!("{what:<30} {to:>12.0} {from:>12.0} {trips:>14.0}");
    }
    println!();
}
