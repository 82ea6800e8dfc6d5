//! Nodes of every kind, by their files.

use super::*;

fn notes(files: &[(&str, &str)]) -> Vec<Note> {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    put("/usr/local/bin/rt", "");
    files.iter().for_each(|(path, text)| put(path, text));
    std::os::unix::fs::symlink("rt", root.path().join("usr/local/bin/kata-runtime")).unwrap();
    examine(root.path(), Path::new("/usr/local/bin/rt"))
}

/// Errors and warnings with their mends.
fn wrong(notes: &[Note]) -> Vec<String> {
    let told =
        |note: &Note| format!("{}: {} => {}", note.file, note.text, note.mend.as_deref().unwrap_or(""));
    notes.iter().filter(|note| note.level > Level::Info).map(told).collect()
}

#[track_caller]
fn one(files: &[(&str, &str)], words: &[&str]) {
    let wrong = wrong(&notes(files));
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(words.iter().all(|word| wrong[0].contains(word)), "{words:?} {wrong:#?}");
}

const CRIO: &str =
    "[crio.runtime]\nruntime = '/usr/bin/runc'\nruntime_untrusted_workload = '/usr/local/bin/rt'\n";

#[test]
fn a_node_without_engines() {
    assert_eq!(wrong(&notes(&[])), [": no engine of this node is wired to rt => "]);
    one(&[("/etc/crio/crio.conf", "[crio.runtime]\nruntime = '/usr/bin/runc'\n")], &["no engine"]);
}

#[test]
fn the_trap_of_trusted_workloads() {
    one(
        &[("/etc/crio/crio.conf", CRIO)],
        &[
            "io.kubernetes.cri.untrusted-workload",
            "=> in /etc/crio/crio.conf, [crio.runtime]: default_workload_trust = ",
        ],
    );
    let mend = ("/etc/crio/crio.conf.d/99-rt.conf", "[crio.runtime]\ndefault_workload_trust = 'untrusted'\n");
    assert_eq!(wrong(&notes(&[("/etc/crio/crio.conf", CRIO), mend])), [""; 0]);
    // The last file counts.
    let back = ("/etc/crio/crio.conf.d/99-z.conf", "[crio.runtime]\ndefault_workload_trust = 'trusted'\n");
    one(&[("/etc/crio/crio.conf", CRIO), mend, back], &["/etc/crio/crio.conf.d/99-z.conf: "]);
}

#[test]
fn crio_by_handler_and_by_katas_name() {
    let text = "[crio.runtime.runtimes.vm]\nruntime_path = '/usr/local/bin/kata-runtime'\n";
    let notes = notes(&[("/etc/crio/crio.conf", text)]);
    assert_eq!(wrong(&notes), [""; 0]);
    assert_eq!(notes[0].text, "runtime_path of the handler vm is /usr/local/bin/kata-runtime");
    one(
        &[("/etc/crio/crio.conf", "[crio.runtime.runtimes.vm]\nruntime_path = '/opt/rt'\n")],
        &["/opt/rt, which cannot be executed", "=> put rt there, or name /usr/local/bin/rt"],
    );
}

#[test]
fn machines_are_not_to_be_registered() {
    let crio = ("/etc/crio/crio.conf", "[crio.runtime]\nruntime = '/usr/local/bin/rt'\n");
    let file = "/etc/oci-register-machine.conf";
    one(
        &[crio, (file, "# disabled : true\ndisabled : false\n")],
        &["oci-register-machine", "=> disabled : true"],
    );
    one(&[crio, ("/usr/libexec/oci/hooks.d/oci-register-machine", "")], &["=> disabled : true"]);
    assert_eq!(wrong(&notes(&[crio, (file, "disabled : true\n")])), [""; 0]);
}

#[test]
fn containerd_of_each_version() {
    let file = "/etc/containerd/config.toml";
    let v1 = "[plugins.cri.containerd.untrusted_workload_runtime]\nruntime_type = 'io.containerd.runtime.v1.linux'\n\
              runtime_engine = '/usr/local/bin/rt'\n";
    let v2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt]\nruntime_type = 'io.containerd.runc.v2'\n\
              [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt.options]\nBinaryName = '/usr/local/bin/rt'\n";
    let v3 = v2
        .replace("version = 2", "version = 3")
        .replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime");
    for text in [v1, v2, &v3] {
        let notes = notes(&[(file, text)]);
        assert_eq!((wrong(&notes).len(), notes.len()), (0, 1), "{notes:#?}");
    }
    one(&[(file, &v2.replace("version = 2", ""))], &["version 2", "containerd ignores it", "=> version = 2"]);
    one(
        &[(file, &v2.replace("version = 2", "version = 3"))],
        &["containerd ignores it", "tables of version 3"],
    );
    one(&[(file, &v2.replace("BinaryName", "Other"))], &["no engine"]);
    let engine = v2.replace(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt.options]\nBinaryName",
        "runtime_engine",
    );
    let wrong = wrong(&notes(&[(file, &engine)]));
    assert!(
        wrong[0].contains("ignores: it runs runc => options.BinaryName = \"/usr/local/bin/rt\""),
        "{wrong:#?}"
    );
}

