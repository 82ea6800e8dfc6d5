//! What an operator sets, and where each value comes from: files, drop-ins, environment, flags, annotations.

use std::fs;

use serde_json::{Value, json};

use crate::shell::{Bundle, Ended, host, rt_binary};

const KATA: &str = "io.katacontainers.config";

/// `rt config show --origin --format json`, by key.
fn shown(bundle: &Bundle, flags: &[&str]) -> impl Fn(&str) -> (Value, String) + use<> {
    let ended = bundle.rt(&[&["config", "show", "--origin", "--format", "json"], flags].concat());
    ended.code(0).stderr("");
    let entries: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap();
    move |key| {
        let entry = entries.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("{key}"));
        (entry["value"].clone(), entry["origin"].as_str().unwrap().to_owned())
    }
}

#[track_caller]
fn is_refused(ended: &Ended, words: &[&str]) {
    ended.code(1).stdout("");
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{ended}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} {ended}");
}

#[test]
fn each_layer_wins_over_those_before_and_is_named() {
    let mut bundle = Bundle::new();
    bundle.settings = "[hypervisor]\nvcpus = 2\nmemory_mib = 300\n\n[agent]\ntimeout_ms = 5000\n".into();
    fs::create_dir(bundle.path("config.d")).unwrap();
    bundle.file("config.d/10.toml", "hypervisor.vcpus = 3\n");
    bundle.config["annotations"] = json!({format!("{KATA}.hypervisor.default_memory"): "320"});
    let dir = bundle.dir().to_str().unwrap().to_owned();
    let value = shown(&bundle, &["--bundle", &dir]);
    let place = |name: &str| format!("{dir}/{name}");
    assert_eq!(value("agent.timeout_ms"), (json!(5000), place("rt.toml:6")));
    assert_eq!(value("hypervisor.vcpus"), (json!(3), place("config.d/10.toml:1")));
    let (memory, origin) = value("hypervisor.memory_mib");
    assert_eq!((memory, origin), (json!(320), format!("annotation {KATA}.hypervisor.default_memory")));
    assert_eq!(value("runtime.root").1, "flag --root");
    assert_eq!(value("share.cache"), (json!("always"), "default".into()));
    let ended = bundle.rt_through("RT_AGENT_TIMEOUT_MS=7000 exec \"$@\"", &["config", "show", "--origin"]);
    assert!(ended.text().contains("# environment RT_AGENT_TIMEOUT_MS\n"), "{ended}");
    // What is shown is a configuration.
    let text = bundle.rt(&["config", "show"]).text();
    bundle.settings = text.replace(bundle.state_root().to_str().unwrap(), "/other");
    assert_eq!(shown(&bundle, &[])("hypervisor.memory_mib").0, json!(300));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let mut bundle = Bundle::new();
    for (text, words) in [
        ("[hypervisor]\nvcpu = 2\n", &["rt.toml:2: ", "hypervisor.vcpu;", "hypervisor.vcpus"][..]),
        ("[hypervisor]\nvcpus = 'two'\n", &["rt.toml:2: ", "whole number from 1 to 32"]),
        ("[hypervisor\n", &["rt.toml:1:", "no TOML"]),
        (
            "[runtime]\nenable_annotations = ['default_vcpu']\n",
            &["rt.toml:2: ", "default_vcpu", "default_vcpus"],
        ),
    ] {
        bundle.settings = text.into();
        is_refused(&bundle.rt(&["config", "show"]), words);
    }
    let latin =
        "cd ${RT_CONFIG%/*} && printf '[agent]\\n# \\377\\n' >latin.toml && RT_CONFIG=latin.toml exec \"$@\"";
    is_refused(&bundle.rt_through(latin, &["config", "show"]), &["latin.toml:2:3: ", "UTF-8"]);
    bundle.settings = "[agent]\n".into();
    let ended = bundle.rt_through("RT_HYPERVISOR_VCPU=2 exec \"$@\"", &["config", "show"]);
    is_refused(&ended, &["environment RT_HYPERVISOR_VCPU", "hypervisor.vcpus"]);
    fs::create_dir_all(bundle.path("config.d/folder.toml")).unwrap();
    is_refused(&bundle.rt(&["config", "show"]), &["folder.toml", "directory"]);
    let missing = "RT_CONFIG=/no/such/file exec \"$@\"";
    is_refused(&bundle.rt_through(missing, &["config", "show"]), &["/no/such/file", "No such file"]);
    // Whoever says where the state is needs nothing of it to look there.
    bundle.rt_through(missing, &["list"]).code(0);
}

