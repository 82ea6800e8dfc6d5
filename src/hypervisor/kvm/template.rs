//! Templates: what a guest is up to its agent's first request, kept for the next sandboxes of the same kind, which start from
//! there instead of booting.
//!
//! The first sandbox of a kind leaves it behind, before anything of a bundle has reached the guest. Its file (see `snapshot`)
//! appears under its name whole, by link(2); until then it has no name, and ends with the process that makes it. Whatever makes a
//! machine differ is in the name: the shape, the command line, kernel, initramfs, rt and KVM's device as files, and the host's boot. Those
//! last five ([`Origin`]) are at its end once more, for whoever tells which templates are of no use any more.
//!
//! The directory is in memory and the caller's alone: what lies there runs as the kernel of guests. It holds so many templates
//! as are configured, those used last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{AtFlags, Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::working_set::Observer;
use super::{TemplateUse, probe};
use crate::config;
use crate::hypervisor::VmSpec;
use crate::sys::fd;

/// A larger machine boots: its kernel's tables alone, a 64th of its memory, take longer to copy than to fill.
const MAX_MEMORY_MIB: u32 = 4096;

/// So many bytes at the end of a template are its origin, as JSON, filled up with spaces.
const ORIGIN_BYTES: usize = 16 << 10;

/// What a VMM is to do with the file it is given.
#[derive(Debug)]
pub enum Template {
    /// Start from it.
    Start(Found),
    /// Make it, when the guest is up.
    Make(Draft),
}

/// A template that is there.
#[derive(Debug)]
pub struct Found {
    pub file: File,
    path: PathBuf,
}

/// A template that is to be made.
#[derive(Debug)]
pub struct Draft {
    pub file: File,
    directory: PathBuf,
    name: String,
    origin: Origin,
    memory_bytes: u64,
    keep: usize,
    /// One at a time: the others boot meanwhile.
    _lock: Flock<File>,
}

impl Template {
    /// For a machine like `spec`. None where another process is making one, or `settings` or the host want none.
    pub fn find(spec: &VmSpec, settings: &config::Snapshot) -> Option<Self> {
        // Whoever wants to see the console wants to see the boot.
        if !settings.enabled || spec.console || spec.memory_mib > MAX_MEMORY_MIB {
            return None;
        }
        let found = || -> io::Result<Option<Self>> {
            let directory = make_directory()?;
            let origin = Origin::of(spec)?;
            let name = origin.name(spec)?;
            let path = directory.join(&name);
            match File::open(&path) {
                Ok(file) if Origin::read(&file).ok().as_ref() == Some(&origin) => {
                    let now = SystemTime::now();
                    file.set_modified(now)?;
                    return Ok(Some(Self::Start(Found { file, path })));
                }
                // Damaged.
                Ok(_) => remove(&path)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let lock = Flock::lock(File::open(&directory)?, FlockArg::LockExclusiveNonblock);
            let Ok(lock) = lock else { return Ok(None) };
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o400)
                .open(&directory)?;
            let (memory_bytes, keep) = (u64::from(spec.memory_mib) << 20, settings.keep.into());
            Ok(Some(Self::Make(Draft { file, directory, name, origin, memory_bytes, keep, _lock: lock })))
        };
        found().unwrap_or_else(|error| {
            tracing::debug!("the guest boots: templates cannot be used: {error}");
            None
        })
    }

    pub fn to_do(&self) -> TemplateUse {
        match self {
            Self::Start(_) => TemplateUse::Start,
            Self::Make(_) => TemplateUse::Make,
        }
    }

    pub fn file(&self) -> &File {
        match self {
            Self::Start(found) => &found.file,
            Self::Make(draft) => &draft.file,
        }
    }

    /// The guest is up: waits for the template until `deadline`, or forgets one that the VMM found not to fit. `vmm` leads to the VMM.
    /// The machine that made one is observed from then on.
    pub fn finish(self, vmm: &UnixStream, deadline: Instant) -> Option<Observer> {
        match self {
            Self::Start(found) => {
                if let Ok(()) = vmm.set_nonblocking(true)
                    && let Ok((Answer::Not(reason), _)) = Answer::receive(vmm)
                {
                    tracing::debug!("the guest booted: its template does not fit: {reason}");
                    let _ = fs::remove_file(&found.path);
                }
                None
            }
            Self::Make(draft) => draft.finish(vmm, deadline).unwrap_or_else(|error| {
                tracing::debug!("no template was made: {error}");
                None
            }),
        }
    }
}

