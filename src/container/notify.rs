//! sd_notify(3): what the container's process tells its service manager reaches the one that rt was started with
//! (`NOTIFY_SOCKET`).
//!
//! The process finds a socket of the guest below `/run/notify`; what comes to it arrives here as frames. The guest is an enemy:
//! only messages about the service's own state pass, and the main process is said to be the container's monitor.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::Builder;

use oci_spec::runtime::{Mount, Spec};

use crate::sys::text::printable;

/// Longest frame that is taken; the agent sends no longer ones.
const LONGEST: usize = 4096;

/// The mount that the container's process finds its socket by.
pub fn mount(id: &str) -> Mount {
    let mut mount = Mount::default();
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    mount
        .set_destination(PathBuf::from(rt_proto::NOTIFY_DIR))
        .set_typ(Some("bind".into()))
        .set_source(Some(rt_proto::notify_dir(id)))
        .set_options(Some(options));
    mount
}

/// Gives the guest's spec the mount, and the process its variable.
pub fn prepare(spec: &mut Spec, id: &str) {
    spec.mounts_mut().get_or_insert_default().push(mount(id));
    if let Some(process) = spec.process_mut() {
        let variables = process.env_mut().get_or_insert_default();
        variables.push(format!("NOTIFY_SOCKET={}/{}", rt_proto::NOTIFY_DIR, rt_proto::NOTIFY_NAME));
    }
}

/// Passes on what comes on `stream`, until its end.
///
/// # Errors
/// No thread or socket is to be had.
pub fn forward(mut stream: UnixStream, to: &Path) -> io::Result<()> {
    let (socket, to) = (UnixDatagram::unbound()?, to.to_owned());
    Builder::new().name("notify".into()).spawn(move || {
        let mut is_told = false;
        while let Some(message) = receive(&mut stream) {
            let Some(message) = passed(&message, std::process::id()) else { continue };
            // Once: the guest says as much as it likes.
            if let Err(error) = send(&socket, &to, message.as_bytes())
                && !std::mem::replace(&mut is_told, true)
            {
                tracing::warn!("cannot notify {}: {error}", to.display());
            }
        }
    })?;
    Ok(())
}

fn receive(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok().filter(|length| *length <= LONGEST)?;
    let mut message = vec![0; length];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// The lines that pass; `None` when there are none.
fn passed(message: &[u8], monitor: u32) -> Option<String> {
    let mut lines = Vec::new();
    for line in String::from_utf8_lossy(message).lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => lines.extend([line.to_owned(), format!("MAINPID={monitor}")]),
            Some(("RELOADING" | "STOPPING" | "WATCHDOG", "1")) => lines.push(line.to_owned()),
            Some(("STATUS", text)) => lines.push(format!("STATUS={}", printable(text, 512))),
            Some(("ERRNO" | "MONOTONIC_USEC" | "EXTEND_TIMEOUT_USEC", number))
                if number.parse::<u64>().is_ok() =>
            {
                lines.push(line.to_owned());
            }
            _ => tracing::debug!("not passed on: {}", printable(line, 128)),
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// A path, or with @ before it an abstract name.
fn send(socket: &UnixDatagram, to: &Path, message: &[u8]) -> io::Result<()> {
    let name: &OsStr = to.as_os_str();
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(to)?,
    };
    socket.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_tells_of_its_own_state_only() {
        let told = |text: &str| passed(text.as_bytes(), 77);
        assert_eq!(
            told("READY=1\nSTATUS=a\u{1b}[1m").as_deref(),
            Some("READY=1\nMAINPID=77\nSTATUS=a\\u{1b}[1m")
        );
        assert_eq!(told("MAINPID=1\nFDSTORE=1\nBUSERROR=x\nREADY=0"), None);
        assert_eq!(told("WATCHDOG=1\nERRNO=2\nERRNO=x").as_deref(), Some("WATCHDOG=1\nERRNO=2"));
        assert_eq!(told(""), None);
    }

    #[test]
    fn frames_are_bounded() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut near, b"\x02\0\0\0ab\xff\xff\xff\xff").unwrap();
        assert_eq!(receive(&mut far), Some(b"ab".to_vec()));
        assert_eq!(receive(&mut far), None);
    }
}
