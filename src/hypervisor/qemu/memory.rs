//! Plugs memory into a running QEMU, and takes it out: properties of its virtio-mem device.

use std::io;
use std::path::Path;
use std::time::Duration;

use qapi::qmp::{qom_get, qom_set};

use super::command_line::PLUGGED;
use super::qmp::Monitor;

/// For each answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks for so many bytes of memory beyond those of the start, or for nothing: how many are plugged.
///
/// # Errors
/// What QEMU or its socket say.
pub fn plugged(control: &Path, bytes: Option<u64>) -> io::Result<u64> {
    let monitor = Monitor::connect(control)?.patient(TIMEOUT);
    let mut session = monitor.session()?;
    let path = || format!("/machine/peripheral/{PLUGGED}");
    if let Some(bytes) = bytes {
        session.execute(&qom_set { path: path(), property: "requested-size".into(), value: bytes.into() })?;
    }
    let size = session.execute(&qom_get { path: path(), property: "size".into() })?;
    size.as_u64().ok_or_else(|| io::ErrorKind::InvalidData.into())
}
