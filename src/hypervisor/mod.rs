//! Virtual machines: what one is to be ([`VmSpec`]), how it is started ([`Hypervisor`]) and used ([`Vm`]).
//!
//! Two backends: `kvm`, rt's own VMM, and `qemu`, which also works without KVM. `select` chooses. The VM is the unit:
//! nobody above this room knows vCPUs, sockets or devices.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::text::printable;

mod console;
pub mod kvm;
pub mod process;
pub mod qemu;
pub mod select;
pub mod vsock;

pub use console::read as console;

/// What a kernel plugs at once of memory (x86's memory blocks), MiB: it leaves the rest of a region that is no multiple of it unused.
const MEMORY_BLOCK_MIB: u32 = 128;

/// A virtual machine to be started. Plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmSpec {
    /// The sandbox's ID; only for names that people read (ps, logs).
    pub id: String,
    /// That the guest starts with: 1 to 32.
    pub vcpus: u8,
    /// That it can use: from `vcpus` to 32. Those beyond are there and idle until its agent is told to use them.
    pub max_vcpus: u8,
    /// That the guest starts with: 32 to 65,536.
    pub memory_mib: u32,
    /// That it can get: from `memory_mib` to 65,536.
    pub max_memory_mib: u32,
    /// Uncompressed ELF kernel with a PVH note.
    pub kernel: PathBuf,
    /// cpio archive.
    pub initramfs: PathBuf,
    /// Added to what the backend's own machine needs on the command line.
    pub kernel_parameters: String,
    /// Whether the guest has a virtio-rng device.
    pub entropy: bool,
    /// Whether the host gets back what the guest has freed (a virtio-balloon device, for its reports).
    pub page_reporting: bool,
    /// Shows the whole guest console, not only warnings and panics.
    pub console: bool,
    /// Exists, private to this sandbox; the backend may keep sockets in it.
    pub state_dir: PathBuf,
    /// Network interfaces can be plugged.
    pub network: bool,
    /// So many block devices can be plugged, up to [`BLOCK_SLOTS`].
    pub block_slots: usize,
    /// virtio-fs tag of the share served at the other end of [`VmFds::share`].
    pub share_tag: String,
}

impl VmSpec {
    /// What the kernel has to be told whatever carries it, then of its size. Processors beyond `maxcpus` are described to it but not started, and can be
    /// later (Documentation/admin-guide/kernel-parameters.txt).
    ///
    /// Memory that is plugged is used at once. The part of it that can be unplugged with certainty, as nothing lies in it that cannot be moved,
    /// is at most three times what the kernel has for itself (admin-guide/mm/memory-hotplug.rst, auto-movable). There is no device
    /// that would need the bounce buffers that a kernel reserves because of memory above 4 GiB.
    fn parameters(&self) -> String {
        let mut words = vec![PARAMETERS.to_owned()];
        if self.max_vcpus > self.vcpus {
            words.push(format!("maxcpus={}", self.vcpus));
        }
        if self.max_memory_mib > self.memory_mib {
            words.push(
                "memhp_default_state=online memory_hotplug.online_policy=auto-movable swiotlb=noforce".into(),
            );
        }
        words.join(" ")
    }
}

/// - `panic=-1`: a guest that panics resets.
/// - `no_timer_check`, `noreplace-smp`, `cryptomgr.notests`: checks whose answers are known here.
/// - `dummy.numdummies=0`: no network device that nobody asked for.
/// - `percpu_alloc=page`: memory for each processor grows by some 200 KiB at a time instead of 2 MiB, for which the kernel fills a table of 4 MiB:
///   that was to be paid by the second container of each machine.
const PARAMETERS: &str =
    "panic=-1 no_timer_check noreplace-smp cryptomgr.notests dummy.numdummies=0 percpu_alloc=page";

/// Descriptors that a VM is started with.
#[derive(Debug)]
pub struct VmFds {
    /// A connected Unix stream socket whose other end serves vhost-user-fs.
    pub share: OwnedFd,
}

/// The kinds of backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// rt's own VMM on a KVM that runs stock guests.
    Kvm,
    /// QEMU with `-accel kvm` or `-accel tcg`.
    Qemu,
}

/// What a state record keeps of a VM, enough for another process to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    pub kind: Kind,
    /// The VMM process.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: together with the pid it names one process for ever.
    pub start_time: u64,
    /// The Unix socket of rt's own vsock muxer: connect, send `CONNECT PORT\n`, read `OK PORT\n`, then the stream.
    pub vsock: PathBuf,
    /// The Unix socket of the VMM's control: QMP, or the built-in VMM's own.
    pub control: PathBuf,
}

/// So many network interfaces can be plugged into a VM.
pub const NETWORK_SLOTS: usize = 8;
/// So many pairs of queues an interface has at most.
pub const MAX_QUEUE_PAIRS: usize = 8;

/// A network interface to be plugged into a running VM.
#[derive(Debug)]
pub struct Nic {
    /// Below [`NETWORK_SLOTS`], and free.
    pub slot: usize,
    pub mac: [u8; 6],
    /// Queues of one TAP device, 1 to [`MAX_QUEUE_PAIRS`].
    pub taps: Vec<OwnedFd>,
    /// /dev/vhost-net, opened once for each of them; empty: the VMM moves the frames.
    pub vhost: Vec<OwnedFd>,
    /// Checksums and segmentation are left to the other side.
    pub offloads: bool,
}

