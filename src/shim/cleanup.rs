//! `delete`: what containerd calls for each container whose shim has died.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::{DeleteResponse, ShutdownRequest};
use containerd_shim_protos::{TaskClient, ttrpc};

use super::flags::Flags;
use super::process::timestamp;
use super::{Error, bootstrap, store};
use crate::config::Config;
use crate::container;

/// 128 + SIGKILL.
const KILLED: u32 = 137;
const PATIENCE_NS: i64 = 3_000_000_000;

/// Ends what is left of the container: its process, virtual machine, file server and state. The root file system was mounted
/// in the shim's own mount namespace and goes with the last of them.
///
/// # Errors
/// [`Error::Container`]
pub fn delete(flags: &Flags) -> Result<DeleteResponse, Error> {
    let bundle = if flags.bundle.is_empty() { Path::new(".") } else { Path::new(&flags.bundle) };
    if let Some(socket) = bootstrap::read_address(bundle) {
        match UnixStream::connect(&socket) {
            // A containerd that comes back removes what it finds half made: nobody else tells that shim to end. First, since its
            // end is quick and takes the machine along: containerd kills a cleanup after five seconds.
            Ok(shim) => end(shim, &flags.id),
            // Another container of the pod may have removed it.
            Err(_) => _ = std::fs::remove_file(socket),
        }
    }
    let store = store(&flags.namespace);
    // It has to go whatever the configuration says by now; of that only the guest's patience matters here.
    let config = Config::load(&[]).unwrap_or_default();
    let monitor = store.read(&flags.id).ok().and_then(|record| record.monitor);
    container::delete(&store, &config, &flags.id, true)?;
    Ok(DeleteResponse {
        pid: monitor.map_or(0, |monitor| monitor.pid as u32),
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    })
}

/// Asks a shim that lives to end, which it does unless other containers want it.
fn end(shim: UnixStream, id: &str) {
    let context = ttrpc::context::with_timeout(PATIENCE_NS);
    let request = ShutdownRequest { id: id.into(), now: true, ..Default::default() };
    // Its end may be quicker than its reply.
    let _ = ttrpc::Client::new(shim.into_raw_fd())
        .and_then(|client| TaskClient::new(client).shutdown(context, &request));
}