impl Draft {
    fn finish(self, vmm: &UnixStream, deadline: Instant) -> io::Result<Option<Observer>> {
        let left = deadline.saturating_duration_since(Instant::now());
        vmm.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let (address, pagemap) = match Answer::receive(vmm)? {
            (Answer::Made { memory }, pagemap) => (memory, pagemap),
            (Answer::Not(reason), _) => return Err(io::Error::other(reason)),
        };
        self.origin.write(&self.file)?;
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let cwd = nix::fcntl::AT_FDCWD;
        nix::unistd::linkat(
            cwd,
            file.as_str(),
            cwd,
            &self.directory.join(&self.name),
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        self.evict()?;
        let Self { file, memory_bytes, .. } = self;
        pagemap.map(|pagemap| Observer::start(pagemap, address, file, memory_bytes)).transpose()
    }

    /// Removes those that were not used for the longest time.
    fn evict(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
        all.sort();
        let excess = all.len().saturating_sub(self.keep);
        all.into_iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// What the VMM says of its template, in one message.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is whole. Where the VMM has guest memory; its pagemap may come beside.
    Made { memory: u64 },
    /// Why there is none, or why it does not fit.
    Not(String),
}

impl Answer {
    pub fn send(&self, parent: &UnixStream, pagemap: Option<&File>) -> io::Result<()> {
        let descriptors: Vec<_> = pagemap.iter().map(|pagemap| pagemap.as_fd()).collect();
        fd::send_several(parent.as_fd(), &serde_json::to_vec(self)?, &descriptors)
    }

    fn receive(vmm: &UnixStream) -> io::Result<(Self, Option<File>)> {
        let mut text = [0; 4096];
        let (length, descriptors) = fd::receive_several(vmm.as_fd(), &mut text)?;
        Ok((serde_json::from_slice(&text[..length])?, descriptors.into_iter().next().map(File::from)))
    }
}

/// What a template was made of, beside the shape of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    /// Kernel, initramfs and rt, and KVM's device, which is another one when its module has been loaded anew.
    files: Vec<(PathBuf, Identity)>,
    /// The host's.
    boot: String,
}

/// Device, inode, size and time of the last change of a file: another content has another one.
type Identity = [u64; 5];

impl Origin {
    fn of(spec: &VmSpec) -> io::Result<Self> {
        let itself = Path::new("/proc/self/exe");
        let files = [
            (spec.kernel.clone(), identity(&spec.kernel)?),
            (spec.initramfs.clone(), identity(&spec.initramfs)?),
            (fs::read_link(itself)?, identity(itself)?),
            (probe::DEVICE.into(), identity(Path::new(probe::DEVICE))?),
        ];
        Ok(Self { files: files.into(), boot: boot()? })
    }

