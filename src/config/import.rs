//! Converts Kata Containers' configuration.toml: what has the same meaning becomes a setting, all else a comment that says why not.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use toml::{Table, Value};

use super::annotations::{self, Conversion, Meaning};
use super::layers::Layers;
use super::{Config, Error, SETTINGS, settings};

const OWN_GUEST: &str = "Kata's kernel and image hold Kata's agent; rt brings its own guest";

/// What a key of Kata's file becomes.
enum Fate {
    Setting(&'static str, Value),
    Comment(String),
}

/// The text of a configuration that does what Kata's `text` does, as far as rt can.
///
/// # Errors
/// [`Error::Syntax`] for what is no TOML; `path` is for messages.
pub fn import(path: &std::path::Path, text: &str) -> Result<String, Error> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let line = before.matches('\n').count() + 1;
        Error::Syntax { path: path.into(), line, column, reason: error.message().replace('\n', " ") }
    })?;
    let mut taken: Vec<(&'static str, Value)> = Vec::new();
    let mut comments = Vec::new();
    for (place, key, value) in leaves(&table) {
        if key == "enable_annotations" {
            let left: Vec<String> =
                names(&value).filter(|(_, ours)| ours.is_empty()).map(|(name, _)| name).collect();
            if !left.is_empty() {
                comments.push(format!(
                    "# {place}.{key}: {}  -- no annotation that changes anything in rt",
                    left.join(", ")
                ));
            }
        }
        let fate = fate(&place, &key, &value).and_then(|(key, value)| fits(key, value, &taken));
        match fate {
            Fate::Setting(key, value) => taken.push((key, value)),
            Fate::Comment(why) => comments.push(format!("# {place}.{key} = {}  -- {why}", one_line(&value))),
        }
    }
    Ok(write(&taken, &comments))
}

