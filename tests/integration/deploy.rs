//! What lays rt onto the nodes of a Kubernetes cluster, run against a copy of a node's files; and its manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Bundle, Ended, host, rt_binary, skipped};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(name)
}

fn node(bundle: &Bundle, verb: &str, engine: &str) -> String {
    let (script, root, rt) = (file("node.sh"), bundle.path("node"), rt_binary());
    host(&format!("{} {verb} {} {engine} {}", script.display(), root.display(), rt.display()))
}

/// All files below a directory with their content.
fn content(root: &Path) -> String {
    host(&format!(
        "cd {} && find . ! -name . -print | sort && find . -type f | sort | xargs -r cat",
        root.display()
    ))
}

#[test]
fn a_node_gets_rt_and_loses_it_without_a_trace() {
    let bundle = Bundle::new();
    let root = bundle.path("node");
    fs::create_dir_all(root.join("etc/containerd")).unwrap();
    let settings = "version = 2\n\n[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = 'pause:1'\n";
    fs::write(root.join("etc/containerd/config.toml"), settings).unwrap();
    let before = content(&root);

    let said = node(&bundle, "install", "containerd");
    assert!(
        said.contains("+  runtime_type = \"io.containerd.rt.v2\"") && said.contains("no systemd"),
        "{said}"
    );
    // As the node sees it, whose root this is not.
    let link = root.join("opt/containerd/bin/containerd-shim-rt-v2");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/opt/rt/bin/rt"));
    assert!(host(&format!("{}/opt/rt/bin/rt --version", root.display())).starts_with("rt version "));
    let config = fs::read_to_string(root.join("etc/containerd/config.toml")).unwrap();
    assert!(config.starts_with(settings), "{config}");
    assert!(node(&bundle, "install", "containerd").contains("nothing to do"));

    // While a container runs, the engine needs rt to delete it: CRI-O's, containerd's by runc's shim, as an older rt was wired, and
    // containerd's by rt's own, whose link then stays, too.
    for pod in ["run/rt/pod", "run/rt/k8s.io/pod", "run/containerd/rt/k8s.io/pod"] {
        node(&bundle, "install", "containerd");
        fs::create_dir_all(root.join(pod)).unwrap();
        fs::write(root.join(pod).join("state.json"), "{}").unwrap();
        assert!(node(&bundle, "remove", "containerd").contains("such as pod still run"));
        assert!(root.join("opt/rt/bin/rt").exists());
        assert_eq!(link.is_symlink(), pod.starts_with("run/containerd"));
        fs::remove_dir_all(root.join(pod)).unwrap();
    }
    node(&bundle, "remove", "containerd");
    assert!(!root.join("opt/rt").exists());
    fs::remove_dir_all(root.join("run")).unwrap();
    // containerd's own.
    host(&format!("cd {} && rmdir -p opt/containerd/bin", root.display()));
    assert_eq!(content(&root), before);
}

#[test]
fn crio_gets_a_drop_in() {
    let bundle = Bundle::new();
    let root = bundle.path("node");
    fs::create_dir_all(root.join("etc/crio/crio.conf.d")).unwrap();
    node(&bundle, "install", "crio");
    let drop_in = fs::read_to_string(root.join("etc/crio/crio.conf.d/50-rt.conf")).unwrap();
    assert!(drop_in.contains("[crio.runtime.runtimes.rt]\nruntime_path = \"/opt/rt/bin/rt\""), "{drop_in}");
    node(&bundle, "remove", "crio");
    assert!(!root.join("etc/crio/crio.conf.d/50-rt.conf").exists() && !root.join("opt/rt").exists());
}

/// Decoded by the client's own types: there is no server here.
#[test]
fn the_manifests_are_what_kubectl_takes() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        return skipped("deploy::the_manifests_are_what_kubectl_takes", "there is no kubectl");
    }
    for (name, kind) in [("runtimeclass.yaml", "kind: RuntimeClass"), ("daemonset.yaml", "hostPID: true")] {
        let call =
            format!("kubectl annotate --local --dry-run=client -o yaml -f {} a=b", file(name).display());
        let decoded = host(&call);
        assert!(decoded.contains(kind), "{decoded}");
    }
}

#[test]
fn an_engine_is_shown_the_change_before() {
    let bundle = Bundle::new();
    let root = bundle.path("host");
    let install = |flags: &[&str]| -> Ended {
        let into = ["install", "--into", root.to_str().unwrap(), "--binary", "/usr/bin/rt"];
        bundle.rt(&[&into[..], flags].concat())
    };
    let shown = install(&["--dry-run", "docker"]);
    shown.code(0);
    assert!(shown.text().contains("+      \"path\": \"/usr/bin/rt\"") && !root.exists(), "{shown}");
    install(&["podman"]).code(0);
    assert!(root.join("etc/containers/containers.conf.d/50-rt.conf").exists());
    install(&["podman", "--undo"]).code(0);
    assert!(install(&["podman", "--undo"]).text().starts_with("nothing to do"));
}
