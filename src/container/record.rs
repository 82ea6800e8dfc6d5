//! What is on disk of containers: a state directory each, `ROOT/ID`, with the record `state.json` in it.
//!
//! The directory appears under its ID with the record in it, by one rename, which succeeds for one caller only: that
//! is what reserves an ID. It is there before anything is acquired; the record is written again at each step, by
//! rename too, so that it is always whole. Whoever changes a container
//! holds the lock of its directory (flock(2) on the directory itself, so that there is no lock file to leave behind).

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use oci_spec::runtime::{Hooks, LinuxResources, Process};
use serde::{Deserialize, Serialize};

use super::block::Plugged;
use super::id::{InvalidId, validate};
use crate::bundle::Bundle;
use crate::hypervisor::VmRecord;
use crate::sandbox::network::Network;
use crate::sandbox::{Bounds, Size};
use crate::share::Used;
use crate::sys::pidfd::ProcessId;
use crate::sys::users;

/// Changes when an older rt could not read the record.
pub const VERSION: u32 = 1;
const FILE: &str = "state.json";
/// A record is some KiB; its annotations come from the bundle, which is at most 3 MiB.
const MAX_BYTES: u64 = 8 << 20;

/// Why a container's state cannot be used. Wording that callers search for is runc's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    #[error("container does not exist: {0}")]
    Missing(String),
    #[error("cannot {what} {path}")]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a state directory in {root} (run rt as root, or name another with --root)")]
    Denied {
        root: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the state record {path} is damaged ({reason}); `rt delete --force` removes what is left of the container"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the state record {path} is of version {version}, this rt knows {VERSION}; use the rt that made the container"
    )]
    Version { path: PathBuf, version: u32 },
}

/// Where a container is in its life, as the runtime-spec names it (and runc, with `paused`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What is on disk of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub version: u32,
    pub id: String,
    pub oci_version: String,
    /// As last written; [`Record::status`] tells what it is now.
    pub status: Status,
    /// A paused container's: what it is again when it is resumed.
    #[serde(default = "running")]
    pub resumes_as: Status,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    pub annotations: HashMap<String, String>,
    /// As config.json had them when the container was created, whatever it says later.
    pub hooks: Option<Hooks>,
    pub process: Process,
    /// The process that stands for the container on the host and whose death ends it. `None` until it runs.
    pub monitor: Option<ProcessId>,
    pub vm: Option<VmRecord>,
    pub fsd: Option<ProcessId>,
    /// Of the machine that it has started, as it is now.
    #[serde(default)]
    pub size: Option<Size>,
    /// Between which that can be changed.
    #[serde(default)]
    pub bounds: Option<Bounds>,
    /// The host's cgroups, to be removed.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// What of its network namespace the VM has.
    #[serde(default)]
    pub network: Network,
    /// The host's block devices that its machine has.
    #[serde(default)]
    pub disks: Vec<Plugged>,
    /// The container whose machine this one has joined: `vm` is that one's then, and not this container's to end.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// What it uses of the machine's share.
    #[serde(default)]
    pub share: Vec<Used>,
    /// The monitor is a process that stands for other containers, too.
    #[serde(default)]
    pub shared_monitor: bool,
    /// The container's limits, as last set; the host's cgroups have them plus an overhead.
    #[serde(default)]
    pub resources: LinuxResources,
}

impl Record {
    /// The record of a container that is about to be created.
    pub fn new(id: &str, bundle: &Bundle) -> Self {
        Self {
            version: VERSION,
            id: id.into(),
            oci_version: bundle.spec.version().clone(),
            status: Status::Creating,
            resumes_as: Status::Running,
            bundle: bundle.dir.clone(),
            rootfs: bundle.rootfs.clone(),
            created: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            annotations: bundle.spec.annotations().clone().unwrap_or_default(),
            hooks: bundle.spec.hooks().clone(),
            process: bundle.spec.process().clone().unwrap_or_default(),
            monitor: None,
            vm: None,
            fsd: None,
            size: None,
            bounds: None,
            cgroups: Vec::new(),
            network: Network::default(),
            disks: Vec::new(),
            sandbox: None,
            share: Vec::new(),
            shared_monitor: false,
            resources: bundle.resources().cloned().unwrap_or_default(),
        }
    }

    /// Memory of the virtual machine that is this container's; 0 when it has joined another's.
    pub fn machine_mib(&self) -> u32 {
        self.size.map_or(0, |size| size.memory_mib)
    }

    /// What the container is now: one whose monitor is gone has stopped, whatever was written last.
    pub fn status(&self) -> Status {
        match self.monitor {
            Some(monitor) if !monitor.is_alive() => Status::Stopped,
            _ => self.status,
        }
    }
}

