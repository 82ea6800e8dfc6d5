//! Where a packed guest lies once it is unpacked: `CACHE/DIGEST/NAME`, made once and then used by every sandbox.
//!
//! A directory appears under its digest with all its files whole and on disk, by one rename; until then it is a draft,
//! `~PID`. Drafts are made under the lock of the cache (flock(2) on its directory), so that whoever holds the lock knows every draft
//! for one whose maker was killed, and removes it. Nobody but the owner may write here: what lies here is run
//! as the kernel of every guest, and is not read again to be checked.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::packed::{Packed, PackedFile};
use crate::sys::progress::Progress;

/// Why there is no unpacked guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the guest inside {binary} is damaged ({reason}); copy rt here once more")]
    Damaged { binary: PathBuf, reason: String },
    #[error("cannot {what} {path}, which is to hold rt's guest kernel")]
    System {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}, which is to hold rt's guest kernel, can be written to by others; {mend}")]
    Unsafe { path: PathBuf, mend: &'static str },
    #[error("there is no place for rt's guest kernel: neither XDG_CACHE_HOME nor HOME is set")]
    NoHome,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, path: path.into(), source }
}

/// The cache of this user: root's below /var/lib, another's below what the XDG specification names.
///
/// # Errors
/// [`Error::NoHome`]
pub fn directory() -> Result<PathBuf, Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/rt/guest".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.ok_or(Error::NoHome)?.join("rt/guest"))
}

/// The directory with the unpacked files of `packed`, unpacked now if need be. `binary` is for messages.
///
/// # Errors
/// [`Error`]; at most a draft is left then, for the next call to remove.
pub fn unpacked(packed: &Packed, cache: &Path, binary: &Path) -> Result<PathBuf, Error> {
    let path = cache.join(&packed.digest);
    if is_whole(packed, &path)? {
        return Ok(path);
    }
    make(cache)?;
    check(cache)?;
    let _lock = lock(cache)?;
    // Another process may have been quicker.
    if is_whole(packed, &path)? {
        return Ok(path);
    }
    sweep(cache)?;
    // What is there under the digest is not whole: no rt made it so.
    remove(&path)?;
    let draft = cache.join(format!("~{}", std::process::id()));
    let result = unpack(packed, &draft, binary).and_then(|()| {
        fs::rename(&draft, &path).map_err(failed("make", &path))?;
        sync(cache)
    });
    result.inspect_err(|_| drop(fs::remove_dir_all(&draft)))?;
    Ok(path)
}

/// What of this cache another rt unpacked, or did not come to the end of: all but `packed`, and no draft that is being made.
///
/// # Errors
/// [`Error`]; a cache that does not exist holds nothing.
pub fn stale(packed: &Packed, cache: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list", cache))?,
    };
    let _lock = lock(cache)?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| !path.ends_with(&packed.digest)).collect())
}

/// Removes one of those. A machine that runs has its kernel in its memory and misses nothing.
///
/// # Errors
/// [`Error::System`]
pub fn remove_stale(path: &Path) -> Result<(), Error> {
    let _lock = lock(path.parent().unwrap_or(path))?;
    remove(path)
}

/// Makes the cache, which is the caller's alone, and what is missing above it, which need not be.
fn make(cache: &Path) -> Result<(), Error> {
    fs::create_dir_all(cache.parent().unwrap_or(cache)).map_err(failed("make", cache))?;
    match DirBuilder::new().mode(0o700).create(cache) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("make", cache)),
    }
}

/// Removes drafts. Holding the lock, the caller knows that nobody is at work on one.
fn sweep(cache: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(cache).map_err(failed("list", cache))?;
    for entry in entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"~")) {
        remove(&entry.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("clear", path)),
    }
}

fn lock(cache: &Path) -> Result<Flock<File>, Error> {
    let mut dir = File::open(cache).map_err(failed("open", cache))?;
    loop {
        match Flock::lock(dir, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EINTR)) => dir = back,
            Err((_, error)) => return Err(failed("lock", cache)(error.into())),
        }
    }
}

/// Whether all files are there in their sizes. Their content was checked when they were written.
fn is_whole(packed: &Packed, path: &Path) -> Result<bool, Error> {
    match check(path) {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    }
    let is_there = |file: &PackedFile| {
        let metadata = fs::symlink_metadata(path.join(&file.name));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size)
    };
    Ok(packed.files.iter().all(is_there))
}

