//! The host's config.json made fit for libcontainer in a guest: what has no meaning here is taken out, what libcontainer
//! gets wrong is put so that it gets it right. Pure; each step says why.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, Hook, Hooks, LinuxCapabilities, LinuxIdMapping, LinuxNamespace,
    LinuxNamespaceType, LinuxSeccomp, Process, Spec,
};

use crate::{cgroup, credentials, limits};

/// What the runner does itself, beside the spec that it hands to libcontainer.
#[derive(Debug, Default, PartialEq)]
pub struct Aside {
    /// For [`crate::executor`].
    pub seccomp: Option<LinuxSeccomp>,
    /// What the process may do once its profile is loaded, where it needs more to load it.
    pub capabilities: Option<credentials::Capabilities>,
    /// startContainer's, likewise.
    pub hooks: Vec<Hook>,
    /// To be set in the guest's own network namespace, which is the container's.
    pub network_sysctls: HashMap<String, String>,
    /// The process's user, as the guest outside the container sees it: owner of its standard streams.
    pub user: u32,
    pub own_pid_namespace: bool,
    pub terminal: bool,
    /// The user whose home is to be found, by [`crate::executor`]: the last variable stands in for it.
    pub homeless: Option<u32>,
}

/// Reads a config.json. Capabilities that nobody knows are passed over, as runc does.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Spec, String> {
    let error = match serde_json::from_slice(bytes) {
        Ok(spec) => return Ok(spec),
        Err(error) => error,
    };
    let without_unknown = || -> Option<Spec> {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        drop_unknown_capabilities(value.get_mut("process")?)?;
        serde_json::from_value(value).ok()
    };
    without_unknown().ok_or_else(|| format!("config.json is not valid: {error}"))
}

/// Whether something runs in the container between its start and its own program.
pub fn has_start_hooks(bytes: &[u8]) -> bool {
    let hooks = parse(bytes).ok().and_then(|spec| spec.hooks().clone());
    hooks.and_then(|hooks| hooks.start_container().clone()).is_some_and(|hooks| !hooks.is_empty())
}

/// Reads a process object, likewise.
///
/// # Errors
/// What is wrong with it.
pub fn parse_process(bytes: &[u8]) -> Result<Process, String> {
    let error = match serde_json::from_slice(bytes) {
        Ok(process) => return Ok(process),
        Err(error) => error,
    };
    let without_unknown = || -> Option<Process> {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        drop_unknown_capabilities(&mut value)?;
        serde_json::from_value(value).ok()
    };
    without_unknown().ok_or_else(|| format!("the process object is not valid: {error}"))
}

fn drop_unknown_capabilities(process: &mut serde_json::Value) -> Option<()> {
    for set in process.get_mut("capabilities")?.as_object_mut()?.values_mut() {
        set.as_array_mut()?.retain(|name| serde_json::from_value::<Capability>(name.clone()).is_ok());
    }
    Some(())
}

/// libcontainer's words for a failure, in those that users of runc know.
pub fn reword(message: &str, spec: &Spec) -> String {
    let message = without_number(message);
    if let Some(reason) = message.strip_prefix("failed to chdir: ") {
        let directory = spec.process().as_ref().map(|process| process.cwd().display().to_string());
        let directory = directory.unwrap_or_default();
        return format!("chdir to cwd ({directory:?}) set in config.json failed: {reason}");
    }
    if let Some(mount) = message.strip_prefix("failed to mount Mount { destination: \"")
        && let (Some((destination, _)), Some((_, reason))) = (mount.split_once('"'), mount.rsplit_once(": "))
    {
        let mut reason = crate::report::errno_words(reason);
        // The library keeps the system's answer to itself here; the usual one can be looked up.
        if reason == "syscall" {
            let known = is_known_file_system(spec, destination);
            reason = if known { "the guest's kernel refuses it" } else { "no such device" }.to_owned();
        }
        return format!("error mounting to rootfs at {destination:?}: {reason}");
    }
    if message.starts_with("failed to apply cgroup")
        && let Some(reason) = quoted(message, "message: \"")
    {
        let file = quoted(message, "path: \"").unwrap_or("a limit of the cgroup");
        return format!("cannot set {file}: {}", reason.to_lowercase());
    }
    message.to_owned()
}

