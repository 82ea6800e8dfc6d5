//! Block devices that the host has plugged: which of the guest's disks each of them is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rt_proto::messages::{BlockDevice, BlockNumber};

use crate::network;

/// The number of a plugged device's disk.
///
/// # Errors
/// For the host, in words.
pub fn plug(device: &BlockDevice) -> Result<BlockNumber, String> {
    let told = |error: io::Error| format!("cannot find the block device {}: {error}", device.address);
    let directory = network::directory(&device.address).map_err(told)?;
    let disk = disk_of(&directory).ok_or_else(|| told(io::Error::other("it has no disk")))?;
    let read = |name: &str| fs::read_to_string(disk.join(name)).map_err(told);
    let serial = read("serial")?;
    if serial.trim_end() != device.serial {
        let other = format!("the disk there has the serial number {:?}", serial.trim_end());
        return Err(told(io::Error::other(other)));
    }
    number(&read("dev")?).ok_or_else(|| told(io::ErrorKind::InvalidData.into()))
}

/// `virtioN/block/NAME` below a device's directory.
fn disk_of(device: &Path) -> Option<PathBuf> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    entries(device).find_map(|entry| Some(entries(&entry.path().join("block")).next()?.path()))
}

/// As the kernel writes it: `254:16`.
fn number(text: &str) -> Option<BlockNumber> {
    let (major, minor) = text.trim_end().split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(BlockNumber { major, minor, ..BlockNumber::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let read = |text| number(text).map(|number| (number.major, number.minor));
        assert_eq!(read("254:16\n"), Some((254, 16)));
        assert_eq!((read("254"), read("x:1"), read("")), (None, None, None));
    }

    #[test]
    fn a_disk_is_found_by_its_device() {
        let root = std::env::temp_dir().join(format!("rt-agent-block-{}", std::process::id()));
        fs::create_dir_all(root.join("power")).expect("a directory");
        assert_eq!(disk_of(&root), None);
        let disk = root.join("virtio3/block/vda");
        fs::create_dir_all(&disk).expect("a directory");
        assert_eq!(disk_of(&root), Some(disk));
        fs::remove_dir_all(&root).expect("removed");
    }
}
