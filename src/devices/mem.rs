//! virtio-mem, virtio 1.2 §5.15: memory that comes and goes in blocks while the guest runs.
//!
//! The device has a region of the guest's address space, of which nothing is plugged at first. The host asks for a size
//! ([`Control::request`]), the driver plugs or unplugs blocks until it has that, as far as it can. What is unplugged is given back to the
//! host, and reads as zeros. The whole region is one sparse file that the file server has mapped from the start; that an
//! ill-behaved guest touches none of it unasked is the sandbox's cgroup to enforce, like its use of all other memory.
//!
//! The blocks are the device's only state. There are none in a machine that nobody has asked to grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::DescriptorChain;
use vm_memory::Bytes;

use super::{ActivationContext, Error, Memory, VirtioDevice, Watch, give_back};

/// Of the queue; [`RESIZE`] is the host's request.
const QUEUE: u32 = 0;
/// Source number for [`VirtioDevice::process`]: the requested size has changed.
pub const RESIZE: u32 = 1;
/// A transparent huge page, so that a block is backed by one.
pub const BLOCK: u64 = 2 << 20;

/// §5.15.6: request types and response types.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;
/// struct virtio_mem_req: type, padding, address, number of blocks, padding.
const REQUEST_BYTES: usize = 24;
/// struct virtio_mem_resp: type, padding, state, padding.
const RESPONSE_BYTES: usize = 10;
/// §5.15.3: unplugged memory is not accessed by the driver.
const F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// What the host asks for and what there is, in bytes; shared with the device.
#[derive(Debug, Clone, Default)]
pub struct Control(Arc<Sizes>);

#[derive(Debug, Default)]
struct Sizes {
    requested: AtomicU64,
    plugged: AtomicU64,
}

impl Control {
    /// The device is to be told by [`RESIZE`].
    pub fn request(&self, bytes: u64) {
        self.0.requested.store(bytes, Ordering::Relaxed);
    }

    pub fn plugged(&self) -> u64 {
        self.0.plugged.load(Ordering::Relaxed)
    }
}

/// The device.
pub struct Mem {
    control: Control,
    start: u64,
    /// Whether each block is plugged.
    blocks: Vec<bool>,
    requested: u64,
    config: [u8; 56],
    config_changed: bool,
    active: Option<(ActivationContext, Watch)>,
}

impl Mem {
    /// Of a region of `memory`, both ends multiples of [`BLOCK`].
    pub fn new(start: u64, length: u64, control: Control) -> Self {
        let blocks = vec![false; (length / BLOCK) as usize];
        let config = [0; 56];
        let mut device =
            Self { control, start, blocks, requested: 0, config, config_changed: false, active: None };
        device.write_config();
        device
    }

