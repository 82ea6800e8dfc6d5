//! The one list of settings: what each is called, what it may be, and what it does.

use toml::Value;

use super::annotations;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// `section.key`
    pub key: &'static str,
    pub form: Form,
    /// Where it may be left open: the word for that, and what holds then.
    pub open: Option<(&'static str, &'static str)>,
    /// What it does; a sentence or two of the reference.
    pub text: &'static str,
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Flag,
    Number(i64, i64),
    Text,
    /// An absolute path.
    Path,
    Word(&'static [&'static str]),
    /// Annotations that set something, by the last part of their names.
    Annotations,
}

/// Of what the guest's kernel is told, an operator's share: it takes 2047 bytes in all.
const MAX_TEXT: usize = 1024;

/// All settings, section by section.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "hypervisor.kind",
        form: Form::Word(&["auto", "kvm", "qemu"]),
        open: Some(("auto", "the best that works on this host")),
        text: "What carries the virtual machine: rt's own VMM on KVM, or QEMU.",
    },
    Setting {
        key: "hypervisor.kernel",
        form: Form::Path,
        open: Some(("", "the one that came with rt")),
        text: "The guest's kernel, an uncompressed ELF file (vmlinux) with a PVH entry. Set it together with its initramfs.",
    },
    Setting {
        key: "hypervisor.initramfs",
        form: Form::Path,
        open: Some(("", "the one that came with rt")),
        text: "The initramfs that goes with the kernel; it holds rt's agent and the kernel's modules.",
    },
    Setting {
        key: "hypervisor.kernel_parameters",
        form: Form::Text,
        open: None,
        text: "Appended to the guest's kernel command line.",
    },
    Setting {
        key: "hypervisor.vcpus",
        form: Form::Number(1, 32),
        open: None,
        text: "Virtual CPUs. A container whose CPU limits allow more gets more, up to `hypervisor.max_vcpus`.",
    },
    Setting {
        key: "hypervisor.max_vcpus",
        form: Form::Number(1, 32),
        open: None,
        text: "The most virtual CPUs that any container gets.",
    },
    Setting {
        key: "hypervisor.grow_vcpus",
        form: Form::Number(1, 32),
        open: Some((
            "auto",
            "a pod whose CPU limits are not told in advance, and that software does not emulate, to the host's processors, at most 8; any other \
             machine does not grow",
        )),
        text: "To how many virtual CPUs a running machine can grow, by `rt update` and by containers that join its pod, within \
               `hypervisor.max_vcpus`. Each costs some memory and time at the start, used or not.",
    },
    Setting {
        key: "hypervisor.memory_mib",
        form: Form::Number(48, 65_536),
        open: None,
        text: "Memory, in MiB, of the virtual machine of a container without a memory limit.",
    },
    Setting {
        key: "hypervisor.max_memory_mib",
        form: Form::Number(48, 65_536),
        open: None,
        text: "The most memory, in MiB, that any virtual machine gets, whatever its container's limit.",
    },
    Setting {
        key: "hypervisor.grow_memory_mib",
        form: Form::Number(48, 65_536),
        open: Some((
            "auto",
            "a pod whose memory limit is not told in advance to the host's memory; any other machine does not grow",
        )),
        text: "To how much memory, in MiB, a running machine can grow, by `rt update` and by containers that join its pod, within \
               `hypervisor.max_memory_mib`. What it has grown by it gives back when limits shrink or containers leave.",
    },
    Setting {
        key: "hypervisor.memory_overhead_mib",
        form: Form::Number(48, 4096),
        open: None,
        text: "What a virtual machine gets beyond its container's memory limit, for kernel and agent, in MiB.",
    },
    Setting {
        key: "hypervisor.entropy",
        form: Form::Flag,
        open: None,
        text: "Gives the guest a virtio-rng device, which passes on the host's random numbers. Without it the guest has \
               64 bytes of them from its start, and what its processor makes.",
    },
    Setting {
        key: "hypervisor.page_reporting",
        form: Form::Flag,
        open: None,
        text: "Gives memory that the guest has freed back to the host, some seconds later (free page reporting). What the guest then uses \
               again it has to get from the host again.",
    },
    Setting {
        key: "hypervisor.console",
        form: Form::Flag,
        open: None,
        text: "The guest's whole console, for debugging, instead of its last warnings only. It is logged when the container \
               ends, at the level debug. Each character costs time.",
    },
    Setting {
        key: "hypervisor.debug_console",
        form: Form::Flag,
        open: None,
        text: "Allows `rt debug ID`, a shell of root's in the guest itself. Looked at when that is called: sandboxes that run need not \
               be started again.",
    },
    Setting {
        key: "hypervisor.debug_shell",
        form: Form::Path,
        open: Some(("", "a static busybox in /bin, /usr/bin, /usr/local/bin or /usr/lib/busybox")),
        text: "The static executable that `rt debug` lends the guest, which has no programs of its own; it is called as `sh`.",
    },
    Setting {
        key: "hypervisor.qemu",
        form: Form::Path,
        open: Some(("", "`qemu-system-x86_64` in PATH, /usr/bin, /usr/local/bin or /usr/libexec")),
        text: "The QEMU binary, 7.2 or newer.",
    },
    Setting {
        key: "agent.boot_timeout_ms",
        form: Form::Number(100, 3_600_000),
        open: None,
        text: "How long a guest may take to boot and greet, in milliseconds; four times that where software emulates it.",
    },
    Setting {
        key: "agent.timeout_ms",
        form: Form::Number(100, 3_600_000),
        open: None,
        text: "How long the agent may take to answer a call, in milliseconds; for making and starting a container four times \
               that where software emulates it. containerd's shim ends a machine that has not ended a killed container in twice this time.",
    },
    Setting {
        key: "agent.log_level",
        form: Form::Word(&["warning", "debug"]),
        open: None,
        text: "What the agent writes to the guest's console; `debug` shows the whole of it, as `hypervisor.console` does.",
    },
    Setting {
        key: "share.cache",
        form: Form::Word(&["always", "auto", "never"]),
        open: None,
        text: "What the guest keeps of the host's files. `always`: contents also when a file is opened again, checked for changes \
               once a second; `auto`: contents while a file is open; `never`: nothing, each access asks the host.",
    },
    Setting {
        key: "share.dax",
        form: Form::Flag,
        open: None,
        text: "A window through which the guest maps the host's page cache. This build has none: `true` is an error.",
    },
    Setting {
        key: "cgroup.memory_overhead_mib",
        form: Form::Number(0, 65_536),
        open: None,
        text: "What a sandbox may use on the host beyond its machine's memory, in MiB, where `linux.cgroupsPath` names a group.",
    },
    Setting {
        key: "cgroup.cpu_overhead_percent",
        form: Form::Number(0, 10_000),
        open: None,
        text: "What a sandbox may use beyond its container's quota, in percent of one processor.",
    },
    Setting {
        key: "cgroup.systemd",
        form: Form::Flag,
        open: None,
        text: "`linux.cgroupsPath` has systemd's form, SLICE:PREFIX:NAME; as the flag `--systemd-cgroup`.",
    },
    Setting {
        key: "jail.open_files",
        form: Form::Number(1024, 1_000_000),
        open: None,
        text: "How many files the file server may have open, as far as the host allows: one for each of the share's files that the guest \
               knows of. Beyond that the guest gets `too many open files`.",
    },
    Setting {
        key: "jail.file_handles",
        form: Form::Flag,
        open: None,
        text: "On a host whose limit of open files is below 200,000 the file server remembers files by handle, for which it needs \
               CAP_DAC_READ_SEARCH. `false`: it does without both, and the host's limit is the guest's.",
    },
    Setting {
        key: "network.model",
        form: Form::Word(&["tcfilter", "macvtap", "none"]),
        open: None,
        text: "How the interfaces of a container's network namespace get into its virtual machine. `tcfilter`: by TAP devices and traffic \
               control's redirection; `macvtap`: by a macvtap device on top of each, which takes the kernel fewer steps, but cannot lie on macvlan or \
               ipvlan, and stays in the namespace until `delete` when a virtual machine is killed; `none`: not at all, there is a \
               loopback only.",
    },
    Setting {
        key: "network.host",
        form: Form::Word(&["refuse", "empty"]),
        open: None,
        text: "What becomes of a container that asks for the host's network, which a virtual machine cannot have. `refuse`: an \
               error; `empty`: it gets a network namespace with nothing in it.",
    },
    Setting {
        key: "network.vhost",
        form: Form::Flag,
        open: None,
        text: "Has the kernel's vhost-net move the frames, where the host has /dev/vhost-net.",
    },
    Setting {
        key: "network.offloads",
        form: Form::Flag,
        open: None,
        text: "Guest and TAP device leave checksums and the cutting of long frames to each other and to the host's hardware. `false` where \
               something in between cannot take such frames.",
    },
    Setting {
        key: "snapshot.enabled",
        form: Form::Flag,
        open: None,
        text: "Keeps of the first machine of a kind (kernel, size, parameters) what it is when it has booted, in memory below \
               /run/rt-templates, and starts the others from there. rt's own VMM only.",
    },
    Setting {
        key: "snapshot.keep",
        form: Form::Number(1, 64),
        open: None,
        text: "So many kinds of machine are kept, those used last; each takes about 24 MiB of memory.",
    },
    Setting {
        key: "runtime.root",
        form: Form::Path,
        open: Some(("", "/run/rt, or $XDG_RUNTIME_DIR/rt for other users than root")),
        text: "Directory of the containers' state; as the flag `--root`.",
    },
    Setting {
        key: "runtime.log",
        form: Form::Path,
        open: Some(("", "errors go to standard error")),
        text: "The log is appended to this file; as the flag `--log`.",
    },
    Setting {
        key: "runtime.log_format",
        form: Form::Word(&["text", "json"]),
        open: None,
        text: "Form of the log; as the flag `--log-format`.",
    },
    Setting {
        key: "runtime.debug",
        form: Form::Flag,
        open: None,
        text: "Logs debugging information too; as the flag `--debug`.",
    },
    Setting {
        key: "runtime.enable_annotations",
        form: Form::Annotations,
        open: None,
        text: "The annotations that bundles may use, by the last part of their names; see annotations.md. An empty list \
               allows none.",
    },
];

