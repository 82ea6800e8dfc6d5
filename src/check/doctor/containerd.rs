//! containerd: config.toml of versions 1, 2 and 3, and what it imports.

use super::{Files, Level, Node};
use crate::shim::NAMES;
use crate::wiring::containerd_programs;

const MAIN: &str = "/etc/containerd/config.toml";
/// The CRI plugin, by the version of the configuration that calls it so.
const CRI: [(i64, &str); 3] =
    [(1, "cri"), (2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];
const SHIM: &str = crate::shim::TYPE;

pub fn examine(node: &mut Node) {
    let files = node.toml(&[MAIN.to_owned()]);
    let Some((_, main)) = files.0.first() else { return };
    let version = main.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
    let imports: Vec<String> = main
        .get("imports")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|import| import.as_str())
        .flat_map(|import| match import.rsplit_once('/') {
            Some((folder, pattern)) if pattern.starts_with('*') => {
                node.drop_ins(folder, pattern.trim_start_matches('*'))
            }
            _ => vec![import.to_owned()],
        })
        .collect();
    let names: Vec<String> = [MAIN.to_owned()].into_iter().chain(imports).collect();
    let files = node.toml(&names);
    for (of, plugin) in CRI {
        let runtimes = ["plugins", plugin, "containerd", "runtimes"];
        for handler in files.keys(&runtimes) {
            let path = [&runtimes[..], &[handler.as_str()]].concat();
            runtime(node, &files, &path, &handler, (version, of));
        }
        let untrusted = ["plugins", plugin, "containerd", "untrusted_workload_runtime"];
        if files.get(&untrusted).is_some() {
            runtime(node, &files, &untrusted, "untrusted_workload_runtime", (version, of));
        }
    }
    if let Some((file, program)) = files.text(&["plugins", "linux", "runtime"])
        && node.is_rt(program)
    {
        node.wire(file, "plugins.linux.runtime", program);
    }
}

fn runtime(node: &mut Node, files: &Files, path: &[&str], handler: &str, (version, of): (i64, i64)) {
    let at = |keys: &[&str]| files.get(&[path, keys].concat());
    let text = |keys: &[&str]| at(keys).and_then(|(file, value)| Some((file, value.as_str()?)));
    let kind = text(&["runtime_type"]).map_or("", |(_, kind)| kind);
    let engine = text(&["runtime_engine"]).filter(|(_, program)| node.is_rt(program));
    let binary = text(&["options", "BinaryName"]).filter(|(_, program)| node.is_rt(program));
    let file = match (kind == SHIM, engine, binary) {
        (true, _, _) => at(&["runtime_type"]).map(|(file, _)| file),
        (_, Some((file, _)), _) | (_, _, Some((file, _))) => Some(file),
        _ => None,
    };
    let Some(file) = file else { return };
    node.is_meant = true;
    if of != version {
        let text = format!(
            "the handler {handler} is in a table of version {of}, but the file says version {version}: containerd ignores it"
        );
        let mend = match of {
            1 => "move it to the tables of that version".to_owned(),
            of => format!("version = {of}, as the first line, or move it to the tables of version {version}"),
        };
        return node.note(Level::Error, file, text, Some(mend));
    }
    match (kind, engine, binary) {
        (SHIM, _, _) => shim(node, files, file, handler),
        ("io.containerd.runtime.v1.linux" | "", Some((_, program)), _) => {
            node.wire(file, &format!("runtime_engine of the handler {handler}"), program);
        }
        (kind, Some(_), None) => {
            let text = format!(
                "the handler {handler} names rt as runtime_engine, which {kind} ignores: it runs runc"
            );
            let mend = format!("options.BinaryName = \"{}\"", node.rt.display());
            node.note(Level::Error, file, text, Some(mend));
        }
        (_, _, Some((_, program))) => {
            node.wire(file, &format!("BinaryName of the handler {handler}"), program);
        }
        (_, None, None) => {}
    }
    let systemd = at(&["options", "SystemdCgroup"]).and_then(|(_, value)| value.as_bool()).unwrap_or(false);
    let is_used = kind != "io.containerd.runtime.v1.linux" && kind != SHIM;
    if is_used {
        node.drivers.push(("containerd", systemd, file.to_owned()));
    }
}

/// containerd looks for the shim of a runtime type in PATH, by a name made from it, and in a folder of its own before.
fn shim(node: &mut Node, files: &Files, file: &str, handler: &str) {
    let own = files.0.first().map_or_else(Default::default, |(_, main)| containerd_programs(main));
    let path = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = [own.as_str()]
        .into_iter()
        .chain(path)
        .map(|folder| format!("{folder}/{}", NAMES[0]))
        .find(|path| node.path(path).exists());
    match found {
        Some(path) => node.note(Level::Info, file, format!("the handler {handler} is {SHIM}, {path}"), None),
        None => {
            let text = format!("the handler {handler} is {SHIM}, but there is no {} in PATH", NAMES[0]);
            let mend = format!("ln -s {} /usr/local/bin/{}", node.rt.display(), NAMES[0]);
            node.note(Level::Error, file, text, Some(mend));
        }
    }
}
