//! `delete`: what containerd calls for each container whose shim has died.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;

use super::flags::Flags;
use super::process::timestamp;
use super::{Error, bootstrap, store};
use crate::config::Config;
use crate::container;

/// 128 + SIGKILL.
const KILLED: u32 = 137;

/// Ends what is left of the container: its process, virtual machine, file server and state. The root file system was mounted
/// in the shim's own mount namespace and goes with the last of them.
///
/// # Errors
/// [`Error::Container`]
pub fn delete(flags: &Flags) -> Result<DeleteResponse, Error> {
    let store = store(&flags.namespace);
    // It has to go whatever the configuration says by now; of that only the guest's patience matters here.
    let config = Config::load(&[]).unwrap_or_default();
    let monitor = store.read(&flags.id).ok().and_then(|record| record.monitor);
    container::delete(&store, &config, &flags.id, true)?;
    let bundle = if flags.bundle.is_empty() { Path::new(".") } else { Path::new(&flags.bundle) };
    if let Some(socket) = bootstrap::read_address(bundle)
        && UnixStream::connect(&socket).is_err()
    {
        // Another container of the pod may have removed it.
        let _ = std::fs::remove_file(socket);
    }
    Ok(DeleteResponse {
        pid: monitor.map_or(0, |monitor| monitor.pid as u32),
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    })
}