impl Fate {
    fn and_then(self, next: impl FnOnce((&'static str, Value)) -> Self) -> Self {
        match self {
            Self::Setting(key, value) => next((key, value)),
            comment @ Self::Comment(_) => comment,
        }
    }
}

fn comment(why: &str) -> Fate {
    Fate::Comment(why.into())
}

/// Keys with the table that they are in: `hypervisor.qemu`, `agent.kata`, `runtime`.
fn leaves(table: &Table) -> Vec<(String, String, Value)> {
    fn walk(place: &str, table: &Table, leaves: &mut Vec<(String, String, Value)>) {
        for (key, value) in table {
            match value {
                Value::Table(inner) if place.is_empty() => walk(key, inner, leaves),
                Value::Table(inner) => walk(&format!("{place}.{key}"), inner, leaves),
                value => leaves.push((place.to_owned(), key.clone(), value.clone())),
            }
        }
    }
    let mut leaves_found = Vec::new();
    walk("", table, &mut leaves_found);
    leaves_found
}

fn fate(place: &str, key: &str, value: &Value) -> Fate {
    let section = place.split('.').next().unwrap_or(place);
    match (section, key) {
        ("hypervisor", "path") if place == "hypervisor.qemu" => {
            Fate::Setting("hypervisor.qemu", value.clone())
        }
        ("hypervisor", "path") => comment("rt has a VMM of its own"),
        ("hypervisor", "kernel" | "initrd" | "image" | "firmware" | "firmware_volume") => comment(OWN_GUEST),
        ("hypervisor", "kernel_params") => parameters(value),
        ("hypervisor", "default_vcpus") => match value.as_integer() {
            Some(0) => comment("1 is the default"),
            Some(..0) => comment("means as many as the host has; a container's limits say how many rt gives"),
            _ => number("hypervisor.vcpus", value, Conversion::Ceiling),
        },
        ("hypervisor", "default_maxvcpus") => match value.as_integer() {
            Some(0) => comment("means as many as can be, which is the default"),
            Some(33..) => comment("32 is the most, and the default"),
            _ => number("hypervisor.max_vcpus", value, Conversion::Same),
        },
        ("hypervisor", "default_maxmemory") if value.as_integer() == Some(0) => {
            comment("means as much as can be, which is the default")
        }
        ("hypervisor", "entropy_source") => comment("random numbers come from getrandom(2)"),
        ("hypervisor", "enable_annotations") => {
            let ours: BTreeSet<&str> = names(value).flat_map(|(_, ours)| ours).collect();
            Fate::Setting(
                "runtime.enable_annotations",
                ours.into_iter().map(Value::from).collect::<Vec<_>>().into(),
            )
        }
        ("hypervisor", _) => by_annotation(&format!("hypervisor.{key}"), value),
        ("agent", "enable_debug") => match value.as_bool() {
            Some(true) => Fate::Setting("agent.log_level", "debug".into()),
            _ => comment("is the default"),
        },
        ("agent", "debug_console_enabled") => match value.as_bool() {
            Some(true) => Fate::Setting("hypervisor.debug_console", true.into()),
            _ => comment("is the default"),
        },
        ("agent", _) => by_annotation(&format!("agent.{key}"), value),
        ("runtime", "enable_debug") => Fate::Setting("runtime.debug", value.clone()),
        ("runtime", _) => by_annotation(&format!("runtime.{key}"), value),
        _ => comment("rt has nothing of the kind"),
    }
}

/// What is an annotation, too, has the same meaning there.
fn by_annotation(name: &str, value: &Value) -> Fate {
    match annotations::meaning(name) {
        Some(Meaning::Sets(key, conversion)) => number(key, value, conversion),
        Some(Meaning::Refused(why) | Meaning::None(why)) => comment(why),
        None => comment("rt has nothing of the kind"),
    }
}

fn number(key: &'static str, value: &Value, conversion: Conversion) -> Fate {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let setting = settings::find(key).expect("a setting; a test says so");
    match conversion.apply(&text, "").map(|text| setting.parse(&text)) {
        Some(Ok(Some(value))) => Fate::Setting(key, value),
        Some(Ok(None)) => comment("is the default"),
        Some(Err(_)) | None => Fate::Comment(format!("{key} has to be {}", setting.wanted())),
    }
}

/// Those for Kata's agent and its systemd mean nothing to rt's guest.
fn parameters(value: &Value) -> Fate {
    let words = value.as_str().unwrap_or_default().split_whitespace();
    let ours: Vec<&str> =
        words.filter(|word| !word.starts_with("agent.") && !word.starts_with("systemd.")).collect();
    match ours.is_empty() {
        true => comment("has nothing for rt's guest, which runs neither Kata's agent nor systemd"),
        false => Fate::Setting("hypervisor.kernel_parameters", ours.join(" ").into()),
    }
}

/// The names of annotations, as written, each with those of rt's that it means. Kata takes patterns; of these `.*` at the end
/// is understood.
fn names(value: &Value) -> impl Iterator<Item = (String, Vec<&'static str>)> {
    let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.map(|word| {
        let means = |name: &&str| match word.strip_suffix(".*") {
            Some(start) => name.starts_with(start),
            None => *name == word,
        };
        (one_line(&word.into()), annotations::settable().filter(means).collect())
    })
}

/// A value that rt takes, the first of its setting, and no contradiction to those before.
fn fits(key: &'static str, value: Value, taken: &[(&'static str, Value)]) -> Fate {
    let setting = settings::find(key).expect("a setting; a test says so");
    let value = match setting.take(&value) {
        Ok(Some(value)) => value,
        Ok(None) => return comment("is the default"),
        Err(wanted) => return Fate::Comment(format!("{key} has to be {wanted}")),
    };
    if taken.iter().any(|(other, _)| *other == key) {
        return Fate::Comment(format!("{key} was set above"));
    }
    let mut layers = Layers::on(&Config::default());
    for (key, value) in taken.iter().chain([&(key, value.clone())]) {
        let setting = settings::find(key).expect("a setting");
        if layers.set(setting, setting.take(value), "", String::new()).is_err() {
            return Fate::Comment(format!("{key} cannot be set"));
        }
    }
    match layers.finish() {
        Ok(_) => Fate::Setting(key, value),
        Err(error) => Fate::Comment(error.to_string().replace(" ()", "")),
    }
}

