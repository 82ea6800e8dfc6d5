//! Host spec to guest spec: what of config.json means the host is taken out or given its place in the guest; all
//! else travels as it stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, LinuxNamespace, LinuxNamespaceType, Mount, Spec};

/// Where the guest finds what the host serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPaths {
    /// The root file system.
    pub root: PathBuf,
    /// The source of each bind mount, by its index in `mounts`.
    pub binds: BTreeMap<usize, PathBuf>,
    /// The programs of the createContainer hooks.
    pub hooks: Vec<PathBuf>,
}

/// Whose namespaces a path of the host's means in the guest: a container that joins a pod names those of the process that
/// stands for another one, `/proc/PID/ns/ipc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNamespaces {
    /// Whose they are where the path does not tell, as one below /run/netns does not.
    pub sandbox: String,
    /// The pod's containers, by the process that stands for each.
    pub containers: BTreeMap<i32, String>,
}

impl GuestNamespaces {
    fn owner(&self, path: &Path) -> &str {
        let pid = || path.strip_prefix("/proc").ok()?.iter().next()?.to_str()?.parse().ok();
        pid().and_then(|pid: i32| self.containers.get(&pid)).unwrap_or(&self.sandbox)
    }
}

/// Whether a mount binds an existing file or directory, as runc decides it: by type or by option.
pub fn is_bind(mount: &Mount) -> bool {
    let option = |name: &String| name == "bind" || name == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(option)
}

/// The spec as the agent gets it.
///
/// - `root.path` and the sources of bind mounts become the guest's paths; owners of theirs are mapped on the host.
/// - Namespaces lose their host paths; in a pod they get the guest's of the container that was meant. The network namespace
///   goes: the VM's own is the container's.
/// - Labels and profiles of the host's security modules go, as the guest has none of them and the VM is what isolates.
/// - Of the hooks those stay that run in the guest; the programs of createContainer are the host's, served by the share.
/// - cgroupsPath goes, being the host's; so do limits on host devices, what only cgroup v1 had, and the numbers of
///   the host's CPUs and memory nodes, which bind the VM. All other limits stay and hold in the guest.
pub fn guest_spec(host: &Spec, paths: &GuestPaths, pod: Option<&GuestNamespaces>) -> Spec {
    let mut spec = host.clone();
    if let Some(root) = spec.root_mut() {
        root.set_path(paths.root.clone());
    }
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
        let Some(path) = paths.binds.get(&index) else { continue };
        if path == Path::new("/dev") && mount.destination() == Path::new("/dev") {
            *mount = own_devices();
        } else {
            mount.set_source(Some(path.clone()));
        }
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        mount.set_uid_mappings(None).set_gid_mappings(None);
        if let Some(options) = mount.options_mut() {
            options.retain(|option| option != "idmap" && option != "ridmap");
        }
    }
    if let Some(process) = spec.process_mut() {
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    spec.set_hooks(spec.hooks().as_ref().and_then(|hooks| guest_hooks(hooks, &paths.hooks)));
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(None);
        linux.set_cgroups_path(None);
        linux.set_intel_rdt(None);
        if let Some(namespaces) = linux.namespaces_mut() {
            *namespaces = namespaces.iter().filter_map(|namespace| guest_namespace(namespace, pod)).collect();
        }
        if let Some(resources) = linux.resources_mut() {
            resources.set_network(None);
            resources.set_rdma(None);
            if let Some(cpu) = resources.cpu_mut() {
                cpu.set_cpus(None);
                cpu.set_mems(None);
            }
            if let Some(block_io) = resources.block_io_mut() {
                block_io.set_weight_device(None);
                block_io.set_throttle_read_bps_device(None);
                block_io.set_throttle_write_bps_device(None);
                block_io.set_throttle_read_iops_device(None);
                block_io.set_throttle_write_iops_device(None);
            }
        }
    }
    spec
}

/// A /dev as engines ask for it where it is not the host's: what a container has there is made in it.
fn own_devices() -> Mount {
    let options = ["nosuid", "strictatime", "mode=755", "size=65536k"].map(str::to_owned).to_vec();
    let mut mount = Mount::default();
    mount
        .set_destination("/dev".into())
        .set_typ(Some("tmpfs".into()))
        .set_source(Some("tmpfs".into()))
        .set_options(Some(options));
    mount
}