/// The directory of all state directories.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A container's state directory, locked.
#[derive(Debug)]
pub struct State {
    id: String,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a container's state lies. The ID is one that has been locked, read or created, which looks at its form.
    pub fn path(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Reserves the record's ID and writes the record; the root is made if need be.
    ///
    /// # Errors
    /// [`Error::Exists`] when the ID is taken, [`Error::Denied`], [`Error::System`] otherwise.
    pub fn create(&self, record: &Record) -> Result<(), Error> {
        validate(&record.id)?;
        let failed = |path: &Path| {
            let (root, path) = (self.root.clone(), path.to_owned());
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => Error::Denied { root, source },
                _ => Error::System { what: "make the state directory", path, source },
            }
        };
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(&self.root).map_err(failed(&self.root))?;
        self.sweep();
        let draft = draft(&self.root);
        private.recursive(false).create(&draft).map_err(failed(&draft))?;
        let path = self.path(&record.id);
        let result = write(&draft, record).and_then(|()| {
            renameat2(AT_FDCWD, &draft, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE).map_err(|error| {
                match error {
                    Errno::EEXIST => Error::Exists(record.id.clone()),
                    other => failed(&path)(other.into()),
                }
            })
        });
        result.inspect_err(|_| drop(std::fs::remove_dir_all(&draft)))
    }

    /// Removes the drafts of threads that are gone, and of one that had this thread's number.
    pub fn sweep(&self) {
        let own = nix::unistd::gettid().as_raw();
        for (path, maker, _) in self.drafts().unwrap_or_default() {
            // A thread's number is found in /proc, too, if not listed there.
            if maker == own || !Path::new("/proc").join(maker.to_string()).exists() {
                // Another sweep may have been quicker.
                let _ = std::fs::remove_dir_all(path);
            }
        }
    }

    /// Changes the record of an existing container, under its lock, and gives it as it is then.
    ///
    /// # Errors
    /// [`Error::Missing`] when it was deleted; else as reading and writing.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Record)) -> Result<Record, Error> {
        let state = self.lock(id)?;
        let mut record = state.read()?;
        change(&mut record);
        state.write(&record)?;
        Ok(record)
    }

    /// Locks the state of an existing container, waiting for whoever holds it.
    ///
    /// # Errors
    /// [`Error::Id`]; [`Error::Missing`], also when it was deleted while waiting; [`Error::System`].
    pub fn lock(&self, id: &str) -> Result<State, Error> {
        validate(id)?;
        let path = self.path(id);
        let failed = |what| {
            let path = path.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => Error::Missing(id.into()),
                _ => Error::System { what, path, source },
            }
        };
        let mut dir = File::open(&path).map_err(failed("open the state directory"))?;
        let lock = loop {
            match Flock::lock(dir, FlockArg::LockExclusive) {
                Ok(lock) => break lock,
                Err((back, Errno::EINTR)) => dir = back,
                Err((_, error)) => return Err(failed("lock the state directory")(error.into())),
            }
        };
        let locked = lock.metadata().map_err(failed("look at the state directory"))?;
        let current = std::fs::metadata(&path).map_err(failed("look at the state directory"))?;
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if same(&locked, &current) {
            Ok(State { id: id.into(), path, _lock: lock })
        } else {
            Err(Error::Missing(id.into()))
        }
    }

    /// Reads a record without the lock: it is whole at any time.
    ///
    /// # Errors
    /// [`Error`]
    pub fn read(&self, id: &str) -> Result<Record, Error> {
        validate(id)?;
        read(id, &self.path(id))
    }

    /// The name of the user whose state directory it is, else `#` and the number, as runc has it.
    ///
    /// # Errors
    /// What stat(2) says.
    pub fn owner(&self, id: &str) -> io::Result<String> {
        let uid = std::fs::metadata(self.path(id))?.uid();
        Ok(users::name(uid).unwrap_or_else(|| format!("#{uid}")))
    }

    /// State directories that have not got their ID yet: path, the PID of the maker, age.
    ///
    /// # Errors
    /// [`Error::System`]; a root that does not exist holds none.
    pub fn drafts(&self) -> Result<Vec<(PathBuf, i32, Duration)>, Error> {
        let failed = |source| Error::System { what: "list", path: self.root.clone(), source };
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let draft = |entry: std::fs::DirEntry| {
            let pid = entry.file_name().to_str()?.strip_prefix('~')?.parse().ok()?;
            let made = entry.metadata().ok()?.modified().ok()?;
            Some((entry.path(), pid, made.elapsed().unwrap_or_default()))
        };
        Ok(entries.flatten().filter_map(draft).collect())
    }

    /// The IDs of all containers, sorted.
    ///
    /// # Errors
    /// [`Error::System`]; a root that does not exist holds none.
    pub fn ids(&self) -> Result<Vec<String>, Error> {
        let failed = |source| Error::System { what: "list", path: self.root.clone(), source };
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string())
                && kind.is_dir()
                && validate(&name).is_ok()
            {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

fn read(id: &str, dir: &Path) -> Result<Record, Error> {
    let path = dir.join(FILE);
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)) {
        // A directory without its record is no crash's doing: the two appear together.
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {
            Err(Error::Damaged { path, reason: "it is missing".into() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing(id.into())),
        Err(source) => Err(Error::System { what: "read the state record", path, source }),
        Ok(_) => parse(&path, &text),
    }
}

/// Records of earlier versions know no other.
fn running() -> Status {
    Status::Running
}

/// Where this thread keeps a directory that is not yet a container's, or no longer: '~' is in no ID. Swept when the thread is gone.
fn draft(root: &Path) -> PathBuf {
    root.join(format!("~{}", nix::unistd::gettid()))
}

fn write(dir: &Path, record: &Record) -> Result<(), Error> {
    let path = dir.join(FILE);
    let next = dir.join(".state.json");
    let text = serde_json::to_vec(record).expect("a record has only string keys");
    std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &path)).map_err(|source| Error::System {
        what: "write the state record",
        path,
        source,
    })
}

