//! The kubelet: its cgroup driver, which has to be that of the engine.

use super::{Level, Node};

const CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// Files with flags, as kubeadm and packages write them; flags win over the configuration.
const FLAGS: [&str; 3] =
    ["/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"];

pub fn examine(node: &mut Node) {
    let mut driver = None;
    if let Some(text) = node.read(CONFIG) {
        let value = text.lines().find_map(|line| line.strip_prefix("cgroupDriver:"));
        // Without, it is cgroupfs.
        let value = value.map_or("cgroupfs", |value| value.trim().trim_matches(['"', '\'']));
        driver = Some((value.to_owned(), CONFIG));
    }
    for file in FLAGS {
        let text = node.read(file).unwrap_or_default();
        let words = text.split(|c: char| c.is_whitespace() || c == '"' || c == '\'');
        let value = words.filter_map(|word| word.strip_prefix("--cgroup-driver=")).next_back();
        driver = value.map(|value| (value.to_owned(), file)).or(driver);
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
            node.note(Level::Info, file, text, None);
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
