//! Plugs a block device into a running QEMU: its descriptor over QMP's socket into a set, then back end and device.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use qapi::qmp::{self, BlockdevOptions, BlockdevOptionsBase, BlockdevOptionsFile, OnOffAuto};

use super::super::{Block, GuestDevice, NETWORK_SLOTS};
use super::command_line::{NETWORK_BRIDGE_NUMBER, NETWORK_BUS};
use super::qmp::Monitor;
use crate::sys::fd;

/// For each answer: QEMU may still be starting.
const TIMEOUT: Duration = Duration::from_secs(30);

/// # Errors
/// What QEMU or its socket say; nothing stays plugged then.
pub fn plug(control: &Path, block: Block) -> io::Result<GuestDevice> {
    let monitor = Monitor::connect(control)?.patient(TIMEOUT);
    let mut session = monitor.session()?;
    let set = block.slot as i64;
    // White space between two commands, for the descriptor to travel with.
    fd::send(monitor.as_fd(), b" ", block.file.as_fd())?;
    session.execute(&qmp::add_fd { fdset_id: Some(set), opaque: None })?;
    let node = format!("disk{}", block.slot);
    let plugged = match session.execute(&qmp::blockdev_add(back_end(&node, &block))) {
        Err(error) => Err(error),
        Ok(_) => session.execute(&device(&node, &block)).map(drop).inspect_err(|_| {
            let _ = session.execute(&qmp::blockdev_del { node_name: node.clone() });
        }),
    };
    // QEMU has a descriptor of its own of it by now, or has no use for it.
    let _ = session.execute(&qmp::remove_fd { fdset_id: set, fd: None });
    plugged?;
    Ok(GuestDevice { address: format!("{NETWORK_BRIDGE_NUMBER}/{:02x}", number(block.slot)) })
}

/// Behind the bridge, after its own controller and the network interfaces.
fn number(slot: usize) -> usize {
    NETWORK_SLOTS + slot + 1
}

fn back_end(node: &str, block: &Block) -> BlockdevOptions {
    let base = BlockdevOptionsBase {
        node_name: Some(node.into()),
        read_only: Some(block.readonly),
        auto_read_only: None,
        cache: None,
        detect_zeroes: None,
        discard: None,
        force_share: None,
    };
    let host_device = BlockdevOptionsFile {
        filename: format!("/dev/fdset/{}", block.slot),
        // Who may use it at once is the operator's affair, as with a container.
        locking: Some(OnOffAuto::off),
        aio: None,
        aio_max_batch: None,
        drop_cache: None,
        pr_manager: None,
        x_check_cache_dropped: None,
    };
    BlockdevOptions::host_device { base, host_device }
}

fn device(node: &str, block: &Block) -> qmp::device_add {
    let mut arguments = qapi::Dictionary::new();
    let mut set = |name: &str, value: serde_json::Value| drop(arguments.insert(name.into(), value));
    set("drive", node.into());
    set("serial", block.serial.clone().into());
    set("addr", format!("{:x}", number(block.slot)).into());
    qmp::device_add {
        driver: "virtio-blk-pci".into(),
        id: Some(format!("{node}-device")),
        bus: Some(NETWORK_BUS.into()),
        arguments,
    }
}
