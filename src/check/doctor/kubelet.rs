//! The kubelet: its cgroup driver, which has to be that of the engine.

use super::{Level, Node};

const CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// Files with flags, as kubeadm and packages write them; flags win over the configuration. So do those of the unit's drop-ins.
const FLAGS: [&str; 3] =
    ["/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"];
const UNITS: [&str; 2] = ["/lib/systemd/system", "/etc/systemd/system"];

/// The last `--cgroup-driver=VALUE` or `--cgroup-driver VALUE` that is no comment.
fn flag(text: &str) -> Option<&str> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || c == '"' || c == '\''));
    let words: Vec<&str> = words.collect();
    words.iter().enumerate().rev().find_map(|(at, word)| match word.split_once("--cgroup-driver")?.1 {
        "" => words.get(at + 1).copied(),
        rest => rest.strip_prefix('='),
    })
}

pub fn examine(node: &mut Node) {
    let mut driver = None;
    if let Some(text) = node.read(CONFIG) {
        let value = text.lines().find_map(|line| line.strip_prefix("cgroupDriver:"));
        // Without, it is cgroupfs.
        let value = value.map_or("cgroupfs", |value| value.trim().trim_matches(['"', '\'']));
        driver = Some((value.to_owned(), CONFIG.to_owned()));
    }
    let mut files = Vec::new();
    for folder in UNITS {
        files.push(format!("{folder}/kubelet.service"));
        files.extend(node.drop_ins(&format!("{folder}/kubelet.service.d"), ".conf"));
    }
    files.extend(FLAGS.map(str::to_owned));
    for file in files {
        let text = node.read(&file).unwrap_or_default();
        driver = flag(&text).map(|value| (value.to_owned(), file)).or(driver);
    }
    let Some((driver, file)) = driver else { return };
    let name = |systemd| if systemd { "systemd" } else { "cgroupfs" };
    let mut drivers = std::mem::take(&mut node.drivers);
    drivers.dedup();
    // The kubelet speaks to one of them; docker only where there is no other.
    let has_cri = drivers.iter().any(|(engine, ..)| *engine != "docker");
    for (engine, systemd, engine_file) in
        drivers.into_iter().filter(|(engine, ..)| !has_cri || *engine != "docker")
    {
        if systemd == (driver == "systemd") {
            let text = format!("the kubelet's cgroup driver is {driver}, as {engine}'s");
            node.note(Level::Info, &file, text, None);
            continue;
        }
        let text = format!(
            "{engine}'s cgroup driver is {}, but the kubelet's is {driver} ({file}): pods do not start",
            name(systemd)
        );
        let mend = match engine {
            "CRI-O" => format!("cgroup_manager = \"{driver}\""),
            "containerd" => format!("options.SystemdCgroup = {}", driver == "systemd"),
            _ => format!("\"exec-opts\": [\"native.cgroupdriver={driver}\"]"),
        };
        node.note(Level::Error, &engine_file, text, Some(mend));
    }
}