/// So many block devices can be plugged into a VM.
pub const BLOCK_SLOTS: usize = 4;

/// A block device of the host to be plugged into a running VM.
#[derive(Debug)]
pub struct Block {
    /// Below [`VmSpec::block_slots`], and free.
    pub slot: usize,
    /// What the guest knows it by; at most 20 bytes.
    pub serial: String,
    /// Opened for writing unless `readonly`.
    pub file: OwnedFd,
    pub bytes: u64,
    /// Logical.
    pub block_size: u32,
    pub readonly: bool,
}

/// Plugs a block device into a VM that another process may have started. The guest is still to be told.
///
/// # Errors
/// What the VMM says; the descriptor is closed then.
pub fn plug_block(vm: &VmRecord, block: Block) -> std::io::Result<GuestDevice> {
    match vm.kind {
        Kind::Kvm => kvm::plug_block(&vm.control, block),
        Kind::Qemu => qemu::plug_block(&vm.control, block),
    }
}

/// Where a guest finds a device: as in `NetworkDevice` of the agent's protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDevice {
    pub address: String,
}

/// Plugs a network interface into a VM that another process may have started. The guest is still to be told.
///
/// # Errors
/// [`Error::Plug`]; the interface's descriptors are closed then.
pub fn plug(vm: &VmRecord, nic: Nic) -> Result<GuestDevice, Error> {
    let slot = nic.slot;
    let plugged = match vm.kind {
        Kind::Kvm => kvm::plug(&vm.control, nic),
        Kind::Qemu => qemu::plug(&vm.control, nic),
    };
    plugged.map_err(|source| Error::Plug { slot, source })
}

/// Memory of a VM comes and goes in units of so many MiB.
pub const MEMORY_UNIT_MIB: u32 = 2;

/// Gives a VM so much memory beyond what it started with, in units of [`MEMORY_UNIT_MIB`]: how much it has when that is reached, or when its guest has
/// come no closer to it for as long as `patience`, or not all the way for ten times that. What is then still missing the guest goes on to give, when it can.
///
/// # Errors
/// [`Error::Memory`]: the VMM refuses.
pub fn resize_memory(vm: &VmRecord, mib: u32, patience: Duration) -> Result<u32, Error> {
    let plugged = match vm.kind {
        Kind::Kvm => kvm::plugged_memory,
        Kind::Qemu => qemu::plugged_memory,
    };
    let resized = approach(u64::from(mib) << 20, patience, |wanted| plugged(&vm.control, wanted));
    // The VMM is as little to be trusted as its guest.
    Ok(u32::try_from(resized.map_err(Error::Memory)? >> 20).unwrap_or(u32::MAX))
}

/// `plugged` asks for so many bytes, or for nothing, and tells how many there are. A guest that goes to and fro comes no closer.
fn approach(
    wanted: u64,
    patience: Duration,
    mut plugged: impl FnMut(Option<u64>) -> std::io::Result<u64>,
) -> std::io::Result<u64> {
    let start = Instant::now();
    let mut now = plugged(Some(wanted))?;
    let (mut deadline, mut closest) = (start + patience, wanted.abs_diff(now));
    while now != wanted && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        now = plugged(None)?;
        if wanted.abs_diff(now) < closest {
            closest = wanted.abs_diff(now);
            deadline = (Instant::now() + patience).min(start + patience * 10);
        }
    }
    Ok(now)
}

/// A way to start virtual machines.
pub trait Hypervisor {
    /// Starts the VM and returns as soon as its process runs; the guest is still booting.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind then.
    fn launch(&self, spec: &VmSpec, fds: VmFds) -> Result<Box<dyn Vm>, Error>;

    /// Whether software executes the guest's instructions: then everything in it takes several times as long.
    fn emulates(&self) -> bool {
        false
    }
}

/// A started virtual machine. Dropping it kills the VMM process and reaps it.
pub trait Vm {
    /// For the state record.
    fn record(&self) -> VmRecord;

    /// Readable once the VMM process has ended.
    fn pidfd(&self) -> BorrowedFd<'_>;

    /// Whether its boot is to serve later machines, too.
    fn makes_template(&self) -> bool {
        false
    }

    /// The next connection that the guest makes to the host's beacon port (`rt_proto::BEACON_PORT`). Returns early with
    /// [`Error::Ended`] when the VMM ends first.
    ///
    /// # Errors
    /// [`Error::Deadline`] when `deadline` passes first.
    fn accept(&mut self, deadline: Instant) -> Result<OwnedFd, Error>;

    /// Kills the VMM process and does not wait for its end.
    fn kill(&mut self);

    /// Kills the VMM process if it still runs, reaps it, removes what the backend laid into `state_dir`, and tells how it ended. Idempotent.
    fn end(&mut self) -> Ending;
}

