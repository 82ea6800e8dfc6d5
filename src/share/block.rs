//! Block devices of the host that a container is given: those that its configuration lists as devices and allows by their number.
//!
//! Neither alone means one. Callers list all of the host's devices for a privileged container, and allow everything, which
//! in the guest means the guest's; and nothing is concluded from a path, which may be any in the container.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

/// Major and minor.
pub type Number = (i64, i64);

/// A block device that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// In the container.
    pub path: PathBuf,
    /// Of the host.
    pub number: Number,
    /// The device cgroup does not let the container write.
    pub readonly: bool,
}

/// A block device of the host, opened.
#[derive(Debug)]
pub struct Disk {
    pub file: File,
    pub bytes: u64,
    /// Logical.
    pub block_size: u32,
}

/// The block devices that this configuration asks for.
pub fn wanted(spec: &Spec) -> Vec<Wanted> {
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    let rules = rules(spec);
    let blocks = devices.filter(|device| device.typ() == LinuxDeviceType::B);
    let wanted = blocks.filter_map(|device| {
        let number = (device.major(), device.minor());
        let readonly = is_readonly(rules, number)?;
        Some(Wanted { path: device.path().clone(), number, readonly })
    });
    wanted.collect()
}

fn rules(spec: &Spec) -> &[LinuxDeviceCgroup] {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
}

/// Whether the rules, of which the later count more, let the device be read only; `None` where they do not let it be read, or none of
/// them means this device alone.
fn is_readonly(rules: &[LinuxDeviceCgroup], number: Number) -> Option<bool> {
    let (mut named, mut read, mut write) = (false, false, false);
    for rule in rules {
        let is = |wanted: Option<i64>, number| wanted.is_none_or(|wanted| wanted < 0 || wanted == number);
        let kind = rule.typ().unwrap_or(LinuxDeviceType::A);
        let is_kind = matches!(kind, LinuxDeviceType::A | LinuxDeviceType::B);
        if !is_kind || !is(rule.major(), number.0) || !is(rule.minor(), number.1) {
            continue;
        }
        let access = rule.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
        read = if access.contains('r') { rule.allow() } else { read };
        write = if access.contains('w') { rule.allow() } else { write };
        named |= rule.allow()
            && kind == LinuxDeviceType::B
            && (rule.major(), rule.minor()) == (Some(number.0), Some(number.1));
    }
    (named && read).then_some(!write)
}

impl Wanted {
    /// Opens the host's device with this number, wherever its node is.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] when there is no such node.
    pub fn open(&self) -> io::Result<Disk> {
        let (major, minor) = self.number;
        let about = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
        let uevent = std::fs::read_to_string(about.join("uevent")).unwrap_or_default();
        let named = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let places = [
            Some(self.path.clone()),
            named.map(|name| Path::new("/dev").join(name)),
            Some(PathBuf::from(format!("/dev/block/{major}:{minor}"))),
        ];
        let mut file = self.open_first(places.into_iter().flatten())?;
        let bytes = file.seek(SeekFrom::End(0))?;
        // A partition's is its disk's.
        let block_size = ["queue", "../queue"].iter().find_map(|queue| {
            let text = std::fs::read_to_string(about.join(queue).join("logical_block_size")).ok()?;
            text.trim().parse().ok()
        });
        Ok(Disk { file, bytes, block_size: block_size.unwrap_or(512) })
    }

