//! The shim itself: serves containerd until its last container is deleted and containerd says so.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use containerd_shim_protos::create_task;
use containerd_shim_protos::ttrpc::{MethodHandler, Server};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::setsid;

use super::events::Publisher;
use super::flags::Flags;
use super::service::Service;
use super::{Error, LOG_FILE, failed};
use crate::bundle::Bundle;
use crate::log;
use crate::net::{self, Namespace, Wanted};
use crate::sys::fd;

/// How long the last replies may take to go out.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The service's name in containerd 2, whose messages are those of version 2 to the byte.
const CURRENT: &str = "/containerd.task.v3.Task/";
const VERSION_2: &str = "/containerd.task.v2.Task/";

/// Serves; the listener is standard input.
///
/// # Errors
/// [`Error`], before anything is served.
pub fn serve(flags: &Flags) -> Result<(), Error> {
    let listener = listener()?;
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    // Nobody's terminal, nobody's process group; fails only for a leader, which has its own.
    let _ = setsid();
    log(flags.debug).start_in_monitor().map_err(failed("open the log", LOG_FILE))?;
    let events = Publisher::start(flags).map_err(failed("start a thread for", &flags.id))?;
    let (stop, stopped) = mpsc::channel();
    let service = Arc::new(Service::new(flags, events, stop));

    let served = |error| Error::Serve(format!("{error}"));
    let mut server = Server::new()
        .add_listener(listener.into_raw_fd())
        .map_err(served)?
        .register_service(create_task(service.clone()))
        .register_service(version_2(create_task(service.clone())));
    // What serves lives in the host's network, as do the threads that it starts.
    let (settled, begin) = mpsc::channel::<()>();
    let starter = std::thread::Builder::new().name("starter".into()).spawn(move || {
        let _ = begin.recv();
        server.start().map(|()| server)
    });
    let starter = starter.map_err(failed("start a thread for", &flags.id))?;
    settle();
    drop(settled);
    let server = starter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(served)?;
    tracing::info!("serving {} of namespace {}", flags.id, flags.namespace);
    // The sender is in the service, which lives as long as this.
    let _ = stopped.recv();

    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    service.events.finish();
    // Waits for replies under way. A handler that never returns must not keep the shim.
    let (done, finished) = mpsc::channel();
    let ending = std::thread::Builder::new().name("ending".into()).spawn(move || {
        server.shutdown();
        let _ = done.send(());
    });
    if ending.is_ok() {
        let _ = finished.recv_timeout(LAST_WORDS);
    }
    Ok(())
}

/// Moves this thread, the process's first, into the network namespace of its pod, whose bundle is the working directory: hooks and
/// callers look for it at the task's PID. What is wrong with it is for Create to say.
fn settle() {
    let Ok(bundle) = Bundle::load(Path::new(".")) else { return };
    let settled = match Wanted::of(&bundle.spec) {
        Wanted::New => net::make(),
        Wanted::Existing(path) => Namespace::open(&path).and_then(|namespace| namespace.enter()),
        Wanted::Host => Ok(()),
    };
    if let Err(error) = settled {
        tracing::debug!("{}", log::chain(&error));
    }
}

/// Takes the listener from standard input, and leaves /dev/null on all three.
fn listener() -> Result<UnixListener, Error> {
    let input = fd::standard(0);
    if !getsockopt(&input, sockopt::AcceptConn).unwrap_or(false) {
        return Err(Error::Usage("a shim is started by its action start".into()));
    }
    let listener = input.try_clone_to_owned().and_then(|listener| {
        fd::close_standard()?;
        Ok(UnixListener::from(listener))
    });
    listener.map_err(failed("take over", "standard input"))
}

/// The service under the name that containerd 1 knows.
fn version_2(
    methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>>,
) -> HashMap<String, Box<dyn MethodHandler + Send + Sync>> {
    methods.into_iter().map(|(name, method)| (name.replace(CURRENT, VERSION_2), method)).collect()
}

/// To the FIFO in the bundle, if containerd reads it.
fn log(debug: bool) -> log::Settings {
    // Without a reader, opening it in earnest would wait for one.
    let is_read = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(LOG_FILE).is_ok();
    log::Settings { file: is_read.then(|| LOG_FILE.into()), format: log::Format::Text, debug }
}
