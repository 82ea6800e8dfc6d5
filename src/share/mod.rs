//! What of the host's files the guest sees: the plan of the sandbox's one share, as plain data. `fsd` serves it.
//!
//! The share's root holds a folder for each container: `ID/rootfs`, `ID/mounts/N` for the bind mount with index N, and
//! `ID/hooks/N` for the program of the createContainer hook with index N.
//! The guest mounts the share at `rt_proto::SHARE_DIR`.

mod mount_points;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs,
};

use crate::bundle::{Bundle, Error, GuestPaths, is_bind};
use crate::fsd::Entry;

pub use mount_points::lay as lay_mount_points;

/// What is served for one container and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub entries: Vec<Entry>,
    pub paths: GuestPaths,
}

/// Plans the share of a container.
///
/// A bind mount of the host's proc, sysfs or cgroup file system, or of a device node, means the guest's own at the same
/// path: the host's would be a hole in the wall between them.
///
/// # Errors
/// [`Error::BindSource`] when the source of a bind mount does not exist.
pub fn plan(id: &str, bundle: &Bundle) -> Result<Plan, Error> {
    let guest = |name: &Path| Path::new(rt_proto::SHARE_DIR).join(name);
    let name = Path::new(id).join("rootfs");
    let readonly = bundle.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let paths = GuestPaths { root: guest(&name), binds: Default::default(), hooks: Vec::new() };
    let mut plan = Plan { entries: vec![Entry { name, source: bundle.rootfs.clone(), readonly }], paths };
    for (index, mount) in bundle.spec.mounts().iter().flatten().enumerate() {
        let Some(source) = mount.source().as_ref().filter(|_| is_bind(mount)) else { continue };
        let missing = |error| Error::BindSource {
            source_path: source.display().to_string(),
            destination: mount.destination().display().to_string(),
            source: error,
        };
        let source = bundle.dir.join(source).canonicalize().map_err(missing)?;
        if is_the_systems_own(&source).map_err(missing)? {
            plan.paths.binds.insert(index, source);
            continue;
        }
        let readonly = is_readonly(mount.options());
        // One source is one entry, so that it is one file in the guest: locks, sockets and caches then meet.
        let same = plan.entries.iter().find(|entry| entry.source == source && entry.readonly == readonly);
        if let Some(entry) = same {
            plan.paths.binds.insert(index, guest(&entry.name));
            continue;
        }
        let name: PathBuf = Path::new(id).join("mounts").join(index.to_string());
        plan.paths.binds.insert(index, guest(&name));
        plan.entries.push(Entry { name, source, readonly });
    }
    let hooks = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        let path = hook.path().clone();
        let source = path.canonicalize().map_err(|source| Error::Hook { index, path, source })?;
        let same = plan.entries.iter().find(|entry| entry.source == source && entry.readonly);
        let name = match same {
            Some(entry) => entry.name.clone(),
            None => Path::new(id).join("hooks").join(index.to_string()),
        };
        if same.is_none() {
            plan.entries.push(Entry { name: name.clone(), source, readonly: true });
        }
        plan.paths.hooks.push(guest(&name));
    }
    Ok(plan)
}

fn is_readonly(options: &Option<Vec<String>>) -> bool {
    options.iter().flatten().any(|option| option == "ro" || option == "rro")
}

fn is_the_systems_own(path: &Path) -> std::io::Result<bool> {
    const KERNEL: [FsType; 4] = [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    let kind = std::fs::metadata(path)?.file_type();
    Ok(kind.is_char_device() || kind.is_block_device() || KERNEL.contains(&statfs(path)?.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(mounts: serde_json::Value) -> Result<Plan, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        std::fs::write(dir.path().join("hosts"), "").unwrap();
        let spec =
            json!({"ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": true}, "mounts": mounts});
        let bundle = Bundle {
            dir: dir.path().into(),
            rootfs: dir.path().join("rootfs"),
            spec: serde_json::from_value(spec).unwrap(),
        };
        plan("c1", &bundle)
    }

    #[test]
    fn rootfs_and_binds_get_places_of_their_own() {
        let plan = planned(json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind", "ro"]},
            {"destination": "/dev/null", "type": "bind", "source": "/dev/null"},
            {"destination": "/p", "type": "bind", "source": "/proc/self/../sys"},
        ]))
        .unwrap();
        let names: Vec<_> =
            plan.entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.readonly)).collect();
        assert_eq!(names, [("c1/rootfs", true), ("c1/mounts/1", true)]);
        assert_eq!(plan.paths.root, Path::new("/run/rt/share/c1/rootfs"));
        assert_eq!(plan.paths.binds[&1], Path::new("/run/rt/share/c1/mounts/1"));
        assert_eq!(plan.paths.binds[&2], Path::new("/dev/null"));
        assert_eq!(plan.paths.binds[&3], Path::new("/proc/sys"));
    }

    #[test]
    fn one_source_is_one_entry() {
        let bind = |to: &str| json!({"destination": to, "type": "bind", "source": "hosts"});
        let plan = planned(json!([bind("/a"), bind("/b")])).unwrap();
        assert_eq!(plan.entries.len(), 2);
        assert_eq!(plan.paths.binds[&0], plan.paths.binds[&1]);
    }

    #[test]
    fn a_missing_source_is_named() {
        let error =
            planned(json!([{"destination": "/m", "type": "bind", "source": "/no/such"}])).unwrap_err();
        assert_eq!(error.to_string(), "error mounting \"/no/such\" to rootfs at \"/m\": stat /no/such");
    }
}
