//! An OCI bundle: reads and validates config.json ([`Bundle::load`]), and rewrites its spec into what the guest is to
//! see ([`guest_spec`]). Pure but for reading files; nothing is acquired here.
//!
//! The bundle is suspect: it comes from images and tools outside rt. What cannot be honoured is an error that names
//! the field.

mod guest_spec;
mod id_map;
mod role;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxResources, LinuxSeccompAction, LinuxSyscall, Process, Spec};
use serde::Deserialize;
use serde_json::Value;

pub use guest_spec::{GuestNamespaces, GuestPaths, guest_spec, is_bind};
pub use id_map::id_map;
pub use role::{Error as RoleError, Role};

use crate::sys::text::printable;

/// A validated bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Absolute, without symbolic links.
    pub dir: PathBuf,
    /// Absolute; a directory.
    pub rootfs: PathBuf,
    pub spec: Spec,
}

/// What is wrong with a bundle. Wording that callers search for is runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the bundle {path}")]
    Dir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("JSON specification file config.json not found in {0}")]
    NoConfig(PathBuf),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{path} is not a valid runtime specification")]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path}: ociVersion {version:?} is not supported; rt knows 1.x")]
    Version { path: PathBuf, version: String },
    #[error("{path}: {field} {problem}")]
    Field { path: PathBuf, field: String, problem: String },
    #[error("rootfs ({path}) does not exist")]
    NoRootfs { path: PathBuf },
    #[error("rootfs ({path}) is not a directory")]
    RootfsKind { path: PathBuf },
    /// Wording as for the hooks that run on the host.
    #[error("error running createContainer hook #{index}: {path}")]
    Hook {
        index: usize,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("error mounting {source_path:?} to rootfs at {destination:?}: stat {source_path}")]
    BindSource {
        source_path: String,
        destination: String,
        #[source]
        source: std::io::Error,
    },
}

/// config.json larger than this is refused: the spec has to fit into one message to the agent.
const MAX_CONFIG_BYTES: u64 = 3 << 20;

impl Bundle {
    /// Reads and validates the bundle in `dir`.
    ///
    /// # Errors
    /// [`Error`], with the path and the field.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let dir = dir.canonicalize().map_err(|source| Error::Dir { path: dir.into(), source })?;
        let path = dir.join("config.json");
        let spec = read_spec(&dir, &path)?;
        validate(&path, &spec)?;
        let root = spec.root().as_ref().expect("validate requires root");
        let rootfs = dir.join(root.path());
        let rootfs = rootfs.canonicalize().map_err(|_| Error::NoRootfs { path: rootfs.clone() })?;
        if !rootfs.is_dir() {
            return Err(Error::RootfsKind { path: rootfs });
        }
        Ok(Self { dir, rootfs, spec })
    }

    /// The host's cgroup for the container.
    pub fn cgroups_path(&self) -> Option<&Path> {
        self.spec.linux().as_ref()?.cgroups_path().as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// Which virtual machine the container belongs into.
    ///
    /// # Errors
    /// [`RoleError`]
    pub fn role(&self) -> Result<Role, RoleError> {
        self.spec.annotations().as_ref().map_or(Ok(Role::Alone), Role::of)
    }

    /// What all containers of this sandbox may use together, as far as its annotations tell.
    pub fn sandbox_resources(&self) -> Option<LinuxResources> {
        role::sandbox_resources(self.spec.annotations().as_ref()?)
    }

    /// The limits of the container.
    pub fn resources(&self) -> Option<&LinuxResources> {
        self.spec.linux().as_ref()?.resources().as_ref()
    }

    /// Whether the container's process has a terminal.
    pub fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
    }
}

fn read_spec(dir: &Path, path: &Path) -> Result<Spec, Error> {
    let read = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoConfig(dir.into()),
        _ => Error::Read { path: path.into(), source },
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::TooLarge { path: path.into(), limit: MAX_CONFIG_BYTES });
    }
    let text = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&text).or_else(|source| {
        let spec = serde_json::from_slice(&text).ok().and_then(without_unknown_capabilities);
        spec.ok_or(Error::Json { path: path.into(), source })
    })
}

/// The spec without the capabilities that nobody here knows: a warning, as the runtime-spec has it.
fn without_unknown_capabilities(mut spec: Value) -> Option<Spec> {
    for set in spec.pointer_mut("/process/capabilities")?.as_object_mut()?.values_mut() {
        set.as_array_mut()?.retain(|capability| {
            let is_known = Capability::deserialize(capability).is_ok();
            if !is_known {
                tracing::warn!("ignoring unknown capability {}", printable(&capability.to_string(), 64));
            }
            is_known
        });
    }
    serde_json::from_value(spec).ok()
}