#[test]
fn containerd_with_the_shim_and_imports() {
    let file = "/etc/containerd/config.toml";
    let main = (file, "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n");
    let text = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt]\nruntime_type = 'io.containerd.rt.v2'\n";
    let import = ("/etc/containerd/conf.d/rt.toml", text);
    one(
        &[main, import],
        &["/etc/containerd/conf.d/rt.toml: ", "no containerd-shim-rt-v2", "=> ln -s /usr/local/bin/rt"],
    );
    assert_eq!(wrong(&notes(&[main, import, ("/usr/bin/containerd-shim-rt-v2", "")])), [""; 0]);
}

#[test]
fn docker_and_podman() {
    let docker = "/etc/docker/daemon.json";
    let good = r#"{"runtimes": {"rt": {"path": "/usr/local/bin/rt"}}, "default-runtime": "rt"}"#;
    assert_eq!(wrong(&notes(&[(docker, good)])), [""; 0]);
    let wrong_default = wrong(&notes(&[(docker, r#"{"default-runtime": "rt"}"#)]));
    assert!(
        wrong_default[0].contains("=> \"runtimes\": {\"rt\": {\"path\": \"/usr/local/bin/rt\"}}"),
        "{wrong_default:?}"
    );
    assert!(wrong(&notes(&[(docker, "{")]))[0].contains("is no JSON"));
    let podman = "/etc/containers/containers.conf";
    let good = "[engine]\nruntime = 'rt'\n[engine.runtimes]\nrt = ['/opt/rt', '/usr/local/bin/rt']\n";
    assert_eq!(wrong(&notes(&[(podman, good)])), [""; 0]);
    let wrong_default = wrong(&notes(&[(podman, "[engine]\nruntime = 'rt'\n")]));
    assert!(
        wrong_default[0].contains("=> [engine.runtimes] rt = [\"/usr/local/bin/rt\"]"),
        "{wrong_default:?}"
    );
}

#[test]
fn cgroup_drivers_have_to_agree() {
    let kubelet = ("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\ncgroupDriver: systemd\n");
    let crio = "[crio.runtime]\nruntime = '/usr/local/bin/rt'\ncgroup_manager = 'cgroupfs'\n";
    one(
        &[kubelet, ("/etc/crio/crio.conf", crio)],
        &[
            "CRI-O's cgroup driver is cgroupfs, but the kubelet's is systemd",
            "=> cgroup_manager = \"systemd\"",
        ],
    );
    assert_eq!(
        wrong(&notes(&[kubelet, ("/etc/crio/crio.conf", &crio.replace("cgroupfs", "systemd"))])),
        [""; 0]
    );
    // Flags win.
    let flags =
        ("/var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"--cgroup-driver=cgroupfs --x=y\"\n");
    assert_eq!(wrong(&notes(&[kubelet, flags, ("/etc/crio/crio.conf", crio)])), [""; 0]);
    for (file, text) in [
        ("/etc/default/kubelet", "KUBELET_EXTRA_ARGS='--x --cgroup-driver cgroupfs'\n"),
        (
            "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
            "[Service]\nEnvironment=\"KUBELET_CGROUP_ARGS=--cgroup-driver=cgroupfs\"\n# --cgroup-driver=systemd\n",
        ),
    ] {
        let seen = notes(&[kubelet, (file, text), ("/etc/crio/crio.conf", crio)]);
        assert_eq!(wrong(&seen), [""; 0], "{file}");
        assert!(
            seen.iter().any(|note| note.text == "the kubelet's cgroup driver is cgroupfs, as CRI-O's"),
            "{seen:#?}"
        );
    }
    let containerd = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.rt]\nruntime_type = \
                      'io.containerd.runc.v2'\noptions.BinaryName = '/usr/local/bin/rt'\n";
    one(&[kubelet, ("/etc/containerd/config.toml", containerd)], &["=> options.SystemdCgroup = true"]);
    let docker = r#"{"runtimes": {"rt": {"path": "/usr/local/bin/rt"}}, "exec-opts": ["native.cgroupdriver=cgroupfs"]}"#;
    one(&[kubelet, ("/etc/docker/daemon.json", docker)], &["native.cgroupdriver=systemd"]);
}

#[test]
fn broken_files_are_told_with_their_line() {
    one(
        &[
            ("/etc/crio/crio.conf", CRIO),
            ("/etc/crio/crio.conf.d/1.conf", "[crio.runtime]\ndefault_workload_trust = 'untrusted'\n"),
            ("/etc/crio/crio.conf.d/2.conf", "[crio]\nx = = y\n"),
        ],
        &["/etc/crio/crio.conf.d/2.conf: line 2 is no TOML"],
    );
}