/// Those that run in the guest.
fn guest_hooks(hooks: &Hooks, programs: &[PathBuf]) -> Option<Hooks> {
    let some = |hooks: &Option<Vec<Hook>>| hooks.clone().filter(|hooks| !hooks.is_empty());
    let (mut create, start) = (some(hooks.create_container()), some(hooks.start_container()));
    for (hook, program) in create.iter_mut().flatten().zip(programs) {
        // The name that the program is called by stays the host's.
        if hook.args().is_none() {
            hook.set_args(Some(vec![hook.path().display().to_string()]));
        }
        hook.set_path(program.clone());
    }
    (create.is_some() || start.is_some()).then(|| {
        let mut hooks = Hooks::default();
        hooks.set_create_container(create).set_start_container(start);
        hooks
    })
}

fn guest_namespace(namespace: &LinuxNamespace, pod: Option<&GuestNamespaces>) -> Option<LinuxNamespace> {
    let kind = match namespace.typ() {
        LinuxNamespaceType::Network => return None,
        LinuxNamespaceType::Pid => Some("pid"),
        LinuxNamespaceType::Ipc => Some("ipc"),
        LinuxNamespaceType::Uts => Some("uts"),
        LinuxNamespaceType::User => Some("user"),
        LinuxNamespaceType::Time => Some("time"),
        // Its own in any case: what is in them is the container's.
        LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup => None,
    };
    let path = namespace.path().as_deref().and_then(|path| {
        let owner = pod?.owner(path);
        Some(PathBuf::from(rt_proto::namespace_path(owner, kind?)))
    });
    let mut namespace = namespace.clone();
    namespace.set_path(path);
    Some(namespace)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guest_sees_its_own_paths_and_nothing_of_the_host() {
        let host: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/host/rootfs", "readonly": true},
            "process": {"user": {"uid": 1, "gid": 2}, "args": ["a"], "cwd": "/", "apparmorProfile": "p"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/v", "type": "bind", "source": "/host/v", "options": ["rbind", "ro"]},
            ],
            "linux": {
                "cgroupsPath": "/host/cgroup",
                "resources": {"cpu": {"cpus": "5", "mems": "1", "quota": 7}},
                "namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "network"}],
            },
        }))
        .unwrap();
        let paths =
            GuestPaths { root: "/g/rootfs".into(), binds: [(1, "/g/m/1".into())].into(), hooks: Vec::new() };
        let guest = serde_json::to_value(guest_spec(&host, &paths, None)).unwrap();
        assert_eq!(guest["root"], json!({"path": "/g/rootfs", "readonly": true}));
        assert_eq!(guest["mounts"][1]["source"], "/g/m/1");
        assert_eq!(guest["mounts"][1]["options"], json!(["rbind", "ro"]));
        assert_eq!(guest["linux"]["namespaces"], json!([{"type": "pid"}]));
        assert_eq!(guest["linux"]["resources"]["cpu"], json!({"quota": 7}));
        assert!(!guest.to_string().contains("host"), "{guest}");
        assert!(guest["process"].get("apparmorProfile").is_none());
    }

    #[test]
    fn in_a_pod_a_path_means_another_containers_namespace() {
        let host: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "linux": {"namespaces": [
                {"type": "pid", "path": "/proc/7/ns/pid"},
                {"type": "ipc", "path": "/proc/5/ns/ipc"},
                {"type": "uts", "path": "/run/utsns/x"},
                {"type": "mount"},
                {"type": "cgroup", "path": "/proc/5/ns/cgroup"},
                {"type": "network", "path": "/run/netns/x"},
            ]},
        }))
        .unwrap();
        let paths = GuestPaths { root: "/".into(), binds: [].into(), hooks: Vec::new() };
        let pod = GuestNamespaces {
            sandbox: "p".into(),
            containers: [(5, "p".to_owned()), (7, "a".to_owned())].into(),
        };
        let guest = serde_json::to_value(guest_spec(&host, &paths, Some(&pod))).unwrap();
        let expected = json!([
            {"type": "pid", "path": "/run/rt/containers/a/ns/pid"},
            {"type": "ipc", "path": "/run/rt/containers/p/ns/ipc"},
            {"type": "uts", "path": "/run/rt/containers/p/ns/uts"},
            {"type": "mount"},
            {"type": "cgroup"},
        ]);
        assert_eq!(guest["linux"]["namespaces"], expected);
    }
}