    /// Of the template of a machine like `spec`.
    fn name(&self, spec: &VmSpec) -> io::Result<String> {
        let kind = VmSpec { id: String::new(), state_dir: PathBuf::new(), ..spec.clone() };
        let hash = Sha256::digest(serde_json::to_vec(&(kind, self))?);
        Ok(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self)?;
        if bytes.len() > ORIGIN_BYTES {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        bytes.resize(ORIGIN_BYTES, b' ');
        file.write_all_at(&bytes, file.metadata()?.len())
    }

    fn read(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let start = length.checked_sub(ORIGIN_BYTES as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut bytes = vec![0; ORIGIN_BYTES];
        file.read_exact_at(&mut bytes, start)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Why no machine starts from such a template any more, if so.
    fn is_past(&self) -> io::Result<Option<String>> {
        if boot()? != self.boot {
            return Ok(Some("made before the host was started".into()));
        }
        for (path, then) in &self.files {
            let fate = match identity(path) {
                Ok(now) if now == *then => continue,
                Ok(_) => "has been changed since",
                Err(error) if error.kind() == io::ErrorKind::NotFound => "is gone",
                Err(error) => return Err(error),
            };
            return Ok(Some(format!("made of {}, which {fate}", path.display())));
        }
        Ok(None)
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let file = fs::metadata(path)?;
    Ok([file.dev(), file.ino(), file.size(), file.ctime() as u64, file.ctime_nsec() as u64])
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().into())
}

/// Whether a guest has run on this host's KVM since that was loaded: it has left a template.
pub fn is_any_of_use() -> bool {
    let of_use = || -> io::Result<bool> {
        let directory = directory()?;
        check(&directory)?;
        let is_of_use = |path: PathBuf| {
            let origin = File::open(path).and_then(|file| Origin::read(&file));
            origin.is_ok_and(|origin| matches!(origin.is_past(), Ok(None)))
        };
        Ok(fs::read_dir(&directory)?.flatten().any(|entry| is_of_use(entry.path())))
    };
    of_use().unwrap_or(false)
}

/// Templates that no machine starts from any more, each with the reason.
///
/// # Errors
/// Their directory cannot be listed, or others than this user can write there.
pub fn stale() -> io::Result<Vec<(PathBuf, String)>> {
    match directory() {
        Ok(directory) if directory.exists() => {
            check(&directory)?;
            stale_in(&directory)
        }
        _ => Ok(Vec::new()),
    }
}

fn stale_in(directory: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // What cannot be looked at is nobody's to judge.
        let reason = match File::open(&path) {
            Ok(file) => {
                Origin::read(&file).map_or(Some("damaged".into()), |of| of.is_past().unwrap_or_default())
            }
            Err(_) => None,
        };
        found.extend(reason.map(|reason| (path, reason)));
    }
    Ok(found)
}

/// Removes a template. Machines that started from it keep what they share of it.
///
/// # Errors
/// What stands in the way.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where templates lie.
fn directory() -> io::Result<PathBuf> {
    let is_root = nix::unistd::geteuid().is_root();
    let parent = if is_root { Some("/run".into()) } else { std::env::var_os("XDG_RUNTIME_DIR") };
    Ok(Path::new(&parent.ok_or(io::ErrorKind::NotFound)?).join("rt-templates"))
}

/// That directory, made if need be.
fn make_directory() -> io::Result<PathBuf> {
    let directory = directory()?;
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    check(&directory)?;
    Ok(directory)
}

/// Nobody else may write where guests' kernels come from.
fn check(directory: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(directory)?;
    let user = nix::unistd::geteuid().as_raw();
    match metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} is not this user's alone", directory.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template of nothing but its end.
    fn put(directory: &Path, name: &str, origin: &Origin) -> PathBuf {
        let path = directory.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(4096).unwrap();
        origin.write(&file).unwrap();
        path
    }

    #[test]
    fn those_made_of_what_is_no_more_are_stale() {
        let (files, templates) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |name: &str, boot: String| {
            let path = files.path().join(name);
            fs::write(&path, name).unwrap();
            let identity = identity(&path).unwrap();
            put(templates.path(), name, &Origin { files: vec![(path, identity)], boot })
        };
        let (kept, old) = (of("kept", boot().unwrap()), of("old", "another".into()));
        let (changed, gone) = (of("changed", boot().unwrap()), of("gone", boot().unwrap()));
        let cut = of("cut", boot().unwrap());
        fs::write(files.path().join("changed"), "to something else").unwrap();
        fs::remove_file(files.path().join("gone")).unwrap();
        File::options().write(true).open(&cut).unwrap().set_len(4096 + 100).unwrap();
        let mut found = stale_in(templates.path()).unwrap();
        found.sort();
        let made_of =
            |name: &str, fate| format!("made of {}, which {fate}", files.path().join(name).display());
        assert_eq!(
            found,
            [
                (changed, made_of("changed", "has been changed since")),
                (cut, "damaged".into()),
                (gone, made_of("gone", "is gone")),
                (old, "made before the host was started".into()),
            ]
        );
        found.iter().for_each(|(path, _)| remove(path).unwrap());
        assert_eq!(stale_in(templates.path()).unwrap(), []);
        assert!(kept.exists());
    }
}
