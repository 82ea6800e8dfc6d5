//! Which QEMU: where it is and which version.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::Error;

/// The oldest with `memory-backend-memfd` as a machine's memory, `vhost-user-vsock-pci` and the sandbox options that are used; also the oldest
/// that rt is tested with (Debian 12).
pub const MINIMUM_VERSION: (u32, u32) = (7, 2);
const NAME: &str = "qemu-system-x86_64";
/// Looked at beside PATH, which a daemon may have set to anything.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];

/// The configured binary, else the first of that name in PATH or the usual places.
///
/// # Errors
/// [`Error::Unusable`]
pub fn find(configured: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = configured {
        return match executable(path) {
            true => Ok(path.to_owned()),
            false => {
                Err(unusable(format!("hypervisor.qemu is {}, which cannot be executed", path.display())))
            }
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    search(&path).ok_or_else(|| {
        unusable(format!(
            "{NAME} is not installed; install it (in Debian and Ubuntu the package qemu-system-x86), or set hypervisor.qemu"
        ))
    })
}

fn search(path: &OsStr) -> Option<PathBuf> {
    let places = std::env::split_paths(path).filter(|place| place.is_absolute());
    places
        .chain(PLACES.iter().map(PathBuf::from))
        .map(|place| place.join(NAME))
        .find(|candidate| executable(candidate))
}

fn executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Major and minor version of a QEMU, by running it: about 30 ms.
///
/// # Errors
/// [`Error::Unusable`]
pub fn version(binary: &Path) -> Result<(u32, u32), Error> {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.map_err(|error| unusable(format!("cannot execute {}: {error}", binary.display())))?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| unusable(format!("{} --version does not say a QEMU version", binary.display())))
}

/// The accelerators that a QEMU was built with, by running it.
///
/// # Errors
/// [`Error::Unusable`]
pub fn accelerators(binary: &Path) -> Result<Vec<String>, Error> {
    let output =
        Command::new(binary).args(["-accel", "help"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.map_err(|error| unusable(format!("cannot execute {}: {error}", binary.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A heading, then one in a line.
    Ok(text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The error for a QEMU that is too old.
pub fn too_old(binary: &Path, (major, minor): (u32, u32)) -> Error {
    let (want_major, want_minor) = MINIMUM_VERSION;
    unusable(format!(
        "{} is {major}.{minor}, but {want_major}.{want_minor} is the oldest that works",
        binary.display()
    ))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("QEMU emulator version ")?.split(['.', ' ', '(']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn unusable(reason: String) -> Error {
    Error::Unusable { backend: "qemu", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(parse_version(debian), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2\n"), Some((10, 0)));
        assert_eq!(parse_version("qemu 7.2"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn a_configured_binary_that_is_not_there_is_named() {
        let error = find(Some(Path::new("/no/such/qemu"))).unwrap_err().to_string();
        assert!(error.contains("/no/such/qemu"), "{error}");
    }

    #[test]
    fn relative_places_of_path_are_not_searched() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join(NAME);
        std::fs::write(&binary, "").unwrap();
        std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(search(root.path().as_os_str()), Some(binary));
        assert_ne!(search(OsStr::new(".:bin")), Some(PathBuf::from("./qemu-system-x86_64")));
    }
}