fn validate(path: &Path, spec: &Spec) -> Result<(), Error> {
    let field = |field: &str, problem: &str| Error::Field {
        path: path.into(),
        field: field.into(),
        problem: problem.into(),
    };
    let version = spec.version();
    let parts: Vec<&str> = version.splitn(3, '.').collect();
    if parts.len() != 3 || parts[0] != "1" || parts[1].parse::<u32>().is_err() {
        return Err(Error::Version { path: path.into(), version: version.clone() });
    }
    let root = spec.root().as_ref().ok_or_else(|| field("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(field("root.path", "is empty"));
    }
    let process = spec.process().as_ref().ok_or_else(|| field("process", "is missing"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(field("process.args", "must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(field("process.cwd", "must be an absolute path"));
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mount.destination().as_os_str().is_empty() {
            return Err(field(&format!("mounts[{index}].destination"), "is empty"));
        }
        if is_bind(mount) && mount.source().is_none() {
            return Err(field(&format!("mounts[{index}].source"), "is missing for a bind mount"));
        }
        id_map(mount, spec).map_err(|problem| field(&format!("mounts[{index}]"), problem))?;
    }
    if let Some((name, problem)) = process_problem(process) {
        return Err(field(&format!("process.{name}"), &problem));
    }
    if let Some(problem) = notification(spec) {
        return Err(field("linux.seccomp", problem));
    }
    Ok(())
}

/// A field of a process, in config.json or executed later, that none can have, and what is wrong with it. Wording is runc's.
pub fn process_problem(process: &Process) -> Option<(&'static str, String)> {
    let user = process.user();
    let ids = [user.uid(), user.gid()].into_iter().chain(user.additional_gids().iter().flatten().copied());
    // The kernel takes the largest number as "leave it as it is", which is root's.
    if let Some(id) = ids.into_iter().find(|&id| i32::try_from(id).is_err()) {
        return Some(("user", format!("has {id}: uids and gids must be in range 0-{}", i32::MAX)));
    }
    let is_pair = |variable: &&String| variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    let odd = process.env().iter().flatten().find(|variable| !is_pair(variable))?;
    let what = if odd.contains('=') { "name cannot be empty" } else { "missing '='" };
    Some(("env", format!("has {:?}: invalid environment variable: {what}", printable(odd, 64))))
}

/// Why a seccomp profile that asks a process of the host cannot be had. Wording that callers search for is runc's.
fn notification(spec: &Spec) -> Option<&'static str> {
    let profile = spec.linux().as_ref()?.seccomp().as_ref()?;
    let mut rules = profile.syscalls().iter().flatten();
    let asks = |rule: &&LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    let rule = rules.find(asks);
    if rule.is_none() && profile.default_action() != LinuxSeccompAction::ScmpActNotify {
        return None;
    }
    Some(match rule.is_some_and(|rule| rule.names().iter().any(|name| name == "write")) {
        true => "asks for what cannot be: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        false => {
            "asks for SCMP_ACT_NOTIFY: failed to connect with seccomp agent, since the notifications of the guest's kernel \
             cannot go to a process of the host; use SCMP_ACT_ERRNO"
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn bundle(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Result<Bundle, Error>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let mut config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        });
        change(&mut config);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let loaded = Bundle::load(dir.path());
        (dir, loaded)
    }

    fn problem(change: impl FnOnce(&mut Value)) -> String {
        bundle(change).1.unwrap_err().to_string()
    }

    #[test]
    fn a_plain_bundle_loads() {
        let (dir, loaded) = bundle(|_| ());
        assert_eq!(loaded.unwrap().rootfs, dir.path().canonicalize().unwrap().join("rootfs"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(problem(|c| c["ociVersion"] = json!("2.0.0")).contains("\"2.0.0\" is not supported"));
        assert!(problem(|c| c["ociVersion"] = json!("one")).contains("is not supported"));
        assert!(problem(|c| c["process"]["args"] = json!([])).contains("process.args must not be empty"));
        assert!(
            problem(|c| c["process"]["cwd"] = json!("a")).contains("process.cwd must be an absolute path")
        );
        assert!(problem(|c| c["root"]["path"] = json!("gone")).ends_with("/gone) does not exist"));
        assert!(problem(|c| c["root"]["path"] = json!("config.json")).contains("is not a directory"));
        assert!(problem(|c| c["root"] = Value::Null).contains("root is missing"));
        let range = "uids and gids must be in range 0-2147483647";
        assert!(problem(|c| c["process"]["user"]["uid"] = json!(u32::MAX)).contains(range));
        assert!(
            problem(|c| c["process"]["user"]["additionalGids"] = json!([1, 1_u64 << 31])).contains(range)
        );
        let env = problem(|c| c["process"]["env"] = json!(["A=b", "C"]));
        assert!(env.ends_with("process.env has \"C\": invalid environment variable: missing '='"), "{env}");
        let notify = |name: &str| json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [name], "action": "SCMP_ACT_NOTIFY"}]}});
        assert!(problem(|c| c["linux"] = notify("write")).contains("cannot be used for the write syscall"));
        assert!(problem(|c| c["linux"] = notify("mkdir")).contains("failed to connect with seccomp agent"));
        let mount = json!([{"destination": "/m", "options": ["bind"]}]);
        assert!(problem(|c| c["mounts"] = mount).contains("mounts[0].source is missing"));
    }

    #[test]
    fn an_unknown_capability_is_passed_over() {
        let sets = json!({"bounding": ["CAP_FLY", "CAP_KILL"], "effective": []});
        let (_dir, loaded) = bundle(|c| c["process"]["capabilities"] = sets);
        let spec = loaded.unwrap().spec;
        let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(capabilities.bounding().iter().flatten().collect::<Vec<_>>(), [&Capability::Kill]);
        assert!(problem(|c| c["process"]["capabilities"] = json!("all")).contains("is not a valid"));
    }

    #[test]
    fn a_missing_config_has_runcs_words() {
        let dir = tempfile::tempdir().unwrap();
        let error = Bundle::load(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("JSON specification file config.json not found"), "{error}");
    }
}
