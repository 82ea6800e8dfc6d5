//! What of the host's files the guest sees: the plan of the sandbox's one share, as plain data. `fsd` serves it.
//!
//! The share's root holds a folder for each container: `FOLDER/rootfs`, `FOLDER/mounts/N` for the bind mount with index N, unless another
//! container serves that already, and `FOLDER/hooks/N` for the program of the createContainer hook with index N.
//! The guest mounts the share at `rt_proto::SHARE_DIR`.

pub mod block;
mod mount_points;

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{
    BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC,
    SECURITYFS_MAGIC, SELINUX_MAGIC, SMACK_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC, statfs,
};
use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, Error, GuestPaths, id_map, is_bind};
use crate::fsd::Entry;

pub use mount_points::lay as lay_mount_points;

/// An entry that a container uses, and which file its source was when it was taken up: a path may lead to another one later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    #[serde(flatten)]
    pub entry: Entry,
    /// Of the source, st_dev and st_ino.
    pub file: (u64, u64),
}

/// What is served for one container and where the guest finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// All that the container uses.
    pub used: Vec<Used>,
    /// Those of them that are not served yet.
    pub new: Vec<Entry>,
    /// Those in which the container is to see what the host mounts there later.
    pub followed: Vec<Entry>,
    pub paths: GuestPaths,
}

/// Plans the share of a container. `folder` is its own, which no other container of the sandbox has had: the guest still knows
/// for a while what was there. `served` is what other containers of its sandbox use already: one source is one entry
/// for all of them, so that it is one file in the guest, where locks, sockets and caches meet. A writable one serves
/// for reading, too, since the guest that it protects nothing from is the same; who may write to it is the guest's to say.
///
/// A bind mount of the host's /dev, of a device node, or of a file system by which the host's kernel is looked at and told what to do (proc,
/// sysfs, cgroups, tracing and the like) means the guest's own at the same path: the host's would be a hole in the wall between them.
///
/// # Errors
/// [`Error::BindSource`] when the source of a bind mount does not exist.
pub fn plan(folder: &str, bundle: &Bundle, served: &[Used]) -> Result<Plan, Error> {
    let paths = GuestPaths { root: PathBuf::new(), binds: Default::default(), hooks: Vec::new() };
    let mut plan = Plan { used: Vec::new(), new: Vec::new(), followed: Vec::new(), paths };
    let readonly = bundle.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let rootfs = |source| Error::Dir { path: bundle.rootfs.clone(), source };
    let file = identity(&bundle.rootfs).map_err(rootfs)?;
    let name = Path::new(folder).join("rootfs");
    let entry = Entry { name, source: bundle.rootfs.clone(), readonly, id_map: None };
    plan.paths.root = plan.add(Used { entry, file });
    for (index, mount) in bundle.spec.mounts().iter().flatten().enumerate() {
        let Some(source) = mount.source().as_ref().filter(|_| is_bind(mount)) else { continue };
        if let Some(option) = sharing(mount.options()) {
            tracing::warn!(
                "{} is mounted as {option}, but mounts do not pass from a virtual machine to the host: what the container mounts \
                 there is seen in its pod, and not on the host",
                mount.destination().display()
            );
        }
        let missing = |error| Error::BindSource {
            source_path: source.display().to_string(),
            destination: mount.destination().display().to_string(),
            source: error,
        };
        let source = bundle.dir.join(source).canonicalize().map_err(missing)?;
        let id_map = id_map(mount, &bundle.spec).expect("checked when the bundle was read");
        if is_the_systems_own(&source).map_err(missing)? {
            if id_map.is_some() {
                return Err(Error::Field {
                    path: bundle.dir.join("config.json"),
                    field: format!("mounts[{index}]"),
                    problem: "is the guest's own there, whose owners cannot be mapped (idmap)".into(),
                });
            }
            plan.paths.binds.insert(index, source);
            continue;
        }
        let file = identity(&source).map_err(missing)?;
        let readonly = is_readonly(mount.options());
        let suits = |used: &&Used| {
            let entry = &used.entry;
            let is_it = entry.source == source && used.file == file && entry.id_map == id_map;
            is_it && (entry.readonly == readonly || !entry.readonly)
        };
        let entry = if let Some(used) = plan.used.iter().find(suits) {
            used.entry.clone()
        } else if let Some(used) = served.iter().find(suits) {
            plan.used.push(used.clone());
            used.entry.clone()
        } else {
            let name = Path::new(folder).join("mounts").join(index.to_string());
            let entry = Entry { name, source, readonly, id_map };
            plan.add(Used { entry: entry.clone(), file });
            entry
        };
        plan.paths.binds.insert(index, guest_path(&entry));
        if follows(mount.options()) && entry.source.is_dir() && !plan.followed.contains(&entry) {
            plan.followed.push(entry);
        }
    }
    let hooks = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        let path = hook.path().clone();
        let missing = |source| Error::Hook { index, path: path.clone(), source };
        let source = path.canonicalize().map_err(missing)?;
        let file = identity(&source).map_err(missing)?;
        // One of its own, since a container may write to what it shares with others.
        let name = Path::new(folder).join("hooks").join(index.to_string());
        let path = plan.add(Used { entry: Entry { name, source, readonly: true, id_map: None }, file });
        plan.paths.hooks.push(path);
    }
    Ok(plan)
}