    fn open_first(&self, places: impl Iterator<Item = PathBuf>) -> io::Result<File> {
        let is_it = |metadata: io::Result<std::fs::Metadata>| {
            let number = makedev(self.number.0 as u64, self.number.1 as u64);
            metadata.is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == number)
        };
        let mut options = OpenOptions::new();
        options.read(true).write(!self.readonly).custom_flags(libc::O_NONBLOCK);
        for place in places.filter(|place| is_it(place.metadata())) {
            let file = options.open(place)?;
            // What is at a path may have changed.
            if is_it(file.metadata()) {
                return Ok(file);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the host has no block device of this number"))
    }
}

/// Puts the guest's numbers of block devices in the place of the host's. Those without one are not the guest's: their nodes and what is
/// allowed of them by number goes.
pub fn renumber(spec: &mut Spec, numbers: &[(Number, Number)]) {
    let guest = |number| numbers.iter().find(|(host, _)| *host == number).map(|(_, guest)| *guest);
    let Some(linux) = spec.linux_mut() else { return };
    if let Some(devices) = linux.devices_mut() {
        devices.retain_mut(|device: &mut LinuxDevice| {
            if device.typ() != LinuxDeviceType::B {
                return true;
            }
            let Some((major, minor)) = guest((device.major(), device.minor())) else { return false };
            device.set_major(major);
            device.set_minor(minor);
            true
        });
    }
    if let Some(rules) = linux.resources_mut().as_mut().and_then(|resources| resources.devices_mut().as_mut())
    {
        rules.retain_mut(|rule| {
            let major = rule.major().filter(|major| *major >= 0);
            let (Some(LinuxDeviceType::B), Some(major)) = (rule.typ(), major) else { return true };
            let Some((major, minor)) = rule.minor().and_then(|minor| guest((major, minor))) else {
                return !rule.allow();
            };
            rule.set_major(Some(major));
            rule.set_minor(Some(minor));
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(devices: Value, rules: Value) -> Spec {
        let linux = json!({"devices": devices, "resources": {"devices": rules}});
        serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": linux})).unwrap()
    }

    fn disk() -> Value {
        json!([{"path": "/dev/xvda", "type": "b", "major": 7, "minor": 3, "fileMode": 432, "uid": 5, "gid": 6},
               {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}])
    }

    fn readonly(rules: Value) -> Option<bool> {
        wanted(&spec(disk(), rules)).first().map(|wanted| wanted.readonly)
    }

    #[test]
    fn a_device_is_given_when_it_is_listed_and_allowed_by_number() {
        let rule = |allow: bool, access: &str| json!({"allow": allow, "type": "b", "major": 7, "minor": 3, "access": access});
        let none = json!({"allow": false, "access": "rwm"});
        assert_eq!(readonly(json!([none, rule(true, "rwm")])), Some(false));
        assert_eq!(readonly(json!([none, rule(true, "r")])), Some(true));
        assert_eq!(readonly(json!([rule(true, "rwm"), rule(false, "w")])), Some(true));
        assert_eq!(readonly(json!([rule(true, "rwm"), none])), None);
        assert_eq!(readonly(json!([none, rule(true, "m")])), None);
        assert_eq!(readonly(json!([none])), None);
        // A privileged container's caller allows everything.
        assert_eq!(readonly(json!([{"allow": true, "access": "rwm"}])), None);
        assert_eq!(readonly(json!([{"allow": true, "type": "b", "major": 7, "access": "rwm"}])), None);
        assert_eq!(wanted(&spec(json!([]), json!([rule(true, "rwm")]))), []);
    }

    #[test]
    fn the_guest_gets_its_own_numbers() {
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "access": "r"},
            {"allow": true, "type": "c", "major": 7, "minor": 3, "access": "rwm"},
        ]);
        let mut given = spec(disk(), rules.clone());
        renumber(&mut given, &[((7, 3), (254, 16))]);
        let given = serde_json::to_value(given).unwrap();
        let node = &given["linux"]["devices"][0];
        assert_eq!(
            (&node["path"], &node["major"], &node["minor"]),
            (&json!("/dev/xvda"), &json!(254), &json!(16))
        );
        assert_eq!((&node["fileMode"], &node["uid"], &node["gid"]), (&json!(432), &json!(5), &json!(6)));
        let rules_given = given["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules_given.len(), 3);
        assert_eq!((&rules_given[1]["major"], &rules_given[1]["minor"]), (&json!(254), &json!(16)));
        assert_eq!(rules_given[2]["type"], "c");
        let mut without = spec(disk(), rules);
        renumber(&mut without, &[]);
        let without = serde_json::to_value(without).unwrap();
        assert_eq!(without["linux"]["devices"].as_array().unwrap().len(), 1);
        assert_eq!(without["linux"]["devices"][0]["path"], "/dev/fuse");
    }

    #[test]
    fn what_is_not_that_device_is_not_opened() {
        let wanted = Wanted { path: "/dev/null".into(), number: (4000, 4000), readonly: true };
        assert_eq!(wanted.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
