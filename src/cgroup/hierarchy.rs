//! The host's cgroup file systems: which there are, where this process is in them, and how a group is made.
//!
//! Where version 1 has any controller, version 2 beside it (systemd's hybrid layout) is left alone, as runc does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::mountinfo::{self, Mount};

/// One cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    /// What of the hierarchy the mount shows; `/` for all.
    root: PathBuf,
    /// Where this process is, as /proc/self/cgroup says.
    place: PathBuf,
    /// Of version 1, the controllers; empty for version 2.
    controllers: Vec<String>,
}

impl Hierarchy {
    /// Those of this host.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(parse(&mountinfo::read("self")?, &fs::read_to_string("/proc/self/cgroup")?))
    }

    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether a controller's files may be found here; version 2 has all that it has in one place.
    pub fn has(&self, controller: &str) -> bool {
        self.is_unified() || self.controllers.iter().any(|own| own == controller)
    }

    /// Whether a group of this path is one of this hierarchy's.
    pub fn holds(&self, group: &Path) -> bool {
        group.starts_with(&self.mount)
    }

    /// The group that this process is in.
    pub fn own(&self) -> PathBuf {
        self.below(&self.place)
    }

    /// Where a group lies: an absolute one below the root, a relative one below this process's own group, in version 2
    /// beside it, since a group with processes cannot have groups with limits there.
    pub fn directory(&self, path: &Path, absolute: bool) -> PathBuf {
        match (absolute, self.is_unified()) {
            (true, _) => self.mount.join(path),
            (false, false) => self.own().join(path),
            (false, true) => self.below(self.place.parent().unwrap_or(&self.place)).join(path),
        }
    }

    fn below(&self, place: &Path) -> PathBuf {
        let place = place.strip_prefix(&self.root).or_else(|_| place.strip_prefix("/")).unwrap_or(place);
        self.mount.join(place)
    }

    /// Makes a group and what is missing above it.
    ///
    /// # Errors
    /// What mkdir(2) says.
    pub fn make(&self, path: &Path) -> io::Result<()> {
        let mut parent = self.mount.clone();
        let below = path.strip_prefix(&self.mount).unwrap_or(path);
        for name in below.components() {
            let child = parent.join(name);
            if self.is_unified() {
                enable_controllers(&parent);
            }
            match fs::create_dir(&child) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if self.has("cpuset") && !self.is_unified() {
                inherit_cpuset(&parent, &child)?;
            }
            parent = child;
        }
        Ok(())
    }
}

/// Version 2: lets the groups below have limits. What cannot be had is found out where a limit is set.
fn enable_controllers(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Version 1: a new group has no CPU and no memory node, and takes no process until it has.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(child.join(file))?;
        if own.trim().is_empty() {
            fs::write(child.join(file), fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// From what is mounted and the text of /proc/self/cgroup, as cgroups(7) describes it.
fn parse(mounts: &[Mount], places: &str) -> Vec<Hierarchy> {
    let mut legacy: Vec<Hierarchy> = Vec::new();
    let mut unified = None;
    for mount in mounts {
        let options: Vec<&str> = mount.options.split(',').collect();
        // Of the places' lines, ID:CONTROLLERS:PATH, the one whose controllers this mount has; version 2's has none.
        let place = places.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let fits = match mount.kind.as_str() {
                "cgroup" => {
                    !controllers.is_empty() && controllers.split(',').all(|name| options.contains(&name))
                }
                "cgroup2" => controllers.is_empty(),
                _ => false,
            };
            fits.then(|| (controllers, PathBuf::from(path)))
        });
        let Some((controllers, place)) = place else { continue };
        let controllers: Vec<String> =
            controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let (point, root) = (mount.point.clone(), mount.root.clone());
        let hierarchy = Hierarchy { mount: point, root, place, controllers };
        if hierarchy.is_unified() {
            unified.get_or_insert(hierarchy);
        } else if legacy.iter().all(|other| other.controllers != hierarchy.controllers) {
            legacy.push(hierarchy);
        }
    }
    let has_controllers =
        legacy.iter().flat_map(|one| &one.controllers).any(|name| !name.starts_with("name="));
    match (has_controllers, unified) {
        (false, Some(unified)) => vec![unified],
        _ => legacy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 24 0:26 / /elsewhere/memory rw - cgroup cgroup rw,memory
35 24 0:30 / /proc rw - proc proc rw
";

    #[test]
    fn version_1_wins_where_both_are() {
        let found = parse(
            &mountinfo::parse(HYBRID.as_bytes()),
            "3:memory:/user/a\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/x\n",
        );
        let mounts: Vec<_> = found.iter().map(|one| one.mount.to_str().unwrap()).collect();
        assert_eq!(mounts, ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd"]);
        assert!(found[1].has("cpuacct") && !found[0].has("cpu") && !found[0].is_unified());
        assert_eq!(found[0].directory(Path::new("p/c"), true), Path::new("/sys/fs/cgroup/memory/p/c"));
        assert_eq!(found[0].directory(Path::new("c"), false), Path::new("/sys/fs/cgroup/memory/user/a/c"));
    }

    #[test]
    fn version_2_alone() {
        let mounts = "33 24 0:29 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = parse(&mountinfo::parse(mounts.as_bytes()), "0::/outer/session/shell\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].is_unified() && found[0].has("memory"));
        assert_eq!(found[0].own(), Path::new("/sys/fs/cgroup/session/shell"));
        assert_eq!(found[0].directory(Path::new("c"), false), Path::new("/sys/fs/cgroup/session/c"));
        assert_eq!(found[0].directory(Path::new("c"), true), Path::new("/sys/fs/cgroup/c"));
    }

    #[test]
    fn a_host_without_cgroups_has_none() {
        assert_eq!(parse(&[], ""), []);
    }
}
