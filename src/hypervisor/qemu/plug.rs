//! Plugs a network interface into a running QEMU: its TAP device's queues over QMP's socket, then back end and device.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use qapi::qmp::{self, Netdev, NetdevTapOptions};

use super::super::{GuestDevice, Nic};
use super::command_line::{NETWORK_BRIDGE_NUMBER, NETWORK_BUS};
use super::qmp::Monitor;
use crate::sys::fd;

/// For each answer: QEMU may still be starting.
const TIMEOUT: Duration = Duration::from_secs(30);

/// # Errors
/// What QEMU or its socket say; nothing stays plugged then.
pub fn plug(control: &Path, nic: Nic) -> io::Result<GuestDevice> {
    let monitor = Monitor::connect(control)?.patient(TIMEOUT);
    let mut session = monitor.session()?;
    let id = format!("net{}", nic.slot);
    let pairs = nic.taps.len();
    let mut give = |kind: &str, descriptors: &[OwnedFd]| -> io::Result<String> {
        let mut names = Vec::new();
        for (index, descriptor) in descriptors.iter().enumerate() {
            let name = format!("{id}-{kind}{index}");
            // White space between two commands, for the descriptor to travel with.
            fd::send(monitor.as_fd(), b" ", descriptor.as_fd())?;
            session.execute(&qmp::getfd { fdname: name.clone() })?;
            names.push(name);
        }
        Ok(names.join(":"))
    };
    let taps = give("tap", &nic.taps)?;
    let vhost = give("vhost", &nic.vhost)?;
    let tap = NetdevTapOptions {
        fds: Some(taps),
        vhost: Some(!nic.vhost.is_empty()),
        vhostfds: (!nic.vhost.is_empty()).then_some(vhost),
        ..NetdevTapOptions::default()
    };
    session.execute(&qmp::netdev_add(Netdev::tap { id: id.clone(), tap }))?;
    if let Err(error) = session.execute(&device(&id, &nic, pairs)) {
        let _ = session.execute(&qmp::netdev_del { id });
        return Err(error.into());
    }
    Ok(GuestDevice { address: format!("{NETWORK_BRIDGE_NUMBER}/{:02x}", number(nic.slot)) })
}

/// Behind the bridge: 0 is the bridge's own hot-plug controller.
fn number(slot: usize) -> usize {
    slot + 1
}

/// QEMU's names of what driver and TAP device leave to each other.
const OFFLOADS: [&str; 11] = [
    "csum",
    "gso",
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_ufo",
];

fn device(id: &str, nic: &Nic, pairs: usize) -> qmp::device_add {
    let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut arguments = qapi::Dictionary::new();
    let mut set = |name: &str, value: serde_json::Value| drop(arguments.insert(name.into(), value));
    set("netdev", id.into());
    set("mac", mac.into());
    set("addr", format!("{:x}", number(nic.slot)).into());
    // No boot from the network.
    set("romfile", "".into());
    if !nic.offloads {
        OFFLOADS.iter().for_each(|name| set(name, false.into()));
    }
    if pairs > 1 {
        set("mq", true.into());
        // One for each queue, for the control queue, and for the configuration.
        set("vectors", (2 * pairs + 2).into());
    }
    qmp::device_add {
        driver: "virtio-net-pci".into(),
        id: Some(format!("{id}-device")),
        bus: Some(NETWORK_BUS.into()),
        arguments,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_where_the_guest_is_told() {
        let nic = |offloads| Nic {
            slot: 3,
            mac: [2, 0, 0, 0, 0, 0xab],
            taps: Vec::new(),
            vhost: Vec::new(),
            offloads,
        };
        let text = serde_json::to_value(device("net3", &nic(true), 2)).expect("plain data");
        assert_eq!(text["addr"], "4");
        assert_eq!(text["mac"], "02:00:00:00:00:ab");
        assert_eq!((&text["vectors"], &text["mq"]), (&6.into(), &true.into()));
        assert!(text.get("csum").is_none());
        let text = serde_json::to_value(device("net3", &nic(false), 1)).expect("plain data");
        assert_eq!((&text["csum"], &text["host_tso4"]), (&false.into(), &false.into()));
    }
}