    fn length(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// §5.15.4: block size, node (none), address, region, usable part of it, plugged, requested.
    fn write_config(&mut self) {
        let length = self.length();
        let fields = [BLOCK, 0, self.start, length, length, self.control.plugged(), self.requested];
        for (place, field) in self.config.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
    }

    /// Which blocks a request means; `None` where it means none.
    fn range(&self, address: u64, count: u16) -> Option<std::ops::Range<usize>> {
        let offset = address.checked_sub(self.start).filter(|offset| offset % BLOCK == 0)?;
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(count.into())?;
        (count > 0 && end <= self.blocks.len()).then_some(first..end)
    }

    /// Response type and state.
    fn answer(&mut self, request: &[u8; REQUEST_BYTES], memory: &Memory) -> Result<(u16, u16), Error> {
        let half = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let address = u64::from_le_bytes(request[8..16].try_into().expect("eight bytes"));
        let (kind, count) = (half(0), half(16));
        if kind == UNPLUG_ALL {
            self.unplug(0..self.blocks.len(), memory)?;
            return Ok((ACK, 0));
        }
        let Some(range) = self.range(address, count) else { return Ok((ERROR, 0)) };
        let all =
            |state: bool, device: &Self| device.blocks[range.clone()].iter().all(|block| *block == state);
        let bytes = u64::from(count) * BLOCK;
        match kind {
            STATE if all(true, self) => Ok((ACK, PLUGGED)),
            STATE if all(false, self) => Ok((ACK, UNPLUGGED)),
            STATE => Ok((ACK, MIXED)),
            PLUG if !all(false, self) => Ok((ERROR, 0)),
            // §5.15.6.1: more than was asked for is not to be had.
            PLUG if self.control.plugged() + bytes > self.requested => Ok((NACK, 0)),
            PLUG => {
                self.blocks[range].fill(true);
                self.count();
                Ok((ACK, 0))
            }
            UNPLUG if all(true, self) => {
                self.unplug(range, memory)?;
                Ok((ACK, 0))
            }
            _ => Ok((ERROR, 0)),
        }
    }

    fn unplug(&mut self, range: std::ops::Range<usize>, memory: &Memory) -> Result<(), Error> {
        let (first, count) = (range.start as u64, range.len() as u64);
        give_back(memory, self.start + first * BLOCK, count * BLOCK)?;
        self.blocks[range].fill(false);
        self.count();
        Ok(())
    }

    fn count(&mut self) {
        let plugged = self.blocks.iter().filter(|block| **block).count() as u64 * BLOCK;
        self.control.0.plugged.store(plugged, Ordering::Relaxed);
        self.write_config();
    }

    fn process_queue(&mut self, context: &mut ActivationContext) -> Result<(), Error> {
        let ActivationContext { memory, queues, .. } = context;
        queues[0].serve(memory, |chain| self.serve(chain, memory))
    }

    /// One request; what makes no sense is used and not answered.
    fn serve(&mut self, mut chain: DescriptorChain<&Memory>, memory: &Memory) -> Result<u32, Error> {
        let mut request = [0; REQUEST_BYTES];
        let (Some(asked), Some(answered)) = (chain.next(), chain.next()) else { return Ok(0) };
        let makes_sense = !asked.is_write_only()
            && asked.len() as usize >= REQUEST_BYTES
            && answered.is_write_only()
            && answered.len() as usize >= RESPONSE_BYTES;
        if !makes_sense || memory.read_slice(&mut request, asked.addr()).is_err() {
            return Ok(0);
        }
        let (kind, state) = self.answer(&request, memory)?;
        let mut response = [0; RESPONSE_BYTES];
        response[..2].copy_from_slice(&kind.to_le_bytes());
        response[8..].copy_from_slice(&state.to_le_bytes());
        let written = memory.write_slice(&response, answered.addr()).is_ok();
        Ok(if written { RESPONSE_BYTES as u32 } else { 0 })
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << F_UNPLUGGED_INACCESSIBLE
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn config_has_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn activate(&mut self, context: ActivationContext) -> Result<(), Error> {
        let watch = context.events.watch(context.queues[0].kick_fd(), QUEUE)?;
        self.active = Some((context, watch));
        Ok(())
    }

    fn process(&mut self, source: u32) -> Result<(), Error> {
        if source == RESIZE {
            self.requested = self.control.0.requested.load(Ordering::Relaxed).min(self.length());
            self.write_config();
            self.config_changed = true;
            return Ok(());
        }
        let Some((mut context, watch)) = self.active.take() else { return Ok(()) };
        let result = self.process_queue(&mut context);
        self.active = Some((context, watch));
        result
    }

    /// §5.15.5.2: blocks stay plugged over a reset; a driver that comes anew asks for their state.
    fn reset(&mut self) {
        self.active = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{FileOffset, GuestAddress};

    use super::*;

    const START: u64 = 1 << 32;

    fn device(blocks: u64, requested: u64) -> (Mem, Memory, Control) {
        let file = File::from(memfd_create(c"region", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(blocks * BLOCK).unwrap();
        let part = FileOffset::new(file, 0);
        let range = (GuestAddress(START), (blocks * BLOCK) as usize, Some(part));
        let memory = Memory::from_ranges_with_files([range]).unwrap();
        let control = Control::default();
        let mut device = Mem::new(START, blocks * BLOCK, control.clone());
        control.request(requested * BLOCK);
        device.process(RESIZE).unwrap();
        (device, memory, control)
    }

    fn ask(device: &mut Mem, memory: &Memory, kind: u16, block: u64, count: u16) -> (u16, u16) {
        let mut request = [0; REQUEST_BYTES];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&(START.wrapping_add(block.wrapping_mul(BLOCK))).to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        device.answer(&request, memory).unwrap()
    }

    #[test]
    fn blocks_come_and_go_as_asked_for() {
        let (mut device, memory, control) = device(8, 4);
        assert!(device.config_has_changed() && !device.config_has_changed());
        assert_eq!(ask(&mut device, &memory, STATE, 0, 8), (ACK, UNPLUGGED));
        assert_eq!(ask(&mut device, &memory, PLUG, 2, 3), (ACK, 0));
        assert_eq!(ask(&mut device, &memory, STATE, 2, 3), (ACK, PLUGGED));
        assert_eq!(ask(&mut device, &memory, STATE, 0, 8), (ACK, MIXED));
        assert_eq!(control.plugged(), 3 * BLOCK);
        assert_eq!(device.config()[40..48], (3 * BLOCK).to_le_bytes());
        // Five would be more than the four that were asked for.
        assert_eq!(ask(&mut device, &memory, PLUG, 5, 2), (NACK, 0));
        assert_eq!(ask(&mut device, &memory, UNPLUG, 2, 2), (ACK, 0));
        assert_eq!(ask(&mut device, &memory, UNPLUG_ALL, 0, 0), (ACK, 0));
        assert_eq!(control.plugged(), 0);
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let (mut device, memory, _) = device(4, 4);
        assert_eq!(ask(&mut device, &memory, PLUG, 0, 2), (ACK, 0));
        for (kind, block, count) in [
            (PLUG, 1, 1),
            (PLUG, 3, 2),
            (PLUG, 4, 1),
            (PLUG, 2, 0),
            (PLUG, u64::MAX, 1),
            (UNPLUG, 1, 2),
            (UNPLUG, 2, 1),
            (STATE, 0, u16::MAX),
            (9, 0, 1),
        ] {
            assert_eq!(ask(&mut device, &memory, kind, block, count), (ERROR, 0), "{kind} {block} {count}");
        }
    }

    #[test]
    fn unplugged_memory_is_given_back() {
        use std::os::unix::fs::MetadataExt;
        let (mut device, memory, _) = device(4, 4);
        ask(&mut device, &memory, PLUG, 0, 4);
        let region = vm_memory::GuestMemory::find_region(&memory, GuestAddress(START)).unwrap();
        let file = vm_memory::GuestMemoryRegion::file_offset(region).unwrap().file();
        let used = || file.metadata().unwrap().blocks() * 512;
        memory.write_slice(&vec![1; 3 * BLOCK as usize], GuestAddress(START)).unwrap();
        assert!(used() >= 3 * BLOCK);
        ask(&mut device, &memory, UNPLUG, 0, 2);
        assert!(used() < 2 * BLOCK, "{}", used());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(START)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(START + 2 * BLOCK)).unwrap(), 1);
    }
}
