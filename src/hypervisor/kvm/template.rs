//! Templates: what a guest is up to its agent's first request, kept for the next sandboxes of the same kind, which start from
//! there instead of booting.
//!
//! The first sandbox of a kind leaves it behind, before anything of a bundle has reached the guest. Its file (see `snapshot`)
//! appears under its name whole, by link(2); until then it has no name, and ends with the process that makes it. Whatever makes a
//! machine differ is in the name: the shape, the command line, kernel, initramfs and rt as files, and the host's boot.
//!
//! The directory is in memory and the caller's alone: what lies there runs as the kernel of guests. It holds so many templates
//! as are configured, those used last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{AtFlags, Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::TemplateUse;
use crate::config;
use crate::hypervisor::VmSpec;

/// A larger machine boots: its kernel's tables alone, a 64th of its memory, take longer to copy than to fill.
const MAX_MEMORY_MIB: u32 = 4096;

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
            let directory = directory()?;
            let name = name(spec)?;
            let path = directory.join(&name);
            match File::open(&path) {
                Ok(file) => {
                    let now = SystemTime::now();
                    file.set_modified(now)?;
                    return Ok(Some(Self::Start(Found { file, path })));
                }
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
            let keep = settings.keep.into();
            Ok(Some(Self::Make(Draft { file, directory, name, keep, _lock: lock })))
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
    pub fn finish(self, vmm: UnixStream, deadline: Instant) {
        match self {
            Self::Start(found) => {
                if let Ok(()) = vmm.set_nonblocking(true)
                    && let Ok(reason) = answer(&vmm)
                {
                    tracing::debug!("the guest booted: its template does not fit: {reason}");
                    let _ = fs::remove_file(&found.path);
                }
            }
            Self::Make(draft) => {
                if let Err(error) = draft.finish(vmm, deadline) {
                    tracing::debug!("no template was made: {error}");
                }
            }
        }
    }
}

impl Draft {
    fn finish(self, vmm: UnixStream, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        vmm.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let reason = answer(&vmm)?;
        if !reason.is_empty() {
            return Err(io::Error::other(reason));
        }
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let cwd = nix::fcntl::AT_FDCWD;
        nix::unistd::linkat(
            cwd,
            file.as_str(),
            cwd,
            &self.directory.join(&self.name),
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        self.evict()
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

/// A line of the VMM.
fn answer(vmm: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(io::Read::take(vmm, 4096)).read_line(&mut line)?;
    line.strip_suffix('\n').map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where templates lie, made if need be.
///
/// # Errors
/// Also when others than this user can write there.
pub fn directory() -> io::Result<PathBuf> {
    let user = nix::unistd::geteuid();
    let parent = if user.is_root() { Some("/run".into()) } else { std::env::var_os("XDG_RUNTIME_DIR") };
    let directory = Path::new(&parent.ok_or(io::ErrorKind::NotFound)?).join("rt-templates");
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&directory)?;
    let private = metadata.is_dir() && metadata.uid() == user.as_raw() && metadata.mode() & 0o077 == 0;
    if private {
        Ok(directory)
    } else {
        Err(io::Error::other(format!("{} is not this user's alone", directory.display())))
    }
}

fn name(spec: &VmSpec) -> io::Result<String> {
    let kind = VmSpec { id: String::new(), state_dir: PathBuf::new(), ..spec.clone() };
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&kind)?);
    for path in [&spec.kernel, &spec.initramfs, Path::new("/proc/self/exe")] {
        let file = fs::metadata(path)?;
        let identity = [file.dev(), file.ino(), file.size(), file.ctime() as u64, file.ctime_nsec() as u64];
        identity.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    hash.update(fs::read("/proc/sys/kernel/random/boot_id")?);
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}