/// Whether the guest's kernel has the type of file system that the spec wants at `destination`.
fn is_known_file_system(spec: &Spec, destination: &str) -> bool {
    let wanted = spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new(destination));
    let Some(wanted) = wanted.and_then(|mount| mount.typ().as_deref()) else { return true };
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.rsplit('\t').next() == Some(wanted))
}

/// A message without Rust's addition to C's words.
pub fn without_number(message: &str) -> &str {
    match message.rsplit_once(" (os error ") {
        Some((words, number)) if number.trim_end_matches(')').bytes().all(|byte| byte.is_ascii_digit()) => {
            words
        }
        _ => message,
    }
}

/// What stands in a debug text between `before`, which ends in a quotation mark, and the next one.
fn quoted<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once('"')?.0)
}

/// Rewrites `spec` for a container of that name in a guest with that many processors.
pub fn adapt(spec: &mut Spec, container: &str, processors: usize) -> Aside {
    let mut aside = Aside::default();
    let mut linux = spec.linux().clone().unwrap_or_default();

    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    // The VM's own network is the container's: the host brings the interfaces into it.
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    // Without one, libcontainer would mount in the agent's namespace, and the mounts would outlive the container.
    if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
        let mut mount = LinuxNamespace::default();
        mount.set_typ(LinuxNamespaceType::Mount);
        namespaces.push(mount);
    }
    aside.own_pid_namespace = namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none());
    let own_user_namespace = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    // The host's cgroups have no meaning here, nor has the guest's tree for the container: its own is the root of what it sees.
    if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup) {
        let mut cgroup = LinuxNamespace::default();
        cgroup.set_typ(LinuxNamespaceType::Cgroup);
        namespaces.push(cgroup);
    }
    linux.set_namespaces(Some(namespaces));

    // A cgroup of the host; the guest has its own tree.
    linux.set_cgroups_path(Some(cgroup::path_in_tree(container)));
    if let Some(resources) = linux.resources_mut() {
        limits::adapt(resources, processors);
    }
    // libcontainer does not know the recursive forms, which docker and podman use; it is recursive anyway.
    if let Some(propagation) = linux.rootfs_propagation().as_deref().and_then(|name| name.strip_prefix('r')) {
        linux.set_rootfs_propagation(Some(propagation.to_owned()));
    }
    // Hardware and security modules of the host that the guest's kernel does not have.
    linux.set_intel_rdt(None);
    linux.set_mount_label(None);

    // libcontainer refuses these without a network namespace of the container's own.
    if let Some(all) = linux.sysctl().clone() {
        let (network, others): (HashMap<_, _>, HashMap<_, _>) =
            all.into_iter().partition(|(name, _)| name.starts_with("net.") || name.starts_with("net/"));
        aside.network_sysctls = network;
        linux.set_sysctl((!others.is_empty()).then_some(others));
    }

    if let Some(process) = spec.process_mut() {
        aside.terminal = process.terminal().unwrap_or(false);
        aside.user = if own_user_namespace {
            outside_id(process.user().uid(), linux.uid_mappings().as_deref().unwrap_or_default())
        } else {
            process.user().uid()
        };
        // Without one, libcontainer asks libc, which loads what the image's /etc/nsswitch.conf names, into a process that is not
        // confined by a seccomp profile yet.
        let variables = process.env_mut().get_or_insert_with(Vec::new);
        let home = variables.iter().rev().find_map(|variable| variable.strip_prefix("HOME="));
        if home.is_none_or(str::is_empty) {
            variables.push("HOME=/".to_owned());
            aside.homeless = Some(process.user().uid());
        }
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
        aside.seccomp = linux.seccomp().clone();
        linux.set_seccomp(None);
        // Absent, all of them or a single set, means none for runc; libcontainer leaves such a set as the agent has it.
        let mut capabilities = all_sets(process.capabilities().as_ref());
        if aside.seccomp.is_some() && process.no_new_privileges() != Some(true) {
            aside.capabilities = Some(Some(&capabilities).into());
            let raised = |set: &Option<Capabilities>| {
                let more = [Capability::SysAdmin];
                Some(set.iter().flatten().copied().chain(more).collect())
            };
            capabilities.set_effective(raised(capabilities.effective()));
            capabilities.set_permitted(raised(capabilities.permitted()));
        }
        process.set_capabilities(Some(capabilities));
        // The agent's own would be inherited: never killed when memory runs out.
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(Some(0));
        }
    }

    if let Some(mounts) = spec.mounts_mut() {
        for mount in mounts {
            // libcontainer wants one even where the file system has none.
            if mount.source().is_none() {
                let name = mount.typ().clone().unwrap_or_else(|| "none".to_owned());
                mount.set_source(Some(PathBuf::from(name)));
            }
            // A user namespace may mount sysfs only with a network namespace of its own.
            if own_user_namespace && mount.typ().as_deref() == Some("sysfs") {
                mount.set_typ(Some("bind".to_owned()));
                mount.set_source(Some(PathBuf::from("/sys")));
                mount.options_mut().get_or_insert_with(Vec::new).push("rbind".to_owned());
            }
        }
    }

    // Of libcontainer's are createContainer's only: the others ran, or will run, on the host, or are the executor's.
    let hooks = spec.hooks().as_ref();
    let of = |list: Option<&Option<Vec<Hook>>>| list.cloned().flatten().unwrap_or_default();
    aside.hooks = of(hooks.map(Hooks::start_container));
    let create = of(hooks.map(Hooks::create_container));
    spec.set_hooks((!create.is_empty()).then(|| {
        let mut hooks = Hooks::default();
        hooks.set_create_container(Some(create));
        hooks
    }));
    spec.set_linux(Some(linux));
    aside
}

