//! podman: containers.conf and its drop-ins.

use toml::Value;

use super::{Level, Node};

pub fn examine(node: &mut Node) {
    let mut names =
        vec!["/usr/share/containers/containers.conf".to_owned(), "/etc/containers/containers.conf".into()];
    names.extend(node.drop_ins("/etc/containers/containers.conf.d", ".conf"));
    let files = node.toml(&names);
    let mut ours = Vec::new();
    for name in files.keys(&["engine", "runtimes"]) {
        let Some((file, Value::Array(programs))) = files.get(&["engine", "runtimes", &name]) else {
            continue;
        };
        let programs: Vec<&str> = programs.iter().filter_map(Value::as_str).collect();
        // podman takes the first that is there.
        let first = programs.iter().find(|program| node.path(program).exists()).or(programs.first());
        if let Some(program) = first.filter(|program| node.is_rt(program)) {
            node.wire(file, &format!("the runtime {name}"), program);
            ours.push(name);
        }
    }
    let Some((file, default)) = files.text(&["engine", "runtime"]) else { return };
    let file = file.to_owned();
    if ours.iter().any(|name| name == default) {
        node.note(Level::Info, &file, "every container runs with rt (engine.runtime)".into(), None);
    } else if node.is_rt(default) && default.starts_with('/') {
        node.wire(&file, "engine.runtime", default);
    } else if default == "rt" {
        let mend = format!("[engine.runtimes] rt = [\"{}\"]", node.rt.display());
        node.note(
            Level::Error,
            &file,
            "engine.runtime is rt, which is not among the runtimes".into(),
            Some(mend),
        );
    }
}