fn parse(path: &Path, text: &[u8]) -> Result<Record, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |error: serde_json::Error| Error::Damaged { path: path.into(), reason: error.to_string() };
    // The version first: of a later one the rest need not be understood.
    let Versioned { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version != VERSION {
        return Err(Error::Version { path: path.into(), version });
    }
    serde_json::from_slice(text).map_err(damaged)
}

impl State {
    /// # Errors
    /// [`Error`]
    pub fn read(&self) -> Result<Record, Error> {
        read(&self.id, &self.path)
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn write(&self, record: &Record) -> Result<(), Error> {
        write(&self.path, record)
    }

    /// Removes the directory; the ID is free again. It disappears at once, so that nobody sees a part of it.
    ///
    /// # Errors
    /// [`Error::System`]
    pub fn remove(self) -> Result<(), Error> {
        let draft = draft(self.path.parent().unwrap_or(&self.path));
        std::fs::rename(&self.path, &draft).and_then(|()| std::fs::remove_dir_all(&draft)).map_err(|source| {
            Error::System { what: "remove the state directory", path: self.path.clone(), source }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            version: VERSION,
            id: id.into(),
            oci_version: "1.0.2".into(),
            status: Status::Running,
            resumes_as: Status::Running,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: HashMap::new(),
            hooks: None,
            process: Process::default(),
            monitor: ProcessId::of(std::process::id() as i32),
            vm: None,
            fsd: None,
            size: None,
            bounds: None,
            cgroups: Vec::new(),
            network: Network::default(),
            disks: Vec::new(),
            sandbox: None,
            share: Vec::new(),
            shared_monitor: false,
            resources: LinuxResources::default(),
        }
    }

    #[test]
    fn an_id_is_taken_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("rt"));
        assert_eq!(store.ids().unwrap(), Vec::<String>::new());
        store.create(&record("a")).unwrap();
        assert_eq!(
            store.create(&record("a")).unwrap_err().to_string(),
            "container with given ID already exists: a"
        );
        assert_eq!(store.read("a").unwrap(), record("a"));
        assert_eq!(store.ids().unwrap(), ["a"]);
        store.lock("a").unwrap().remove().unwrap();
        assert_eq!(store.lock("a").unwrap_err().to_string(), "container does not exist: a");
        store.create(&record("a")).unwrap();
    }

    #[test]
    fn drafts_of_the_dead_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().into());
        // Above the kernel's highest number; one that lives; this thread's, of an earlier life.
        for pid in [1 << 23, 1, nix::unistd::gettid().as_raw()] {
            std::fs::create_dir(root.path().join(format!("~{pid}"))).unwrap();
        }
        store.create(&record("a")).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "~1"]);
    }

    #[test]
    fn a_damaged_or_later_record_is_told() {
        let error = parse(Path::new("/s"), b"{").unwrap_err().to_string();
        assert!(error.starts_with("the state record /s is damaged"), "{error}");
        let error = parse(Path::new("/s"), br#"{"version": 9, "new": 1}"#).unwrap_err().to_string();
        assert!(error.starts_with("the state record /s is of version 9"), "{error}");
    }

    #[test]
    fn a_container_without_its_monitor_has_stopped() {
        let mut record = record("a");
        assert_eq!(record.status(), Status::Running);
        record.monitor = record.monitor.map(|monitor| ProcessId { start_time: 1, ..monitor });
        assert_eq!(record.status(), Status::Stopped);
        record.monitor = None;
        assert_eq!(record.status(), Status::Running);
    }
}
