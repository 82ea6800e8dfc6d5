//! CRI-O: crio.conf and its drop-ins.

use super::{Level, Node};

const MAIN: &str = "/etc/crio/crio.conf";
const RUNTIME: [&str; 2] = ["crio", "runtime"];
/// Registers each container with systemd-machined, which a virtual machine has nothing to do with and waits for.
const MACHINES: &str = "/etc/oci-register-machine.conf";

pub fn examine(node: &mut Node) {
    let mut names = vec![MAIN.to_owned()];
    names.extend(node.drop_ins("/etc/crio/crio.conf.d", ".conf"));
    let files = node.toml(&names);
    if files.0.is_empty() {
        return;
    }
    let at = |key: &'static str| files.text(&[RUNTIME[0], RUNTIME[1], key]);
    let mut untrusted = None;
    for key in ["runtime", "runtime_untrusted_workload"] {
        if let Some((file, program)) = at(key).filter(|(_, program)| node.is_rt(program)) {
            if key == "runtime_untrusted_workload" {
                untrusted = Some(file);
            }
            node.wire(file, key, program);
        }
    }
    for handler in files.keys(&["crio", "runtime", "runtimes"]) {
        let program = files.text(&["crio", "runtime", "runtimes", &handler, "runtime_path"]);
        if let Some((file, program)) = program.filter(|(_, program)| node.is_rt(program)) {
            node.wire(file, &format!("runtime_path of the handler {handler}"), program);
        }
    }
    if let Some(file) = untrusted {
        // Unset, it is "trusted". CRI-O that knows of trust reads no drop-ins: the line belongs beside the others.
        trust(node, at("default_workload_trust").unwrap_or((file, "trusted")));
    }
    if let Some((file, manager)) = at("cgroup_manager") {
        node.drivers.push(("CRI-O", manager == "systemd", file.to_owned()));
    }
    if node.is_meant {
        machines(node);
    }
}

/// The trap: pods that containerd's annotation marks are run by the trusted runtime here.
fn trust(node: &mut Node, (file, trust): (&str, &str)) {
    if trust == "untrusted" {
        return node.note(
            Level::Info,
            file,
            "pods are untrusted unless marked: they run with rt".into(),
            None,
        );
    }
    let text = "default_workload_trust is \"trusted\": CRI-O ignores containerd's annotation \
                io.kubernetes.cri.untrusted-workload, so pods with it run under the trusted runtime; only those with \
                io.kubernetes.cri-o.TrustedSandbox: \"false\" run with rt";
    let mend = format!(
        "in {file}, [crio.runtime]: default_workload_trust = \"untrusted\"; or annotate the pods with \
         io.kubernetes.cri-o.TrustedSandbox: \"false\""
    );
    node.note(Level::Error, file, text.into(), Some(mend));
}

fn machines(node: &mut Node) {
    let hook =
        ["/usr/libexec/oci/hooks.d", "/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]
            .into_iter()
            .any(|folder| node.drop_ins(folder, "").iter().any(|name| name.contains("oci-register-machine")));
    let text = node.read(MACHINES);
    let disabled = text.as_deref().is_some_and(|text| {
        text.lines().any(|line| {
            let line = line.split('#').next().unwrap_or(line);
            line.split_once(':')
                .is_some_and(|(key, value)| key.trim() == "disabled" && value.trim() == "true")
        })
    });
    if (hook || text.is_some()) && !disabled {
        let text =
            "the hook oci-register-machine is on, and registers virtual machines as containers of the host";
        node.note(Level::Warning, MACHINES, text.into(), Some("disabled : true".into()));
    }
}
