//! The guest's network, on the host's behalf: finds the interfaces of devices that were plugged, and hands the host's
//! requests to the kernel. What they mean is the host's affair.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use rt_proto::messages::NetworkDevice;

const PCI: &str = "/sys/devices/pci0000:00";
const PCI_RESCAN: &str = "/sys/bus/pci/rescan";
/// linux/netlink.h: nlmsghdr, of which type is bytes 4 and 5, and nlmsgerr's error behind it.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;

/// The number of a plugged device's interface. A device that was there at boot has its driver already; of one that came later
/// nobody has told the kernel.
pub fn plug(device: &NetworkDevice) -> Result<u32, String> {
    let told = |error: io::Error| format!("cannot find the network device {}: {error}", device.address);
    let directory = directory(&device.address).map_err(told)?;
    let interface =
        interface_of(&directory).ok_or_else(|| told(io::Error::other("it has no network interface")))?;
    // It may have been another's device before. A kernel without IPv6 has no such files, and is as asked.
    let conf = Path::new("/proc/sys/net/ipv6/conf");
    let usual = || fs::read_to_string(conf.join("default/disable_ipv6"));
    let disable = if device.ipv6 { usual() } else { Ok("1".into()) };
    let name = interface.file_name().unwrap_or_default();
    let _ = disable.and_then(|disable| fs::write(conf.join(name).join("disable_ipv6"), disable));
    let index = fs::read_to_string(interface.join("ifindex")).map_err(told)?;
    index.trim().parse().map_err(|_| told(io::ErrorKind::InvalidData.into()))
}

/// Where sysfs has a plugged device, which has its driver then. `address` is its way from the root bus: device numbers in hexadecimal, as
/// in `1c/03`.
pub fn directory(address: &str) -> io::Result<PathBuf> {
    let find = || below(Path::new(PCI), address);
    if let Some(directory) = find() {
        return Ok(directory);
    }
    fs::write(PCI_RESCAN, "1")?;
    find().ok_or_else(|| io::Error::other("it is not on the bus"))
}

fn below(root: &Path, address: &str) -> Option<PathBuf> {
    address.split('/').try_fold(root.to_owned(), |directory, number| {
        let is_it =
            |name: &str| name.strip_suffix(".0").and_then(|name| name.rsplit(':').next()) == Some(number);
        let mut entries = fs::read_dir(&directory).ok()?.flatten();
        Some(entries.find(|entry| entry.file_name().to_str().is_some_and(is_it))?.path())
    })
}

/// `virtioN/net/NAME` below a device's directory.
fn interface_of(device: &Path) -> Option<PathBuf> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    entries(device).find_map(|entry| Some(entries(&entry.path().join("net")).next()?.path()))
}

/// Hands rtnetlink requests to the kernel: its answers, in their order.
pub fn change(requests: &[Vec<u8>]) -> io::Result<Vec<u32>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    requests.iter().map(|request| ask(&kernel, request)).collect()
}

fn ask(kernel: &OwnedFd, request: &[u8]) -> io::Result<u32> {
    send(kernel.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    loop {
        let count = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if let Some(error) = error_of(&answer[..count]) {
            return Ok(error);
        }
    }
}

/// The errno in an acknowledgement; `None` when the message is something else.
fn error_of(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(error.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_carries_an_errno() {
        let answer = |kind: u16, error: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16..20].copy_from_slice(&error.to_ne_bytes());
            bytes
        };
        assert_eq!(error_of(&answer(NLMSG_ERROR, -libc::EEXIST)), Some(libc::EEXIST as u32));
        assert_eq!(error_of(&answer(NLMSG_ERROR, 0)), Some(0));
        assert_eq!(error_of(&answer(16, 0)), None);
        assert_eq!(error_of(&answer(NLMSG_ERROR, 0)[..19]), None);
    }

    #[test]
    fn a_device_is_found_by_its_way_from_the_root_bus() {
        let root = std::env::temp_dir().join(format!("rt-agent-network-{}", std::process::id()));
        let device = root.join("0000:00:1c.0/0000:01:03.0");
        fs::create_dir_all(root.join("0000:00:1c.0/0000:01:02.0/virtio2/net/eth0")).expect("a directory");
        fs::create_dir_all(device.join("power")).expect("a directory");
        assert_eq!(below(&root, "1c/03"), Some(device.clone()));
        assert_eq!(interface_of(&device), None);
        let interface = device.join("virtio3/net/eth1");
        fs::create_dir_all(&interface).expect("a directory");
        assert_eq!(interface_of(&device), Some(interface));
        for wrong in ["1c/04", "1c/..", "../1c/03", ""] {
            assert_eq!(below(&root, wrong), None, "{wrong}");
        }
        fs::remove_dir_all(&root).expect("removed");
    }
}
