//! Kata's annotations: those whose meaning rt has, those it refuses, those that mean nothing to it.
//!
//! A bundle's annotations come from whoever wrote the pod, who is suspect: so only the names in
//! `runtime.enable_annotations` count, by default the harmless ones, and a value is checked as if it stood in a file. What is
//! not allowed is an error, never left out in silence: whoever asked for it would think they had it.

use std::collections::HashMap;

use toml::Value;

use super::layers::Layers;
use super::{Config, Error, settings};
use crate::sys::text::printable;

/// What Kata's own annotations begin with.
pub const PREFIX: &str = "io.katacontainers.config";

/// Allowed unless an operator says otherwise. They change how much of what the limits of the operator allow a virtual machine
/// takes (`hypervisor.max_vcpus`, `hypervisor.max_memory_mib`, the pod's cgroup), and how its own files are cached: nothing
/// of the host, nothing of what protects it, no program and no file that is opened.
pub const HARMLESS: [&str; 3] = ["default_vcpus", "default_memory", "virtio_fs_cache"];

/// What an annotation of Kata's means to rt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A setting.
    Sets(&'static str, Conversion),
    /// What rt cannot promise, and somebody may rely on. Why.
    Refused(&'static str),
    /// Something that rt has not got, or always does. Why.
    None(&'static str),
}

/// From Kata's value to rt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    Same,
    /// A number that may have a fraction, rounded up.
    Ceiling,
    /// Behind what is there.
    Append,
    /// Seconds to milliseconds.
    Seconds,
    /// `none` is another word for `never`.
    CacheMode,
}

use Conversion::{Append, CacheMode, Ceiling, Same, Seconds};
use Meaning::{Refused, Sets};

const OWN_GUEST: &str = "a file of the host that a pod names would be read as root; rt brings its own guest";
const NO_MEASURE: &str = "rt measures no files, so nobody may rely on it";
const NO_FILE: &str = "a program of the host that a pod names would run as root";
const OWN_MACHINE: &str = "the machine is rt's own";
const NO_TEE: &str = "rt runs no confidential guests";

/// Kata's annotations, without [`PREFIX`] and its point.
pub const ANNOTATIONS: &[(&str, Meaning)] = &[
    ("hypervisor.default_vcpus", Sets("hypervisor.vcpus", Ceiling)),
    ("hypervisor.default_max_vcpus", Sets("hypervisor.max_vcpus", Same)),
    ("hypervisor.default_memory", Sets("hypervisor.memory_mib", Same)),
    ("hypervisor.default_maxmemory", Sets("hypervisor.max_memory_mib", Same)),
    ("hypervisor.kernel_params", Sets("hypervisor.kernel_parameters", Append)),
    ("hypervisor.virtio_fs_cache", Sets("share.cache", CacheMode)),
    ("hypervisor.enable_debug", Sets("hypervisor.console", Same)),
    ("runtime.create_container_timeout", Sets("agent.timeout_ms", Seconds)),
    ("agent.dial_timeout", Sets("agent.boot_timeout_ms", Seconds)),
    ("hypervisor.path", Refused(NO_FILE)),
    ("hypervisor.jailer_path", Refused(NO_FILE)),
    ("hypervisor.virtio_fs_daemon", Refused(NO_FILE)),
    (
        "hypervisor.virtio_fs_extra_args",
        Refused("options of a program of the host that a pod chooses are its way out"),
    ),
    ("hypervisor.kernel", Refused(OWN_GUEST)),
    ("hypervisor.image", Refused(OWN_GUEST)),
    ("hypervisor.initrd", Refused(OWN_GUEST)),
    ("hypervisor.firmware", Refused(OWN_GUEST)),
    ("hypervisor.firmware_volume", Refused(OWN_GUEST)),
    ("hypervisor.kernel_hash", Refused(NO_MEASURE)),
    ("hypervisor.image_hash", Refused(NO_MEASURE)),
    ("hypervisor.initrd_hash", Refused(NO_MEASURE)),
    ("hypervisor.firmware_hash", Refused(NO_MEASURE)),
    ("hypervisor.firmware_volume_hash", Refused(NO_MEASURE)),
    ("hypervisor.hypervisor_hash", Refused(NO_MEASURE)),
    ("hypervisor.jailer_hash", Refused(NO_MEASURE)),
    ("hypervisor.asset_hash_type", Refused(NO_MEASURE)),
    ("hypervisor.confidential_guest", Refused(NO_TEE)),
    ("hypervisor.sev_snp_guest", Refused(NO_TEE)),
    ("hypervisor.guest_hook_path", Refused("the guest has nothing but the agent, and runs no hooks")),
    ("hypervisor.cold_plug_vfio", Refused("rt passes no devices of the host through")),
    ("hypervisor.hot_plug_vfio", Refused("rt passes no devices of the host through")),
    ("agent.kernel_modules", Refused("the guest has the modules of its initramfs and no others")),
    ("runtime.disable_new_netns", Refused("what starts a machine stays in the namespaces that rt chose")),
    ("runtime.disable_guest_seccomp", Meaning::None("the guest always applies the bundle's seccomp profile")),
    ("runtime.sandbox_cgroup_only", Meaning::None("all processes of a sandbox are always in its cgroup")),
    ("runtime.enable_pprof", Meaning::None("rt is not written in Go")),
    ("runtime.experimental", Meaning::None("rt has no such switch")),
    ("agent.enable_tracing", Meaning::None("`rt run --trace` writes a timeline")),
    (
        "agent.container_pipe_size",
        Meaning::None("standard streams are vsock streams with buffers of fixed size"),
    ),
    ("hypervisor.entropy_source", Meaning::None("random numbers come from getrandom(2)")),
    ("hypervisor.machine_type", Meaning::None(OWN_MACHINE)),
    ("hypervisor.machine_accelerators", Meaning::None(OWN_MACHINE)),
    ("hypervisor.cpu_features", Meaning::None(OWN_MACHINE)),
    ("hypervisor.memory_slots", Meaning::None(OWN_MACHINE)),
    ("hypervisor.memory_offset", Meaning::None(OWN_MACHINE)),
    ("hypervisor.pcie_root_port", Meaning::None(OWN_MACHINE)),
    ("hypervisor.enable_iothreads", Meaning::None(OWN_MACHINE)),
    ("hypervisor.use_vsock", Meaning::None("the agent is always reached by vsock")),
    ("hypervisor.use_legacy_serial", Meaning::None(OWN_MACHINE)),
    ("hypervisor.shared_fs", Meaning::None("the share is always virtio-fs")),
    ("hypervisor.msize_9p", Meaning::None("the share is always virtio-fs")),
    ("hypervisor.virtio_fs_cache_size", Meaning::None("there is no DAX window")),
    ("hypervisor.disable_block_device_use", Meaning::None("root file systems are shared, not block devices")),
    ("hypervisor.block_device_driver", Meaning::None("root file systems are shared, not block devices")),
    ("hypervisor.disable_vhost_net", Meaning::None("the network device is rt's own")),
    ("hypervisor.enable_hugepages", Meaning::None("memory is taken page by page, as the guest touches it")),
    (
        "hypervisor.enable_mem_prealloc",
        Meaning::None("memory is taken page by page, as the guest touches it"),
    ),
    (
        "hypervisor.enable_virtio_mem",
        Meaning::None("a machine's memory grows as `hypervisor.grow_memory_mib` says"),
    ),
    ("hypervisor.enable_guest_swap", Meaning::None("the guest has no swap")),
];

/// The meaning of an annotation, by its name without [`PREFIX`].
pub fn meaning(name: &str) -> Option<Meaning> {
    ANNOTATIONS.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning)
}

