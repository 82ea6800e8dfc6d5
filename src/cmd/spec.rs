//! `rt spec`: writes a config.json to start from.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const FILE: &str = "config.json";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a container without root: with a user namespace that maps the caller's IDs, and the host's network
    #[arg(long)]
    rootless: bool,
}

impl Arguments {
    pub fn run(&self) -> anyhow::Result<u8> {
        let path = self.bundle.join(FILE);
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("File {FILE} exists. Remove it first")
            }
            other => other.with_context(|| format!("cannot write {}", path.display()))?,
        };
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let spec = default_spec(self.rootless.then_some((uid, gid)));
        file.write_all(&pretty(&spec)).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(0)
    }
}

/// With tabs, as runc writes it.
fn pretty(spec: &Value) -> Vec<u8> {
    // As the type it is, whose fields have the order that people expect.
    let spec = Spec::deserialize(spec).expect("the default is a valid specification; a test says so");
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    spec.serialize(&mut serializer).expect("a specification has only string keys");
    text
}

/// runc's default but for the host name; `rootless` is the user and group that becomes the container's root.
fn default_spec(rootless: Option<(u32, u32)>) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    let mut sys = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"]});
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let mut linux = serde_json::Map::new();
    match rootless {
        None => {
            pts.push("gid=5");
            linux.insert("resources".into(), json!({"devices": [{"allow": false, "access": "rwm"}]}));
        }
        Some((uid, gid)) => {
            sys = json!({"destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
            namespaces.retain(|name| *name != "network");
            namespaces.push("user");
            linux.insert("uidMappings".into(), json!([{"containerID": 0, "hostID": uid, "size": 1}]));
            linux.insert("gidMappings".into(), json!([{"containerID": 0, "hostID": gid, "size": 1}]));
        }
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|name| json!({"type": name})).collect();
    linux.insert("namespaces".into(), namespaces.into());
    linux.insert(
        "maskedPaths".into(),
        json!([
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi"
        ]),
    );
    linux.insert(
        "readonlyPaths".into(),
        json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
    );
    json!({
        "ociVersion": super::SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "rt",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            sys,
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": linux,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_valid_specification() {
        for rootless in [None, Some((1000, 1001))] {
            let spec: Spec = serde_json::from_slice(&pretty(&default_spec(rootless))).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().is_some(), rootless.is_some());
            assert_eq!(spec.hostname().as_deref(), Some("rt"));
        }
    }

    #[test]
    fn lines_are_indented_with_tabs() {
        let text = String::from_utf8(pretty(&default_spec(None))).unwrap();
        assert!(text.contains("\n\t\"root\": {\n\t\t\"path\"") && text.ends_with("\n}"), "{text}");
    }
}
