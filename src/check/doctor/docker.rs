//! docker: daemon.json.

use serde_json::Value;

use super::{Level, Node};

const FILE: &str = "/etc/docker/daemon.json";

pub fn examine(node: &mut Node) {
    let Some(text) = node.read(FILE) else { return };
    let json: Value = match serde_json::from_str(&text) {
        Ok(json) => json,
        Err(error) => return node.note(Level::Error, FILE, format!("is no JSON: {error}"), None),
    };
    let mut names = Vec::new();
    for (name, runtime) in json["runtimes"].as_object().into_iter().flatten() {
        if let Some(program) = runtime["path"].as_str().filter(|program| node.is_rt(program)) {
            names.push(name.clone());
            node.wire(FILE, &format!("path of the runtime {name}"), program);
        }
    }
    if let Some(default) = json["default-runtime"].as_str() {
        let is_there = ["runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"].contains(&default)
            || json["runtimes"].get(default).is_some();
        if names.iter().any(|name| name == default) {
            node.note(Level::Info, FILE, "every container runs with rt (default-runtime)".into(), None);
        } else if !is_there {
            let mend = format!("\"runtimes\": {{\"{default}\": {{\"path\": \"{}\"}}}}", node.rt.display());
            let text = format!("default-runtime is {default}, which is not among the runtimes");
            node.note(Level::Error, FILE, text, Some(mend));
        }
    }
    let options = json["exec-opts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(driver) = options.filter_map(|option| option.strip_prefix("native.cgroupdriver=")).next_back()
    {
        node.drivers.push(("docker", driver == "systemd", FILE.to_owned()));
    }
}