fn all_sets(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(given.and_then(|given| of(given).clone()).unwrap_or_default())
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding));
    all.set_effective(set(LinuxCapabilities::effective));
    all.set_permitted(set(LinuxCapabilities::permitted));
    all.set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_ambient(set(LinuxCapabilities::ambient));
    all
}

/// The ID outside a user namespace of an ID inside; one that is not mapped stays, as nothing else can be done with it.
pub fn outside_id(inside: u32, mappings: &[LinuxIdMapping]) -> u32 {
    mappings
        .iter()
        .find_map(|mapping| {
            let offset = inside.checked_sub(mapping.container_id())?;
            (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset))?
        })
        .unwrap_or(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).expect("a valid spec")
    }

    fn minimal(process: &str, linux: &str) -> Spec {
        spec(&format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"/r"}},
                "process":{{"user":{{"uid":5,"gid":6}},"cwd":"/","args":["a"]{process}}},"linux":{{{linux}}}}}"#
        ))
    }

    const SECCOMP: &str = r#""seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}"#;

    #[test]
    fn namespaces_and_cgroup_are_the_guests() {
        let mut spec =
            minimal("", r#""cgroupsPath":"/host","namespaces":[{"type":"network"},{"type":"pid"}]"#);
        let aside = adapt(&mut spec, "c1", 1);
        let linux = spec.linux().as_ref().expect("linux");
        let types: Vec<_> = linux.namespaces().iter().flatten().map(LinuxNamespace::typ).collect();
        assert_eq!(types, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup]);
        assert_eq!(linux.cgroups_path().as_deref(), Some(std::path::Path::new("/rt/c1")));
        assert!(aside.own_pid_namespace);
        assert_eq!(aside.user, 5);
    }

    #[test]
    fn a_profile_is_loaded_with_the_privilege_to_do_so() {
        let permitted = |spec: &Spec| {
            let sets = spec.process().as_ref().and_then(|process| process.capabilities().clone());
            sets.and_then(|sets| sets.permitted().clone()).expect("a set")
        };
        let mut with = minimal(r#","noNewPrivileges":true"#, SECCOMP);
        let aside = adapt(&mut with, "c", 1);
        assert!(aside.seccomp.is_some() && aside.capabilities.is_none() && permitted(&with).is_empty());
        for process in ["", r#","noNewPrivileges":false"#] {
            let mut without = minimal(process, SECCOMP);
            let aside = adapt(&mut without, "c", 1);
            assert!(without.linux().as_ref().expect("linux").seccomp().is_none() && aside.seccomp.is_some());
            assert_eq!(aside.capabilities, Some(credentials::Capabilities::default()));
            assert_eq!(permitted(&without), [Capability::SysAdmin].into());
        }
        let mut none = minimal("", "");
        assert!(adapt(&mut none, "c", 1).capabilities.is_none() && permitted(&none).is_empty());
    }

    #[test]
    fn absent_means_none() {
        let mut spec = minimal("", "");
        adapt(&mut spec, "c", 1);
        let process = spec.process().as_ref().expect("process");
        assert_eq!(process.oom_score_adj(), Some(0));
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert_eq!(capabilities.bounding().as_ref().map(|set| set.len()), Some(0));
        assert!(spec.hooks().is_none());
    }

    #[test]
    fn nobody_else_looks_for_a_home() {
        for (given, homeless) in [(r#""HOME=/h""#, false), (r#""HOME=/h","HOME=""#, true), (r#""A=1""#, true)]
        {
            let mut spec = minimal(&format!(r#","env":[{given}]"#), "");
            let aside = adapt(&mut spec, "c", 1);
            let variables =
                spec.process().as_ref().and_then(|process| process.env().clone()).expect("variables");
            assert_eq!(aside.homeless, homeless.then_some(5));
            assert_eq!(variables.last().is_some_and(|last| last == "HOME=/"), homeless);
        }
    }

    #[test]
    fn network_sysctls_are_taken_aside() {
        let mut spec = minimal("", r#""sysctl":{"net.ipv4.ip_forward":"1","kernel.msgmax":"7"}"#);
        let aside = adapt(&mut spec, "c", 1);
        assert_eq!(aside.network_sysctls.len(), 1);
        let kept = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).expect("sysctls");
        assert!(kept.contains_key("kernel.msgmax") && kept.len() == 1);
    }

    #[test]
    fn unknown_capabilities_are_passed_over_and_nothing_else() {
        let json = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/",
            "capabilities":{"bounding":["CAP_NOSUCH","CAP_KILL"]}}}"#;
        let spec = parse(json.as_bytes()).expect("a spec");
        let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().clone());
        assert_eq!(capabilities.and_then(|sets| sets.bounding().as_ref().map(|set| set.len())), Some(1));
        assert!(parse(b"{\"ociVersion\":7}").is_err());
    }

    #[test]
    fn failures_are_worded_for_users() {
        let spec = minimal("", "");
        let text = reword("failed to chdir: no such file or directory", &spec);
        assert_eq!(text, r#"chdir to cwd ("/") set in config.json failed: no such file or directory"#);
        let text =
            reword(r#"failed to mount Mount { destination: "/a b", typ: None }: Syscall(Nix(EPERM))"#, &spec);
        assert_eq!(text, r#"error mounting to rootfs at "/a b": operation not permitted"#);
        let text = reword(
            r#"failed to apply cgroup pid=Pid(7) init=true: V2(WrappedIo(Write { err: Os { code: 34, message: "Out of range" }, path: "/a/b", data: "x" }))"#,
            &spec,
        );
        assert_eq!(text, "cannot set /a/b: out of range");
        assert_eq!(reword("x: No such file (os error 2)", &spec), "x: No such file");
    }

    #[test]
    fn ids_are_mapped_outwards() {
        let mappings: Vec<LinuxIdMapping> =
            serde_json::from_str(r#"[{"containerID":0,"hostID":1000,"size":10}]"#).expect("mappings");
        assert_eq!(outside_id(3, &mappings), 1003);
        assert_eq!(outside_id(10, &mappings), 10);
    }
}