/// What `runtime.enable_annotations` may name.
pub fn settable() -> impl Iterator<Item = &'static str> {
    ANNOTATIONS.iter().filter(|(_, meaning)| matches!(meaning, Sets(..))).map(|(name, _)| short(name))
}

/// The last part of a name, by which `runtime.enable_annotations` knows it.
pub fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Conversion {
    /// The text of rt's value, given what is in force.
    pub fn apply(self, text: &str, now: &str) -> Option<String> {
        let text = text.trim();
        match self {
            Same => Some(text.into()),
            Ceiling => text
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .map(|number| format!("{}", number.ceil())),
            Append => Some(format!("{now} {text}").trim().to_owned()),
            Seconds => Some(text.parse::<u64>().ok()?.checked_mul(1000)?.to_string()),
            CacheMode => Some(if text == "none" { "never" } else { text }.into()),
        }
    }
}

impl Config {
    /// This configuration, changed by those of a bundle's annotations that concern it.
    ///
    /// # Errors
    /// [`Error::Annotation`] for one that is not allowed; [`Error::Value`], [`Error::Contradiction`] as in a file.
    pub fn annotated(&self, annotations: Option<&HashMap<String, String>>) -> Result<Self, Error> {
        let mut ours: Vec<(&String, &String)> =
            annotations.into_iter().flatten().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        if ours.is_empty() {
            return Ok(self.clone());
        }
        ours.sort();
        let mut layers = Layers::on(self);
        for (name, value) in ours {
            match self.setting(name)? {
                None => {}
                Some((key, conversion)) => self.apply(&mut layers, name, value, key, conversion)?,
            }
        }
        layers.finish()
    }

