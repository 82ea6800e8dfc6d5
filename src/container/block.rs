//! Gives a container the host's block devices that its configuration asks for. A device is plugged into the machine once, for all
//! containers of its pod, and stays as long as that.

use serde::{Deserialize, Serialize};

use super::Error;
use super::record::{Record, State, Store};
use crate::agent::{Agent, BlockDevice};
use crate::hypervisor::{self, BLOCK_SLOTS, GuestDevice, VmRecord};
use crate::share::block::{Wanted, renumber, wanted};
use oci_spec::runtime::Spec;

/// A block device of the machine: part of the state record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Of the host.
    number: (i64, i64),
    readonly: bool,
    slot: usize,
    /// Once it is plugged.
    device: Option<GuestDevice>,
}

/// Plugs what `host`, the container's configuration, asks for and the machine does not have, and puts the guest's numbers into `spec`.
///
/// # Errors
/// [`Error::Disk`] names the device; what the record and the agent say.
pub fn give(
    store: &Store,
    record: &Record,
    host: &Spec,
    spec: &mut Spec,
    agent: &Agent,
) -> Result<(), Error> {
    let wanted = wanted(host);
    let mut numbers = Vec::new();
    if !wanted.is_empty() {
        let state = store.lock(record.sandbox.as_deref().unwrap_or(&record.id))?;
        let mut owner = state.read()?;
        let vm = owner.vm.clone().ok_or(Error::NotRunning)?;
        let devices = wanted.iter().map(|disk| plug(&state, &mut owner, &vm, disk));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        let found = agent.plug_block(devices)?;
        numbers.extend(wanted.iter().map(|disk| disk.number).zip(found));
    }
    renumber(spec, &numbers);
    Ok(())
}

/// What the agent is to look for.
fn plug(state: &State, owner: &mut Record, vm: &VmRecord, disk: &Wanted) -> Result<BlockDevice, Error> {
    let is_it = |there: &&Plugged| there.number == disk.number && there.readonly == disk.readonly;
    let there = owner.disks.iter().filter(is_it).find_map(|there| Some((there.slot, there.device.clone()?)));
    let (slot, device) = match there {
        Some(there) => there,
        None => plug_new(state, owner, vm, disk)?,
    };
    Ok(BlockDevice { address: device.address, serial: serial(slot), ..Default::default() })
}

fn plug_new(
    state: &State,
    owner: &mut Record,
    vm: &VmRecord,
    disk: &Wanted,
) -> Result<(usize, GuestDevice), Error> {
    let failed = |source| Error::Disk { path: disk.path.clone(), number: disk.number, source };
    let opened = disk.open().map_err(failed)?;
    let is_taken = |slot: &usize| owner.disks.iter().any(|there| there.slot == *slot);
    let slot = (0..BLOCK_SLOTS).find(|slot| !is_taken(slot));
    let full =
        || std::io::Error::other(format!("a virtual machine has room for {BLOCK_SLOTS} block devices"));
    let slot = slot.ok_or_else(|| failed(full()))?;
    owner.disks.push(Plugged { number: disk.number, readonly: disk.readonly, slot, device: None });
    state.write(owner)?;
    let block = hypervisor::Block {
        slot,
        serial: serial(slot),
        file: opened.file.into(),
        bytes: opened.bytes,
        block_size: opened.block_size,
        readonly: disk.readonly,
    };
    let plugged = hypervisor::plug_block(vm, block);
    match &plugged {
        Ok(device) => owner.disks.last_mut().expect("it was pushed").device = Some(device.clone()),
        Err(_) => drop(owner.disks.pop()),
    }
    state.write(owner)?;
    Ok((slot, plugged.map_err(failed)?))
}

fn serial(slot: usize) -> String {
    format!("rt{slot}")
}
