//! Network namespaces: which one a container is to have, and working in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Error;

/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// The network namespace that a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One that is there.
    Existing(PathBuf),
    /// A new one, which hooks and callers fill.
    New,
    /// None of its own: the one that rt runs in.
    Host,
}

impl Wanted {
    /// What the bundle says. A path that leads to rt's own namespace means the host's, too.
    pub fn of(spec: &Spec) -> Self {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let network =
            namespaces.into_iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
        match network.map(|namespace| namespace.path().as_ref()) {
            None => Self::Host,
            Some(Some(path)) if !path.as_os_str().is_empty() => match is_own(path) {
                true => Self::Host,
                false => Self::Existing(path.clone()),
            },
            Some(_) => Self::New,
        }
    }
}

fn is_own(path: &Path) -> bool {
    is_same(path, Path::new(OWN)) == Some(true)
}

/// Whether two paths lead to one namespace; `None` where one of them leads nowhere.
pub fn is_same(one: &Path, other: &Path) -> Option<bool> {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    Some(identity(one)? == identity(other)?)
}

/// A network namespace, kept alive by this.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    name: PathBuf,
}

impl Namespace {
    /// # Errors
    /// [`Error::Namespace`] when it is not there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Namespace { path: path.into(), source })?;
        Ok(Self { file, name: path.into() })
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// [`Error::Namespace`]
    pub fn own() -> Result<Self, Error> {
        Self::open(Path::new(OWN))
    }

    /// That of this process's first thread, where others find it by the PID; `None` when the calling thread lives in the same.
    ///
    /// # Errors
    /// [`Error::Namespace`]
    pub fn of_process() -> Result<Option<Self>, Error> {
        let path = Path::new("/proc/self/ns/net");
        if is_own(path) { Ok(None) } else { Self::open(path).map(Some) }
    }

    /// A new, empty one, which the calling thread does not enter.
    ///
    /// # Errors
    /// [`Error::NewNamespace`]
    pub fn new() -> Result<Self, Error> {
        let maker = thread::Builder::new().name("network".into());
        let maker = maker.spawn(|| make().and_then(|()| Self::own())).map_err(Error::NewNamespace)?;
        maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The path it was opened by.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Where other processes find it for as long as this one holds it.
    pub fn held(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// # Errors
    /// [`Error::Namespace`]
    pub fn try_clone(&self) -> Result<Self, Error> {
        let failed = |source| Error::Namespace { path: self.name.clone(), source };
        Ok(Self { file: self.file.try_clone().map_err(failed)?, name: self.name.clone() })
    }

    /// Moves the calling thread, and with it those that it starts, into it.
    ///
    /// # Errors
    /// [`Error::Namespace`] when it is no network namespace, or may not be entered.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let source = match errno {
                nix::errno::Errno::EINVAL => io::Error::other("it is not a network namespace (any more)"),
                other => other.into(),
            };
            Error::Namespace { path: self.name.clone(), source }
        })
    }

    /// Does something in it, on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Namespace`], or what `work` says.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let worker = thread::Builder::new().name("network".into());
            let worker = worker.spawn_scoped(scope, || self.enter().and_then(|()| work()));
            let worker = worker.map_err(|source| Error::Namespace { path: self.name.clone(), source })?;
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling thread, and with it those that it starts, into a new, empty network namespace.
///
/// # Errors
/// [`Error::NewNamespace`]
pub fn make() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::NewNamespace(errno.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(linux: serde_json::Value) -> Wanted {
        let spec = json!({"ociVersion": "1.0.2", "linux": linux});
        Wanted::of(&serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn the_bundle_says_which() {
        assert_eq!(wanted(json!({})), Wanted::Host);
        assert_eq!(wanted(json!({"namespaces": [{"type": "pid"}]})), Wanted::Host);
        assert_eq!(wanted(json!({"namespaces": [{"type": "network"}]})), Wanted::New);
        assert_eq!(wanted(json!({"namespaces": [{"type": "network", "path": ""}]})), Wanted::New);
        let path = json!({"namespaces": [{"type": "network", "path": "/run/netns/net-none"}]});
        assert_eq!(wanted(path), Wanted::Existing("/run/netns/net-none".into()));
        let own = json!({"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}]});
        assert_eq!(wanted(own), Wanted::Host);
    }

    #[test]
    fn one_that_vanished_is_named() {
        let error = Namespace::open(Path::new("/run/netns/net-none")).expect_err("it is not there");
        assert_eq!(error.to_string(), "cannot use the network namespace /run/netns/net-none");
        // What is left of a namespace in a file system that has lost its mount.
        let file = tempfile::NamedTempFile::new().expect("a file");
        let namespace = Namespace::open(file.path()).expect("a file");
        let error = namespace.within(|| Ok(())).expect_err("no namespace");
        assert!(std::error::Error::source(&error).expect("a cause").to_string().contains("not a network"));
    }
}
