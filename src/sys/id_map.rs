//! Mappings of user and group IDs for mounts (mount_setattr(2), MOUNT_ATTR_IDMAP). Linux 5.12 or later, and a file system that allows it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxIdMapping;
use serde::{Deserialize, Serialize};

use super::process;

/// What a mount makes of the owners of its files: who is `containerID` on disk is `hostID` to whoever looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub uids: Vec<LinuxIdMapping>,
    pub gids: Vec<LinuxIdMapping>,
    /// Also of what is mounted below.
    pub recursive: bool,
}

impl IdMap {
    /// A user namespace with these mappings, in which nobody is: what the kernel takes them from.
    ///
    /// # Errors
    /// What clone3(2) says, or the kernel of the mappings.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        let idle = process::Idle::start(CloneFlags::CLONE_NEWUSER)?;
        let directory = idle.folder();
        // One write each: the kernel takes no second.
        fs::write(format!("{directory}/uid_map"), lines(&self.uids))?;
        fs::write(format!("{directory}/gid_map"), lines(&self.gids))?;
        Ok(File::open(format!("{directory}/ns/user"))?.into())
    }
}

/// user_namespaces(7).
fn lines(mappings: &[LinuxIdMapping]) -> String {
    let line = |mapping: &LinuxIdMapping| {
        format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size())
    };
    mappings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container: u32, host: u32, size: u32) -> LinuxIdMapping {
        serde_json::from_value(serde_json::json!({"containerID": container, "hostID": host, "size": size}))
            .unwrap()
    }

    #[test]
    fn a_namespace_has_the_mappings_and_nobody_in_it() {
        let map = IdMap {
            uids: vec![mapping(0, 1000, 1), mapping(5, 7, 2)],
            gids: vec![mapping(0, 0, 10)],
            recursive: false,
        };
        assert_eq!(lines(&map.uids), "0 1000 1\n5 7 2\n");
        if nix::unistd::geteuid().is_root() {
            let before = File::open("/proc/self/ns/user").unwrap();
            let namespace = map.namespace().unwrap();
            let inode = |file: &dyn std::os::fd::AsFd| nix::sys::stat::fstat(file.as_fd()).unwrap().st_ino;
            assert_ne!(inode(&before), inode(&namespace));
            let overlapping = IdMap { uids: vec![mapping(0, 0, 2), mapping(1, 9, 1)], ..map };
            assert!(overlapping.namespace().is_err());
        }
    }
}