/// A directory of the caller's that nobody else may write to.
fn check(path: &Path) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let mend = match () {
        () if !metadata.is_dir() => "it is no directory: remove it",
        () if metadata.uid() != nix::unistd::geteuid().as_raw() => "it is another user's: remove it",
        () if metadata.mode() & 0o022 != 0 => {
            "run chmod go-w on it if you trust what it holds, else remove it"
        }
        () => return Ok(()),
    };
    Err(Error::Unsafe { path: path.into(), mend })
}

fn unpack(packed: &Packed, draft: &Path, binary: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(draft).map_err(failed("make", draft))?;
    let size = packed.files.iter().map(|file| file.size).sum();
    let mut progress = Progress::new("unpacking rt's guest", size);
    for file in &packed.files {
        let path = draft.join(&file.name);
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut out = out.map_err(failed("make", &path))?;
        packed.unpack(file, &mut out, &mut progress).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                Error::Damaged { binary: binary.into(), reason: format!("{}: {error}", file.name) }
            }
            _ => failed("write", &path)(error),
        })?;
        // QEMU reads them as a user of its own, by the descriptors that its jail was made with.
        out.set_permissions(fs::Permissions::from_mode(0o444)).map_err(failed("protect", &path))?;
        out.sync_all().map_err(failed("write", &path))?;
    }
    sync(draft)
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("write", directory))
}

#[cfg(test)]
mod tests {
    use super::super::packed::tests::packed;
    use super::*;

    fn cache() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("var/lib/rt/guest");
        (root, cache)
    }

    #[test]
    fn it_is_unpacked_once() {
        let (_root, cache) = cache();
        let packed = packed(&[("vmlinux", &[1; 70_000]), ("initramfs.cpio", b"archive")]);
        let path = unpacked(&packed, &cache, Path::new("rt")).unwrap();
        assert_eq!(fs::read(path.join("vmlinux")).unwrap(), [1; 70_000]);
        assert_eq!(fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
        let inode = |path: &Path| fs::metadata(path.join("vmlinux")).unwrap().ino();
        let before = inode(&path);
        assert_eq!(unpacked(&packed, &cache, Path::new("rt")).unwrap(), path);
        assert_eq!(inode(&path), before);
    }

    #[test]
    fn what_a_killed_rt_left_is_replaced() {
        let (_root, cache) = cache();
        let packed = packed(&[("vmlinux", b"kernel")]);
        fs::create_dir_all(cache.join("~1234")).unwrap();
        fs::create_dir_all(cache.join(&packed.digest)).unwrap();
        fs::write(cache.join("~1234/vmlinux"), "ker").unwrap();
        fs::write(cache.join(&packed.digest).join("vmlinux"), "ker").unwrap();
        let path = unpacked(&packed, &cache, Path::new("rt")).unwrap();
        assert_eq!(fs::read(path.join("vmlinux")).unwrap(), b"kernel");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
    }

    #[test]
    fn many_at_once_unpack_one() {
        let (_root, cache) = cache();
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let one = || unpacked(&packed(&[("vmlinux", &[3; 300_000])]), &cache, Path::new("rt")).unwrap();
            let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(paths.iter().all(|path| *path == paths[0]));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
    }

    #[test]
    fn what_other_versions_left_is_stale() {
        let (_root, cache) = cache();
        let packed = packed(&[("vmlinux", b"kernel")]);
        assert_eq!(stale(&packed, &cache).unwrap(), Vec::<PathBuf>::new());
        let own = unpacked(&packed, &cache, Path::new("rt")).unwrap();
        fs::create_dir(cache.join("0123")).unwrap();
        assert_eq!(stale(&packed, &cache).unwrap(), [cache.join("0123")]);
        remove_stale(&cache.join("0123")).unwrap();
        assert!(own.exists() && !cache.join("0123").exists());
    }

    #[test]
    fn a_place_that_others_may_write_to_is_refused() {
        let (_root, cache) = cache();
        fs::create_dir_all(&cache).unwrap();
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
        let error = unpacked(&packed(&[]), &cache, Path::new("rt")).unwrap_err().to_string();
        assert!(error.contains("can be written to by others; run chmod"), "{error}");
    }
}