/// The setting of that name.
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Names of sections, in their order.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = SETTINGS.iter().map(Setting::section).collect();
    sections.dedup();
    sections
}

/// For a section that is none: the one that was probably meant.
pub fn nearest_section(name: &str) -> Option<&'static str> {
    const ALIKE: f64 = 0.85;
    let likeness = |section: &&str| strsim::jaro_winkler(name, section);
    let best = sections().into_iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (!name.contains('.') && likeness(&best) > ALIKE).then_some(best)
}

/// For a key that is none: the one that was probably meant.
pub fn nearest(key: &str) -> &'static str {
    let leaf = |key: &'static str| key.split_once('.').map_or(key, |(_, leaf)| leaf);
    let wanted = key.rsplit('.').next().unwrap_or(key);
    // In the wrong section, or without one.
    if let Some(setting) = SETTINGS.iter().find(|setting| leaf(setting.key) == wanted) {
        return setting.key;
    }
    let likeness = |setting: &&Setting| {
        let whole = strsim::jaro_winkler(key, setting.key);
        let last = strsim::jaro_winkler(wanted, leaf(setting.key));
        whole + last
    };
    let best = SETTINGS.iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    best.expect("there are settings").key
}

impl Setting {
    fn section(&self) -> &'static str {
        self.key.split_once('.').expect("keys have a section").0
    }

    /// Its variable in the environment.
    pub fn variable(&self) -> String {
        format!("RT_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// What its value has to be, in words.
    pub fn wanted(&self) -> String {
        match self.form {
            Form::Flag => "true or false".into(),
            Form::Number(least, most) => format!("a whole number from {least} to {most}"),
            Form::Text => format!("a string of at most {MAX_TEXT} bytes without control characters"),
            Form::Path => "an absolute path".into(),
            Form::Word(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                quoted.join(" or ")
            }
            Form::Annotations => {
                let names: Vec<String> = annotations::settable().map(|name| format!("\"{name}\"")).collect();
                format!("a list of {}", names.join(", "))
            }
        }
    }

    /// Takes a value if it is what it has to be; `None` leaves the setting open.
    ///
    /// # Errors
    /// What it has to be.
    pub fn take(&self, value: &Value) -> Result<Option<Value>, String> {
        if self.open.is_some_and(|(word, _)| value.as_str() == Some(word)) {
            return Ok(None);
        }
        let fits = match (self.form, value) {
            (Form::Flag, Value::Boolean(_)) => true,
            (Form::Number(least, most), Value::Integer(number)) => (least..=most).contains(number),
            (Form::Text, Value::String(text)) => text.len() <= MAX_TEXT && !text.contains(char::is_control),
            (Form::Path, Value::String(path)) => path.starts_with('/') && !path.contains('\0'),
            (Form::Word(words), Value::String(word)) => words.contains(&word.as_str()),
            (Form::Annotations, Value::Array(names)) => names.iter().all(|name| {
                name.as_str().is_some_and(|name| annotations::settable().any(|known| known == name))
            }),
            _ => false,
        };
        if fits { Ok(Some(value.clone())) } else { Err(self.wanted()) }
    }

    /// The value that a text stands for, in the environment or an annotation. Names stand between commas.
    ///
    /// # Errors
    /// What it has to be.
    pub fn parse(&self, text: &str) -> Result<Option<Value>, String> {
        if self.open.is_some_and(|(word, _)| text == word) {
            return Ok(None);
        }
        let value = match self.form {
            Form::Flag => match text {
                "true" | "1" => Value::Boolean(true),
                "false" | "0" => Value::Boolean(false),
                _ => return Err(self.wanted()),
            },
            Form::Number(..) => Value::Integer(text.trim().parse().map_err(|_| self.wanted())?),
            Form::Annotations => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Value::Array(names.map(Value::from).collect())
            }
            Form::Text | Form::Path | Form::Word(_) => Value::from(text),
        };
        self.take(&value)
    }

    /// The value as an operator would write it.
    pub fn shown(&self, value: Option<&Value>) -> Value {
        let open = || Value::from(self.open.map_or("", |(word, _)| word));
        value.cloned().unwrap_or_else(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_what_was_meant() {
        for (wrong, right) in [
            ("hypervisor.memory", "hypervisor.memory_mib"),
            ("hypervisor.vcpu", "hypervisor.vcpus"),
            ("hypervisor.kernel_params", "hypervisor.kernel_parameters"),
            ("hypervisor.initrd", "hypervisor.initramfs"),
            ("agent.timeout", "agent.timeout_ms"),
            ("runtime.vcpus", "hypervisor.vcpus"),
            ("debug", "runtime.debug"),
            ("cgroups.systemd", "cgroup.systemd"),
        ] {
            assert_eq!(nearest(wrong), right, "{wrong}");
        }
    }

    #[test]
    fn values_are_what_they_have_to_be() {
        let take = |key: &str, value: Value| find(key).unwrap().take(&value);
        assert_eq!(take("hypervisor.vcpus", 4.into()), Ok(Some(4.into())));
        assert_eq!(take("hypervisor.vcpus", 33.into()), Err("a whole number from 1 to 32".into()));
        assert_eq!(take("hypervisor.vcpus", "4".into()), Err("a whole number from 1 to 32".into()));
        assert_eq!(take("hypervisor.kernel", "vmlinux".into()), Err("an absolute path".into()));
        assert_eq!(take("hypervisor.kernel", "".into()), Ok(None));
        assert_eq!(take("hypervisor.kind", "auto".into()), Ok(None));
        assert_eq!(take("hypervisor.kind", "xen".into()), Err("\"auto\" or \"kvm\" or \"qemu\"".into()));
        assert!(take("hypervisor.kernel_parameters", "a\nb".into()).is_err());
        let parse = |key: &str, text: &str| find(key).unwrap().parse(text);
        assert_eq!(parse("hypervisor.console", "1"), Ok(Some(true.into())));
        assert_eq!(parse("hypervisor.grow_vcpus", "auto"), Ok(None));
        assert_eq!(parse("hypervisor.grow_vcpus", "4"), Ok(Some(4.into())));
        assert!(parse("hypervisor.console", "yes").is_err());
        assert!(parse("hypervisor.vcpus", "four").is_err());
        assert_eq!(parse("runtime.enable_annotations", ""), Ok(Some(Value::Array(Vec::new()))));
        assert!(parse("runtime.enable_annotations", "default_memory, kernel_params").is_ok());
        // A slip of the pen, and one that no operator can allow.
        for name in ["default_vcpu", "kernel"] {
            let wanted = parse("runtime.enable_annotations", name).unwrap_err();
            assert!(wanted.starts_with("a list of \"default_vcpus\", "), "{wanted}");
        }
    }

    #[test]
    fn variables_are_in_capitals() {
        assert_eq!(find("hypervisor.memory_mib").unwrap().variable(), "RT_HYPERVISOR_MEMORY_MIB");
    }
}