impl Plan {
    fn add(&mut self, used: Used) -> PathBuf {
        let path = guest_path(&used.entry);
        self.new.push(used.entry.clone());
        self.used.push(used);
        path
    }
}

fn guest_path(entry: &Entry) -> PathBuf {
    Path::new(rt_proto::SHARE_DIR).join(&entry.name)
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn is_readonly(options: &Option<Vec<String>>) -> bool {
    options.iter().flatten().any(|option| option == "ro" || option == "rro")
}

/// The option by which the container's mounts are to appear on the host (`Bidirectional`). No engine asks for that by itself, unlike for
/// `rprivate`, and docker in some places for `rslave`.
fn sharing(options: &Option<Vec<String>>) -> Option<&str> {
    options.iter().flatten().map(String::as_str).find(|option| ["shared", "rshared"].contains(option))
}

/// Whether the container is to see what is mounted on the host later (`HostToContainer`).
fn follows(options: &Option<Vec<String>>) -> bool {
    options.iter().flatten().any(|option| ["slave", "rslave", "shared", "rshared"].contains(&option.as_str()))
}

/// linux/magic.h has those that nix has not: configfs, efivarfs, binfmt_misc, pstore.
const KERNEL: [FsType; 14] = [
    PROC_SUPER_MAGIC,
    SYSFS_MAGIC,
    CGROUP_SUPER_MAGIC,
    CGROUP2_SUPER_MAGIC,
    DEBUGFS_MAGIC,
    TRACEFS_MAGIC,
    SECURITYFS_MAGIC,
    SELINUX_MAGIC,
    SMACK_MAGIC,
    BPF_FS_MAGIC,
    FsType(0x6265_6570),
    FsType(0xde5e_81e4),
    FsType(0x4249_4e4d),
    FsType(0x6165_676c),
];

fn is_the_systems_own(path: &Path) -> std::io::Result<bool> {
    let kind = std::fs::metadata(path)?.file_type();
    Ok(kind.is_char_device()
        || kind.is_block_device()
        || path == Path::new("/dev")
        || KERNEL.contains(&statfs(path)?.filesystem_type()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(mounts: serde_json::Value) -> Result<Plan, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        planned_in(dir.path(), "c1", mounts, &[])
    }

    fn planned_in(
        dir: &Path,
        folder: &str,
        mounts: serde_json::Value,
        served: &[Used],
    ) -> Result<Plan, Error> {
        std::fs::write(dir.join("hosts"), "").unwrap();
        let spec =
            json!({"ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": true}, "mounts": mounts});
        let bundle = Bundle {
            dir: dir.into(),
            rootfs: dir.join("rootfs"),
            spec: serde_json::from_value(spec).unwrap(),
        };
        plan(folder, &bundle, served)
    }

    #[test]
    fn only_who_asks_is_told_of_propagation() {
        let option = |options: &[&str]| {
            sharing(&Some(options.iter().map(|&option| option.into()).collect())).map(str::to_owned)
        };
        assert_eq!(option(&["rbind", "rshared", "rw"]).as_deref(), Some("rshared"));
        assert_eq!(option(&["bind", "shared"]).as_deref(), Some("shared"));
        for defaults in [&["rbind", "rprivate", "rw"][..], &["rbind", "rslave"], &["bind", "private"], &[]] {
            assert_eq!(option(defaults), None, "{defaults:?}");
        }
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
            plan.new.iter().map(|entry| (entry.name.to_str().unwrap(), entry.readonly)).collect();
        assert_eq!(names, [("c1/rootfs", true), ("c1/mounts/1", true)]);
        assert_eq!(plan.paths.root, Path::new("/run/rt/share/c1/rootfs"));
        assert_eq!(plan.paths.binds[&1], Path::new("/run/rt/share/c1/mounts/1"));
        assert_eq!(plan.paths.binds[&2], Path::new("/dev/null"));
        assert_eq!(plan.paths.binds[&3], Path::new("/proc/sys"));
    }

    #[test]
    fn who_asks_for_it_sees_later_mounts() {
        let bind = |to: &str, option: &str| json!({"destination": to, "type": "bind", "source": "rootfs", "options": [option]});
        let plan =
            planned(json!([bind("/a", "rprivate"), bind("/b", "rslave"), bind("/c", "rshared")])).unwrap();
        let followed: Vec<_> = plan.followed.iter().map(|entry| entry.name.to_str().unwrap()).collect();
        assert_eq!(followed, ["c1/mounts/0"]);
        assert!(planned(json!([bind("/a", "rprivate")])).unwrap().followed.is_empty());
    }

    #[test]
    fn one_source_is_one_entry() {
        let bind = |to: &str| json!({"destination": to, "type": "bind", "source": "hosts"});
        let plan = planned(json!([bind("/a"), bind("/b")])).unwrap();
        assert_eq!((plan.new.len(), plan.used.len()), (2, 2));
        assert_eq!(plan.paths.binds[&0], plan.paths.binds[&1]);
    }

    #[test]
    fn what_is_served_already_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("rootfs")).unwrap();
        let bind = |options: &[&str]| json!([{"destination": "/v", "type": "bind", "source": "hosts", "options": options}]);
        let (writable, readonly) = (bind(&["rw"]), bind(&["ro"]));
        let planned = |id: &str, mounts: &serde_json::Value, served: &[Used]| {
            planned_in(dir.path(), id, mounts.clone(), served).unwrap()
        };
        let names = |plan: &Plan| -> Vec<String> {
            plan.new.iter().map(|entry| entry.name.display().to_string()).collect()
        };
        let a = planned("a", &writable, &[]);
        for mounts in [&writable, &readonly] {
            let b = planned("b", mounts, &a.used);
            assert_eq!((names(&b), b.used.len()), (vec!["b/rootfs".into()], 2));
            assert_eq!(b.paths.binds[&0], Path::new("/run/rt/share/a/mounts/0"));
        }
        // What is served for reading only does not do for writing.
        let a = planned("a", &readonly, &[]);
        assert_eq!(names(&planned("b", &writable, &a.used)), ["b/rootfs", "b/mounts/0"]);
        // Another file at the same path.
        let mut other = planned("a", &writable, &[]).used;
        other[1].file.1 += 1;
        assert_eq!(names(&planned("b", &writable, &other)), ["b/rootfs", "b/mounts/0"]);
    }

    #[test]
    fn a_missing_source_is_named() {
        let error =
            planned(json!([{"destination": "/m", "type": "bind", "source": "/no/such"}])).unwrap_err();
        assert_eq!(error.to_string(), "error mounting \"/no/such\" to rootfs at \"/m\": stat /no/such");
    }
}
