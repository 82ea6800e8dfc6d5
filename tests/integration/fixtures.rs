//! Bundles as real callers wrote them (fixtures/): accepted as they stand, and they run.
//!
//! Only paths of the host are adapted: the root file system and the sources of bind mounts are made here, hooks that call
//! back into a daemon go, and the host's namespaces are those of processes that are long gone. Containers that join a pod are in
//! `pod` and `crio`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::shell::Bundle;

/// The bundle of this fixture, its process replaced by `args`.
fn bundle(text: &str, args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new();
    let mut config: Value = serde_json::from_str(text).unwrap();
    config["root"]["path"] = json!("rootfs");
    config["linux"]["cgroupsPath"] = json!(format!("/rt-test/{}", bundle.id));
    if let Some(hooks) = config.get_mut("hooks") {
        assert!(hooks["prestart"][0]["args"][0] == "libnetwork-setkey");
        *hooks = json!({});
    }
    for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
        namespace.as_object_mut().unwrap().remove("path");
    }
    for (index, mount) in config["mounts"].as_array_mut().unwrap().iter_mut().enumerate() {
        if !Path::new(mount["source"].as_str().unwrap()).is_absolute() {
            continue;
        }
        let source = bundle.path(&format!("source-{index}"));
        match mount["destination"].as_str().unwrap() {
            "/v" | "/dev/shm" => fs::create_dir(&source).unwrap(),
            name => fs::write(&source, format!("{name}\n")).unwrap(),
        }
        mount["source"] = json!(source);
    }
    for dir in ["etc", "run", "v", "var/lib/caller"] {
        fs::create_dir_all(bundle.rootfs(dir)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"] {
        fs::write(bundle.rootfs(file), "").unwrap();
    }
    config["process"]["args"] = json!(args);
    bundle.config = config;
    bundle
}

fn runs(text: &str) {
    let bundle = bundle(text, &["/bin/sh", "-c", "echo hi; grep -c . /proc/self/mounts >/dev/null; echo $?"]);
    bundle.call().end().says(&["hi", "0"]);
    // And by its parts, as all of them do.
    let container = bundle.create(&[]);
    container.start();
    container.reaches("stopped");
    assert_eq!(container.out(), "hi\n0\n");
    drop(container);
}

#[test]
fn podman() {
    runs(include_str!("fixtures/podman-4.3.json"));
}

#[test]
fn docker() {
    runs(include_str!("fixtures/docker-20.10.json"));
}

#[test]
fn ctr() {
    runs(include_str!("fixtures/ctr-1.6.json"));
}

#[test]
fn containerd_cri() {
    runs(include_str!("fixtures/containerd-1.6-cri-sandbox.json"));
}

#[test]
fn crio() {
    runs(include_str!("fixtures/crio-1.13-sandbox.json"));
}
