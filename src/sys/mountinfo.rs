//! What is mounted where in a process's mount namespace (proc_pid_mountinfo(5)).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount, by what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    /// Of the mount that it lies on.
    pub parent: u64,
    /// Of the file system, as `major:minor`.
    pub device: String,
    /// What of the file system it shows.
    pub root: PathBuf,
    /// As the process sees it.
    pub point: PathBuf,
    /// Of file system.
    pub kind: String,
    /// The file system's, separated by commas.
    pub options: String,
}

impl Mount {
    /// Whether both show the same.
    pub fn shows(&self, other: &Self) -> bool {
        (&self.device, &self.root) == (&other.device, &other.root)
    }
}

/// A file that poll(2) finds to have news (POLLPRI) whenever something is mounted or unmounted where this process lives.
///
/// # Errors
/// There is no /proc.
pub fn watch() -> io::Result<File> {
    File::open("/proc/self/mountinfo")
}

/// The mounts of a process: a PID, or `self`.
///
/// # Errors
/// It has ended.
pub fn read(process: &str) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read(format!("/proc/{process}/mountinfo"))?))
}

/// Of `mounts` those below `top`, by their paths from there; of several at one place the one that is seen.
pub fn below<'a>(mounts: &'a [Mount], top: &Path) -> BTreeMap<PathBuf, &'a Mount> {
    let mut found: BTreeMap<PathBuf, &Mount> = BTreeMap::new();
    for mount in mounts {
        let Ok(path) = mount.point.strip_prefix(top) else { continue };
        let is_covered = found.get(path).is_some_and(|other| other.parent == mount.id);
        if !path.as_os_str().is_empty() && !is_covered {
            found.insert(path.to_owned(), mount);
        }
    }
    found
}

/// The mount that an open file lies on.
///
/// # Errors
/// There is no /proc.
pub fn of_descriptor(descriptor: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The mounts in the text of a mountinfo. A line that is none of the kernel's is passed over.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    const BETWEEN: &[u8] = b" - ";
    let middle = line.windows(BETWEEN.len()).position(|bytes| bytes == BETWEEN)?;
    let (mount, file_system) = (&line[..middle], &line[middle + BETWEEN.len()..]);
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescaped(field)));
    let mut fields = mount.split(|byte| *byte == b' ');
    let mut next = || fields.next();
    let (id, parent) = (text(next()?).parse().ok()?, text(next()?).parse().ok()?);
    let (device, root, point) = (text(next()?), path(next()?), path(next()?));
    let mut fields = file_system.split(|byte| *byte == b' ');
    let kind = text(fields.next()?);
    // Between them is the source.
    let options = text(fields.nth(1).unwrap_or_default());
    Some(Mount { id, parent, device, root, point, kind, options })
}

/// Spaces, tabs, line ends and backslashes are `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                        30 22 0:40 / /v\\040x rw - tmpfs tmpfs rw\n\
                        31 30 0:41 /sub /v\\040x/a\\134b rw shared:2 - tmpfs tmpfs rw\n\
                        33 32 0:43 / /v\\040x/c rw - tmpfs tmpfs rw\n\
                        32 30 0:42 / /v\\040x/c rw - tmpfs tmpfs rw\n";

    #[test]
    fn mounts_are_found_by_place() {
        let mounts = parse(TEXT.as_bytes());
        assert_eq!(mounts[1].point, Path::new("/v x"));
        let found = below(&mounts, Path::new("/v x"));
        let found: Vec<_> = found.iter().map(|(path, mount)| (path.to_str().unwrap(), mount.id)).collect();
        assert_eq!(found, [("a\\b", 31), ("c", 33)]);
        assert_eq!(mounts[2].root, Path::new("/sub"));
        assert_eq!((&mounts[0].kind[..], &mounts[0].options[..]), ("ext4", "rw"));
        assert!(below(&mounts, Path::new("/v")).is_empty());
        assert!(parse(b"x y\n\n1 2 - \n").is_empty());
    }

    #[test]
    fn an_open_file_lies_on_a_mount() {
        use std::os::fd::AsRawFd;
        let id = of_descriptor(File::open("/proc/self").expect("/proc").as_raw_fd()).expect("an ID");
        let mounts = read("self").expect("mounts");
        assert!(mounts.iter().any(|mount| mount.id == id && mount.point == Path::new("/proc")));
    }
}