/// As good as for ever, and no more than an instant holds.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A stream to a port on which the guest listens; `socket` is [`VmRecord::vsock`]. The guest may take so long to accept it.
///
/// # Errors
/// [`Error::Connect`]
pub fn connect(socket: &Path, port: u32, timeout: Duration) -> Result<OwnedFd, Error> {
    begin_connect(socket, port, timeout, &[])?.finish()
}

/// A stream to the guest that has been asked for.
pub struct Connecting {
    stream: vsock::Connecting,
    port: u32,
}

/// Asks for a stream as [`connect`] does, and does not wait for it: several then take the time of one. `first` is what goes through it first.
///
/// # Errors
/// [`Error::Connect`]
pub fn begin_connect(socket: &Path, port: u32, timeout: Duration, first: &[u8]) -> Result<Connecting, Error> {
    let stream = vsock::Connecting::begin(socket, port, Instant::now() + timeout.min(LONGEST), first);
    Ok(Connecting { stream: stream.map_err(|source| Error::Connect { port, source })?, port })
}

impl Connecting {
    /// # Errors
    /// [`Error::Connect`]
    pub fn finish(self) -> Result<OwnedFd, Error> {
        let port = self.port;
        self.stream.finish().map_err(|source| Error::Connect { port, source })
    }
}

/// How a VMM process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Exit code or signal in words, for a message.
    pub status: String,
    /// What the VMM itself logged last.
    pub log: String,
    /// The last lines of the guest's console, made printable.
    pub console: String,
    /// Marks of the VMM's timeline: name, CLOCK_MONOTONIC in ns.
    pub timeline: Vec<(String, u64)>,
}

/// What this room may fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the guest's {what} {path}: {reason}")]
    File { what: &'static str, path: PathBuf, reason: String },
    #[error("cannot use the {backend} hypervisor: {reason}")]
    Unusable { backend: &'static str, reason: String },
    #[error("the virtual machine ended ({}) before its agent answered{}", .0.status, .0.tail())]
    Ended(Box<Ending>),
    #[error("the guest did not answer before the deadline{}", .0.tail())]
    Deadline(Box<Ending>),
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        port: u32,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start the virtual machine: {what}")]
    Launch {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot plug a network interface into slot {slot} of the virtual machine")]
    Plug {
        slot: usize,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot change the virtual machine's memory")]
    Memory(#[source] std::io::Error),
    #[error(transparent)]
    Jail(#[from] crate::jail::Error),
}

/// Of the lines that an error message quotes.
const LONGEST_LINE: usize = 512;

impl Ending {
    /// The last words of VMM and guest, for the end of an error message; empty when there are none. Of a kernel's panic
    /// its first line, which says why, rather than the end of its stack trace.
    pub fn tail(&self) -> String {
        let mut tail = String::new();
        for (who, text) in [("VMM", &self.log), ("guest", &self.console)] {
            let panic = text.lines().find(|line| line.contains("Kernel panic - "));
            let lines: Vec<&str> =
                panic.map_or_else(|| text.lines().rev().take(8).collect(), |line| vec![line]);
            if !lines.is_empty() {
                tail.push_str(&format!("; {who}: "));
                let lines = lines.into_iter().rev().map(|line| printable(line, LONGEST_LINE));
                tail.push_str(&lines.collect::<Vec<_>>().join(" | "));
            }
        }
        tail
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Ending, approach};

    #[test]
    fn memory_is_waited_for_as_long_as_it_comes() {
        let patience = Duration::from_millis(40);
        // A guest that takes some each time, one that takes none, one that goes to and fro, one that always takes a little.
        let mut taken = 0;
        let steady = approach(100, Duration::from_secs(60), |_| {
            taken += 10;
            Ok(taken)
        });
        assert_eq!(steady.unwrap(), 100);
        assert_eq!(approach(100, patience, |_| Ok(3)).unwrap(), 3);
        let mut asked = 0_u64;
        let begin = Instant::now();
        let restless = approach(100, patience, |_| {
            asked += 1;
            Ok(asked % 2)
        });
        assert!(restless.unwrap() < 2 && begin.elapsed() < 5 * patience);
        let mut taken = 0;
        let slow = approach(u64::MAX, patience, |_| {
            taken += 1;
            Ok(taken)
        });
        assert!(slow.unwrap() > 1 && begin.elapsed() < 40 * patience);
    }

    #[test]
    fn the_tail_is_the_last_lines_or_the_panic() {
        let numbers: String = (1..=20).map(|number| format!("{number}\n")).collect();
        let ending = Ending { console: "x".repeat(60_000), ..Ending::default() };
        assert_eq!(ending.tail().len(), "; guest: ".len() + super::LONGEST_LINE);
        let ending = Ending { console: numbers, log: "one\n".into(), ..Ending::default() };
        assert_eq!(ending.tail(), "; VMM: one; guest: 13 | 14 | 15 | 16 | 17 | 18 | 19 | 20");
        let console =
            "[1] Kernel panic - not syncing: No working init\n".to_owned() + &"[1] trace\n".repeat(20);
        let ending = Ending { console, ..Ending::default() };
        assert_eq!(ending.tail(), "; guest: [1] Kernel panic - not syncing: No working init");
    }
}