    /// The setting that an annotation means, if it may.
    fn setting(&self, name: &str) -> Result<Option<(&'static str, Conversion)>, Error> {
        let refuse = |mend: String| Err(Error::Annotation { name: printable(name, 200), mend });
        let Some(known) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')) else {
            return refuse(": rt takes its configuration from the host's operator".into());
        };
        match meaning(known) {
            Some(Sets(key, conversion))
                if self.runtime.enable_annotations.iter().any(|name| name == short(known)) =>
            {
                Ok(Some((key, conversion)))
            }
            Some(Sets(..)) => refuse(format!(
                "; the host's operator may add {:?} to runtime.enable_annotations ({})",
                short(known),
                self.origin("runtime.enable_annotations")
            )),
            Some(Refused(why)) => refuse(format!(": {why}")),
            Some(Meaning::None(why)) => {
                tracing::warn!("the annotation {name} has no effect: {why}");
                Ok(None)
            }
            None => {
                let name = printable(name, 200);
                tracing::warn!("the annotation {name} has no effect: rt does not know it");
                Ok(None)
            }
        }
    }

    fn apply(
        &self,
        layers: &mut Layers,
        name: &str,
        text: &str,
        key: &'static str,
        conversion: Conversion,
    ) -> Result<(), Error> {
        let setting = settings::find(key).expect("annotations set what there is; a test says so");
        let now = &self.hypervisor.kernel_parameters;
        let taken = match conversion.apply(text, now) {
            Some(text) => setting.parse(&text),
            None => Err(setting.wanted()),
        };
        layers.set(setting, taken, &Value::from(text).to_string(), format!("annotation {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cache;

    fn annotated(config: &Config, annotations: &[(&str, &str)]) -> Result<Config, String> {
        let annotations =
            annotations.iter().map(|(name, value)| (format!("{PREFIX}.{name}"), (*value).into())).collect();
        config.annotated(Some(&annotations)).map_err(|error| error.to_string())
    }

    fn allowing(names: &[&str]) -> Config {
        let mut config = Config::default();
        config.runtime.enable_annotations = names.iter().map(|name| (*name).into()).collect();
        config
    }

    #[test]
    fn harmless_ones_are_understood() {
        let config = Config::default();
        assert_eq!(config.annotated(None).unwrap(), config);
        let changed = annotated(
            &config,
            &[
                ("hypervisor.default_vcpus", "2.5"),
                ("hypervisor.default_memory", "512"),
                ("hypervisor.virtio_fs_cache", "none"),
            ],
        )
        .unwrap();
        assert_eq!(
            (changed.hypervisor.vcpus, changed.hypervisor.memory_mib, changed.share.cache),
            (3, 512, Cache::Never)
        );
        assert_eq!(
            changed.origin("hypervisor.vcpus"),
            "annotation io.katacontainers.config.hypervisor.default_vcpus"
        );
    }

    #[test]
    fn others_need_the_operator() {
        let parameters = ("hypervisor.kernel_params", "mitigations=off");
        let error = annotated(&Config::default(), &[parameters]).unwrap_err();
        assert!(error.contains("not allowed here") && error.contains("add \"kernel_params\""), "{error}");
        let mut config = allowing(&["kernel_params"]);
        config.hypervisor.kernel_parameters = "quiet".into();
        let changed = annotated(&config, &[parameters]).unwrap();
        assert_eq!(changed.hypervisor.kernel_parameters, "quiet mitigations=off");
        assert!(annotated(&allowing(&[]), &[("hypervisor.default_vcpus", "1")]).is_err());
    }

    #[test]
    fn the_dangerous_are_refused_whatever_the_operator_says() {
        let config = allowing(&["path", "kernel", "kernel_hash"]);
        for name in ["hypervisor.path", "hypervisor.kernel", "hypervisor.kernel_hash"] {
            assert!(
                annotated(&config, &[(name, "/x")]).unwrap_err().contains("not allowed here: "),
                "{name}"
            );
        }
        let other = HashMap::from([("io.katacontainers.config_path".to_owned(), "/x".to_owned())]);
        assert!(config.annotated(Some(&other)).is_err());
    }

    #[test]
    fn what_means_nothing_changes_nothing() {
        let config = Config::default();
        for name in ["hypervisor.msize_9p", "runtime.enable_pprof", "no.such\nthing"] {
            assert_eq!(annotated(&config, &[(name, "1")]).unwrap(), config);
        }
        let other = HashMap::from([("org.opencontainers.image.title".to_owned(), "x".to_owned())]);
        assert_eq!(config.annotated(Some(&other)).unwrap(), config);
    }

    #[test]
    fn values_are_checked_against_the_operators_limits() {
        let mut config = allowing(&["default_vcpus", "default_memory", "kernel_params"]);
        for value in ["0", "-1", "1e9", "nan", "many", ""] {
            let error = annotated(&config, &[("hypervisor.default_vcpus", value)]).unwrap_err();
            assert!(
                error.starts_with("annotation io.katacontainers.config.hypervisor.default_vcpus: "),
                "{error}"
            );
        }
        assert!(annotated(&config, &[("hypervisor.kernel_params", "a\nb")]).is_err());
        config.hypervisor.max_memory_mib = 512;
        config.origins.insert("hypervisor.max_memory_mib".into(), "/etc/rt/config.toml:9".into());
        let error = annotated(&config, &[("hypervisor.default_memory", "1024")]).unwrap_err();
        assert!(error.contains("(annotation ") && error.contains("512 (/etc/rt/config.toml:9)"), "{error}");
    }

    #[test]
    fn every_annotation_sets_what_there_is_and_is_listed_once() {
        for (name, meaning) in ANNOTATIONS {
            assert_eq!(ANNOTATIONS.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
            if let Sets(key, _) = meaning {
                assert!(settings::find(key).is_some(), "{key}");
            }
        }
        for name in HARMLESS {
            assert!(
                ANNOTATIONS
                    .iter()
                    .any(|(known, meaning)| short(known) == name && matches!(meaning, Sets(..)))
            );
        }
    }
}