#[test]
fn a_kernel_that_is_none_is_told_with_its_place() {
    let mut bundle = Bundle::new();
    let text = bundle.file("text", "#!/bin/sh\n");
    bundle.settings = format!("[hypervisor]\nkernel = {text:?}\ninitramfs = {text:?}\n");
    is_refused(&bundle.call().no_log().end(), &["rt.toml:2: ", "not an uncompressed ELF kernel", "leave"]);
}

#[test]
fn annotations_change_what_the_operator_allows() {
    let mut bundle = Bundle::new();
    bundle.config["annotations"] = json!({
        format!("{KATA}.hypervisor.default_vcpus"): "2",
        format!("{KATA}.hypervisor.kernel_params"): "rt.test=1",
    });
    is_refused(
        &bundle.call().no_log().end(),
        &["kernel_params", "not allowed", "runtime.enable_annotations"],
    );
    bundle.settings = "[runtime]\nenable_annotations = ['kernel_params', 'default_vcpus']\n".into();
    let ended = bundle.sh("nproc; cat /proc/cmdline");
    ended.code(0);
    let text = ended.text();
    assert!(text.starts_with("2\n") && text.contains(" rt.test=1"), "{ended}");
    bundle.config["annotations"] = json!({format!("{KATA}.hypervisor.path"): "/bin/sh"});
    is_refused(&bundle.call().no_log().end(), &["hypervisor.path", "not allowed"]);
}

#[test]
fn the_state_may_lie_where_the_configuration_says() {
    let mut bundle = Bundle::new();
    bundle.settings = format!("[runtime]\nroot = {:?}\n", bundle.state_root());
    let container = bundle.create(&[]);
    let id = container.state()["id"].as_str().unwrap().to_owned();
    let config = bundle.path("rt.toml");
    let listed = host(&format!("RT_CONFIG={} {} list -q", config.display(), rt_binary().display()));
    assert_eq!(listed, id);
    drop(container);
    bundle.leaves_nothing();
}

#[test]
fn the_guest_is_as_configured() {
    let mut bundle = Bundle::new();
    bundle.settings =
        "[hypervisor]\nentropy = false\nkernel_parameters = 'rt.test=2'\n[agent]\nlog_level = 'debug'\n\
        [share]\ncache = 'never'\n[runtime]\ndebug = true\n"
            .into();
    bundle.file("volume/x", "1\n");
    let source = bundle.path("volume").to_str().unwrap().to_owned();
    bundle.mount("/v", "bind", &source, &["bind"]);
    let ended = bundle
        .sh("cat /sys/class/misc/hw_random/rng_available; cat /proc/cmdline /v/x; echo 2 >/v/x; cat /v/x");
    ended.code(0);
    let text = ended.text();
    assert!(!text.contains("virtio_rng"), "{ended}");
    assert!(text.contains("rt.test=2 rt.log=debug") && text.ends_with("1\n2\n"), "{ended}");
    assert!(ended.log().contains("level=debug"), "{ended}");
    // And with the defaults there is a device.
    bundle.settings.clear();
    assert!(bundle.sh("cat /sys/class/misc/hw_random/rng_available").text().contains("virtio_rng"));
}

#[test]
fn katas_configuration_is_converted() {
    let mut bundle = Bundle::new();
    let kata = bundle.file(
        "kata.toml",
        "[hypervisor.qemu]\nkernel = \"/usr/share/kata/vmlinuz\"\ndefault_memory = 2048\n[runtime]\nenable_debug = true\n",
    );
    let ended = bundle.rt(&["config", "import", kata.to_str().unwrap()]);
    ended.code(0);
    assert!(ended.text().contains("# hypervisor.qemu.kernel = "), "{ended}");
    bundle.settings = ended.text();
    assert_eq!(shown(&bundle, &[])("hypervisor.memory_mib").0, json!(2048));
    assert_eq!(shown(&bundle, &[])("runtime.debug").0, json!(true));
    is_refused(&bundle.rt(&["config", "import", "/no/such/file"]), &["/no/such/file"]);
}
