//! Which file `process.args[0]` names, and runc's words when there is none: callers look for them.
//!
//! Run inside the container's root, as its user.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, stat};

/// Why a command cannot be run, worded as Go's os/exec does for runc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    command: String,
    reason: String,
}

impl fmt::Display for NotFound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "exec: \"{}\": {}", self.command, self.reason)
    }
}

impl std::error::Error for NotFound {}

/// Finds `command`: itself when it has a slash, else in the directories of `path`.
///
/// # Errors
/// [`NotFound`], ready for the user.
pub fn find(command: &str, path: &str) -> Result<PathBuf, NotFound> {
    let not_found = |reason: String| NotFound { command: command.to_owned(), reason };
    if command.contains('/') {
        return match executable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(Refusal::Stat(error)) => Err(not_found(format!("stat {command}: {}", words(error)))),
            // Newer callers look for the first words, older ones for the last.
            Err(Refusal::Mode(Errno::EISDIR)) => {
                Err(not_found("is a directory: permission denied".to_owned()))
            }
            Err(Refusal::Mode(error)) => Err(not_found(words(error))),
        };
    }
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(OsStr::from_bytes(command.as_bytes()));
        if !command.is_empty() && executable(&candidate).is_ok() {
            if !candidate.is_absolute() {
                return Err(not_found(
                    "cannot run executable found relative to current directory".to_owned(),
                ));
            }
            return Ok(candidate);
        }
    }
    Err(not_found("executable file not found in $PATH".to_owned()))
}

enum Refusal {
    Stat(Errno),
    Mode(Errno),
}

fn executable(file: &Path) -> Result<(), Refusal> {
    let status = stat(file).map_err(Refusal::Stat)?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Err(Refusal::Mode(Errno::EISDIR));
    }
    match crate::sys::may_execute(file) {
        // A seccomp profile may forbid the question (EPERM): then execve decides.
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) if status.st_mode & 0o111 != 0 => Ok(()),
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => Err(Refusal::Mode(Errno::EACCES)),
        Err(error) => Err(Refusal::Mode(error)),
    }
}

/// C's words for an error, in lower case, as Go has them.
pub fn words(error: Errno) -> String {
    error.desc().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn message(command: &str, path: &str) -> String {
        find(command, path).expect_err("not to be found").to_string()
    }

    #[test]
    fn found_in_path_and_by_path() {
        assert_eq!(find("sh", "/nonexistent:/bin"), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(find("/bin/sh", ""), Ok(PathBuf::from("/bin/sh")));
    }

    #[test]
    fn the_words_are_runcs() {
        let none = r#"exec: "nosuch": executable file not found in $PATH"#;
        assert_eq!(message("nosuch", "/bin:/usr/bin"), none);
        assert_eq!(message("nosuch", ""), none);
        assert_eq!(message("/x", "/bin"), r#"exec: "/x": stat /x: no such file or directory"#);
        assert_eq!(message("/etc/passwd", "/bin"), r#"exec: "/etc/passwd": permission denied"#);
        assert_eq!(message("/etc", "/bin"), r#"exec: "/etc": is a directory: permission denied"#);
        assert_eq!(message("", "/bin"), r#"exec: "": executable file not found in $PATH"#);
    }

    #[test]
    fn unfit_files_in_path_are_passed_over() {
        let directory = std::env::temp_dir().join(format!("rt-agent-lookup-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("sh");
        std::fs::write(&file, "").expect("a file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("a mode");
        let path = format!("{}:/bin", directory.display());
        assert_eq!(find("sh", &path), Ok(PathBuf::from("/bin/sh")));
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}
