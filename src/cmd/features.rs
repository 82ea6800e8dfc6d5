//! `rt features`: what may be asked of rt, as the runtime-spec's features.md has it.
//!
//! True for the guest, since that is where a container is made: its kernel has cgroup v2 only, seccomp, and neither
//! AppArmor nor SELinux; mount options and seccomp's words are those of the libcontainer and libseccomp in its agent.

use oci_spec::runtime::Features;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::write_out;

#[derive(Debug, clap::Args)]
pub struct Arguments {}

/// libcontainer's, src/syscall/linux.rs, and those that rt does itself; other words are passed to the file system as its own.
const MOUNT_OPTIONS: [&str; 62] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// capabilities(7) up to Linux 5.9, after which none came.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Arguments {
    pub fn run(&self) -> anyhow::Result<u8> {
        write_out(&text(&features()))?;
        Ok(0)
    }
}

/// Four spaces an indent and a newline at the end, as runc.
fn text(features: &Value) -> String {
    // As the type it is, whose fields have the order that people expect.
    let features = Features::deserialize(features).expect("the features are valid; a test says so");
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    features.serialize(&mut serializer).expect("features have only string keys");
    text.push(b'\n');
    String::from_utf8(text).expect("JSON is UTF-8")
}

fn features() -> Value {
    let prefixed = |prefix: &str, names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("{prefix}{name}")).collect()
    };
    let actions = ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP"];
    let operators = ["EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE"];
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": super::SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS.as_slice(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": prefixed("CAP_", &CAPABILITIES),
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": prefixed("SCMP_ACT_", &actions),
                "operators": prefixed("SCMP_CMP_", &operators),
                // Of what libseccomp knows, what a guest of this machine's kind can execute.
                "archs": prefixed("SCMP_ARCH_", &["X32", "X86", "X86_64"]),
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
        // They choose the machine, and which one (docs/annotations.md).
        "potentiallyUnsafeConfigAnnotations": [
            "io.katacontainers.",
            "io.kubernetes.cri.",
            "io.kubernetes.cri-o.",
            "io.kubernetes.docker.type",
            "io.kubernetes.sandbox.id",
        ],
        "annotations": {
            "io.rt.version": env!("CARGO_PKG_VERSION"),
            "io.rt.commit": super::COMMIT,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_runtime_spec_describes() {
        let features: Features = serde_json::from_value(features()).unwrap();
        let linux = features.linux().as_ref().unwrap();
        assert_eq!(linux.cgroup().as_ref().unwrap().v1(), &Some(false));
        assert!(features.mount_options().as_ref().unwrap().is_sorted());
    }

    #[test]
    fn lines_are_indented_by_four_spaces() {
        assert!(text(&features()).starts_with("{\n    \"ociVersionMin\": \"1.0.0\",\n"));
    }
}
