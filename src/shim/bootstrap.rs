//! `start`: finds or starts the shim of a container, whose bundle is the working directory.
//!
//! The containers of a pod share the shim of its sandbox, which is known by the address file in the sandbox's bundle: the
//! neighbour of this one that has the sandbox's ID for its name.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use serde::Deserialize;

use super::flags::Flags;
use super::{ADDRESS_FILE, Error, NAMES, SOCKETS, failed};
use crate::sys::{mount, random};

/// containerd's CRI plugin puts it on each container of a pod, the sandbox's included.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const CONFIG: &str = "config.json";

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// The address of a shim that serves the container.
///
/// # Errors
/// [`Error`]; no shim is left then.
pub fn start(flags: &Flags) -> Result<String, Error> {
    if let Some(address) = shim_of_the_pod(&flags.id)? {
        write_address(Path::new(ADDRESS_FILE), &address)?;
        return Ok(address);
    }
    let (listener, path) = listen()?;
    let address = format!("unix://{}", path.display());
    let started = write_address(Path::new(ADDRESS_FILE), &address).and_then(|()| spawn(flags, listener));
    match started {
        Ok(()) => Ok(address),
        Err(error) => {
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

/// The address of the shim of the sandbox that the container belongs to, if it answers.
fn shim_of_the_pod(id: &str) -> Result<Option<String>, Error> {
    let text = std::fs::read(CONFIG).map_err(failed("read", CONFIG))?;
    let spec: Spec =
        serde_json::from_slice(&text).map_err(|source| Error::Spec { path: CONFIG.into(), source })?;
    let Some(sandbox) = spec.annotations.get(SANDBOX).filter(|sandbox| *sandbox != id) else {
        return Ok(None);
    };
    if crate::container::validate(sandbox).is_err() {
        return Ok(None);
    }
    let Some(path) = read_address(&Path::new("..").join(sandbox)) else { return Ok(None) };
    // One that does not answer is none: the container then says itself that its sandbox is gone.
    Ok(UnixStream::connect(&path).ok().map(|_| format!("unix://{}", path.display())))
}

/// The socket named in a bundle.
pub fn read_address(bundle: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).ok()?;
    Some(text.trim().strip_prefix("unix://")?.into())
}

/// Beside its place, then renamed: a containerd that starts meanwhile reads the whole of it or nothing.
fn write_address(path: &Path, address: &str) -> Result<(), Error> {
    let draft = path.with_file_name(format!(".{ADDRESS_FILE}"));
    std::fs::write(&draft, address)
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(failed("write the address to", path))
}

/// A socket of its own for a shim, which only root may use.
fn listen() -> Result<(UnixListener, PathBuf), Error> {
    let mut directory = std::fs::DirBuilder::new();
    directory.recursive(true).mode(0o711).create(SOCKETS).map_err(failed("make the directory", SOCKETS))?;
    let number = random::non_zero().map_err(failed("make a name in", SOCKETS))?;
    let path = Path::new(SOCKETS).join(format!("rt-{number:016x}"));
    let listener = UnixListener::bind(&path).map_err(failed("listen on", &path))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        .map_err(failed("keep others from", &path))?;
    Ok((listener, path))
}

/// Starts the shim itself, with its listener as standard input, in a mount namespace of its own. This process moves there first: a
/// program that moves afterwards no longer knows its own path where containerd runs in a chroot.
fn spawn(flags: &Flags, listener: UnixListener) -> Result<(), Error> {
    let program = std::env::current_exe().map_err(failed("find", "/proc/self/exe"))?;
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|error| failed("make a mount namespace for", &flags.id)(error.into()))?;
    mount::leave_propagation().map_err(failed("leave the propagation of", "/"))?;
    let mut command = Command::new(&program);
    command
        .arg0(NAMES[0])
        .args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address])
        .args(["-publish-binary", &flags.publish_binary])
        .args(flags.debug.then_some("-debug"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        // containerd waits for the end of ours.
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().map_err(failed("start the shim", &program))?;
    adjust_oom_score(child.id());
    Ok(())
}

/// As containerd's own shim: the kernel takes a shim before containerd.
fn adjust_oom_score(pid: u32) {
    let path = |pid: &str| format!("/proc/{pid}/oom_score_adj");
    let adjust = || -> io::Result<()> {
        let own: i32 = std::fs::read_to_string(path("self"))?.trim().parse().unwrap_or(0);
        std::fs::write(path(&pid.to_string()), (own + 1).min(1000).to_string())
    };
    if let Err(error) = adjust() {
        tracing::debug!("the shim's oom_score_adj stays: {error}");
    }
}
