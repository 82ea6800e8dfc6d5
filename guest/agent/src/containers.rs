//! One container as the server knows it, from the call that makes it to the one that deletes it: its first process, those
//! that were executed in it, and what they all have in common.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxPersonalityDomain, Spec};

use crate::notify::Notify;
use crate::process::Process;
use crate::report::Started;
use crate::runner::{SPEC_FILE, bundle_dir};
use crate::seccomp::{self, Filter};
use crate::{cgroup, kmsg, spec};

/// How long the exit code of a process waits for somebody to ask for it.
const MEMORY: Duration = Duration::from_secs(60);
/// Most processes executed in one container at a time.
const MAX_EXECS: usize = 4096;

/// A container.
pub struct Container {
    pub id: String,
    /// Its first process.
    pub process: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
    common: OnceLock<Result<Common, String>>,
    /// Held while the container's cgroup is frozen or thawed.
    pub freezer: Mutex<()>,
    /// Until it is started, where that has to be waited for.
    pub started: Mutex<Option<Started>>,
    pub notify: Mutex<Option<Notify>>,
}

/// What every process that is executed in the container gets from it.
pub struct Common {
    pub filter: Option<Filter>,
    pub personality: Option<u32>,
    /// Namespaces that are not the guest's own: CLONE_NEW*.
    pub namespaces: i32,
    spec: Spec,
}

impl Common {
    /// The ID, as the guest outside of the container sees it, of one of the container's users.
    pub fn outside_user(&self, uid: u32) -> u32 {
        let mappings = self.spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_deref());
        match self.namespaces & libc::CLONE_NEWUSER {
            0 => uid,
            _ => spec::outside_id(uid, mappings.unwrap_or_default()),
        }
    }
}

impl Container {
    pub fn new(id: String, sequence: u64) -> Self {
        Self {
            id,
            process: Arc::new(Process::new(sequence)),
            execs: Mutex::default(),
            common: OnceLock::new(),
            freezer: Mutex::default(),
            started: Mutex::default(),
            notify: Mutex::default(),
        }
    }

    /// Looked up at the first call, when its first process must exist.
    ///
    /// # Errors
    /// For the user.
    pub fn common(&self) -> Result<&Common, String> {
        self.common.get_or_init(|| self.look_up()).as_ref().map_err(Clone::clone)
    }

    fn look_up(&self) -> Result<Common, String> {
        let path = bundle_dir(&self.id).join(SPEC_FILE);
        let bytes = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let spec = spec::parse(&bytes)?;
        let linux = spec.linux().as_ref();
        let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(seccomp::translate).transpose()?;
        let personality = linux.and_then(|linux| linux.personality().as_ref()).map(|personality| {
            match personality.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 8,
            }
        });
        let namespaces = namespaces(self.process.creation()?.0);
        Ok(Common { filter, personality, namespaces, spec })
    }

    /// Nobody stands for it any more on the host.
    pub fn abandoned(&self) {
        // An ID may be in use again, but this container's process cannot run again.
        if self.process.is_running()
            && let Err(error) = cgroup::kill(&self.id)
        {
            kmsg::error!("cannot kill {}, which nobody stands for any more: {error}", self.id);
        }
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        // No code that holds it can panic half-way.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process of that ID; the empty one is the first process's.
    pub fn find(&self, exec_id: &str) -> Option<Arc<Process>> {
        if exec_id.is_empty() { Some(self.process.clone()) } else { self.execs().get(exec_id).cloned() }
    }

    /// Makes room for a process that is to be executed.
    ///
    /// # Errors
    /// The ID is in use or unusable.
    pub fn add(&self, exec_id: &str, sequence: u64) -> Result<Arc<Process>, String> {
        let mut execs = self.execs();
        execs.retain(|_, process| !process.is_forgotten(MEMORY));
        if exec_id.is_empty() || exec_id.len() > 255 {
            return Err(format!("{exec_id:?} is not a usable exec ID"));
        }
        if execs.contains_key(exec_id) {
            return Err(format!("exec ID {exec_id} is already in use"));
        }
        if execs.len() >= MAX_EXECS {
            return Err(format!("{MAX_EXECS} processes are being executed in container {} already", self.id));
        }
        let process = Arc::new(Process::new(sequence));
        execs.insert(exec_id.to_owned(), process.clone());
        Ok(process)
    }

    /// True when nobody is going to ask how a process that was executed in it has ended: there is none, or the container ended long ago.
    pub fn is_forgotten(&self) -> bool {
        self.execs().is_empty() || self.process.is_forgotten(MEMORY)
    }

    /// Forgets an executed process.
    pub fn forget(&self, exec_id: &str) {
        self.execs().remove(exec_id);
    }
}

/// Which namespaces of a process differ from those of this one.
fn namespaces(pid: i32) -> i32 {
    const KINDS: [(&str, i32); 7] = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("net", libc::CLONE_NEWNET),
    ];
    let identity = |process: &str, kind: &str| {
        fs::metadata(Path::new("/proc").join(process).join("ns").join(kind)).ok().map(|file| file.ino())
    };
    let differs = |kind: &str| match (identity(&pid.to_string(), kind), identity("self", kind)) {
        (Some(theirs), Some(ours)) => theirs != ours,
        _ => false,
    };
    KINDS.iter().filter(|(kind, _)| differs(kind)).fold(0, |all, (_, flag)| all | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_ids_are_unique_until_forgotten() {
        let container = Container::new("c".into(), 1);
        assert!(container.add("", 2).is_err());
        assert!(container.add("a", 2).is_ok());
        assert!(container.add("a", 3).is_err());
        assert!(container.find("a").is_some_and(|process| process.sequence == 2));
        assert!(container.find("").is_some_and(|process| process.sequence == 1));
        container.forget("a");
        assert!(container.find("a").is_none());
        assert!(container.add("a", 4).is_ok());
    }

    #[test]
    fn own_namespaces_do_not_differ() {
        assert_eq!(namespaces(std::process::id() as i32), 0);
    }
}