fn one_line(value: &Value) -> String {
    value.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn write(taken: &[(&'static str, Value)], comments: &[String]) -> String {
    let mut text = "# Made by `rt config import` from a configuration of Kata Containers.\n".to_owned();
    for section in settings::sections() {
        let of_section = |key: &str| key.split_once('.').is_some_and(|(own, _)| own == section);
        let lines: Vec<String> = SETTINGS
            .iter()
            .filter(|setting| of_section(setting.key))
            .filter_map(|setting| taken.iter().find(|(key, _)| *key == setting.key))
            .map(|(key, value)| format!("{} = {value}\n", annotations::short(key)))
            .collect();
        if !lines.is_empty() {
            let _ = write!(text, "\n[{section}]\n{}", lines.concat());
        }
    }
    if !comments.is_empty() {
        let _ = write!(text, "\n# Not taken over:\n{}\n", comments.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const KATA: &str = r#"
[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
kernel = "/usr/share/kata-containers/vmlinux.container"
image = "/usr/share/kata-containers/kata-containers.img"
machine_type = "q35"
enable_annotations = ["enable_iommu", "virtio_fs_extra_args", "kernel_params", "default_vcpus"]
kernel_params = "systemd.unit=kata-containers.target agent.log=debug mitigations=off"
default_vcpus = 2
default_maxvcpus = 0
default_memory = 2048
default_maxmemory = 0
shared_fs = "virtio-fs"
virtio_fs_cache = "auto"
virtio_fs_extra_args = ["--thread-pool-size=1"]
entropy_source = "/dev/urandom"
enable_debug = true
block_device_driver = "virtio-scsi"

[hypervisor.qemu.something]
deep = "a\nb"

[agent.kata]
enable_debug = true
dial_timeout = 45
kernel_modules = []
debug_console_enabled = true

[runtime]
enable_debug = false
internetworking_model = "tcfilter"
disable_guest_seccomp = true
sandbox_cgroup_only = false
"#;

    fn settings_of(text: &str) -> Config {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let mut layers = Layers::new().unwrap();
        layers.file(&path).unwrap();
        layers.finish().unwrap()
    }

    #[test]
    fn what_has_a_meaning_is_taken_over_and_the_rest_explained() {
        let text = import(Path::new("k.toml"), KATA).unwrap();
        let config = settings_of(&text);
        let hypervisor = &config.hypervisor;
        assert_eq!((hypervisor.vcpus, hypervisor.memory_mib, hypervisor.console), (2, 2048, true));
        assert!(hypervisor.debug_console);
        assert_eq!(hypervisor.kernel_parameters, "mitigations=off");
        assert_eq!(hypervisor.qemu.as_deref(), Some(Path::new("/usr/bin/qemu-system-x86_64")));
        assert_eq!(config.agent.boot_timeout_ms, 45_000);
        assert_eq!(config.share.cache, crate::config::Cache::Auto);
        assert_eq!(config.runtime.enable_annotations, ["default_vcpus", "kernel_params"]);
        let left = "# hypervisor.qemu.enable_annotations: \"enable_iommu\", \"virtio_fs_extra_args\"  -- ";
        assert!(text.contains(left), "{text}");
        for line in KATA.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
            let told = text.contains(&format!(".{line} = "));
            let set = [
                "path",
                "kernel_params",
                "default_vcpus",
                "default_memory",
                "virtio_fs_cache",
                "enable_debug",
                "enable_annotations",
                "dial_timeout",
                "debug_console_enabled",
            ];
            assert!(told || set.contains(&line), "{line} is gone without a word in {text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_a_comment() {
        for kata in [
            "[hypervisor.qemu]\ndefault_vcpus = 64\n",
            "[hypervisor.qemu]\ndefault_memory = \"much\"\n",
            "[hypervisor.qemu]\ndefault_vcpus = 4\ndefault_maxvcpus = 2\n",
            "[hypervisor.qemu]\ndefault_vcpus = 1\n[hypervisor.clh]\ndefault_vcpus = 2\n",
            "[hypervisor.clh]\npath = \"/usr/bin/cloud-hypervisor\"\n",
            "[agent.kata]\ndial_timeout = 99999999999999999\n",
            "stray = 1\n",
            "",
        ] {
            let text = import(Path::new("k.toml"), kata).unwrap();
            settings_of(&text);
            assert_eq!(text.contains("Not taken over"), !kata.is_empty(), "{text}");
        }
        let text = import(
            Path::new("k.toml"),
            "[hypervisor.qemu]\nenable_annotations = ['default_.*', 'default_vcpus']\n",
        );
        let names = ["default_max_vcpus", "default_maxmemory", "default_memory", "default_vcpus"];
        assert_eq!(settings_of(&text.unwrap()).runtime.enable_annotations, names);
        let error = import(Path::new("k.toml"), "[a]\nb = = c").unwrap_err().to_string();
        assert!(error.starts_with("k.toml:2:5: "), "{error}");
    }
}
